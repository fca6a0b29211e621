// All kernels of one instruction set; see kernels_*.cpp. With BANDJAX_TRANSFORMS or BANDJAX_WINDOWS
// those alone, so that they are compiled at the same time; else the products, and the table.
#include "kernels.h"

#if defined(BANDJAX_TRANSFORMS)

#include "fourier.h"
#include "pack.h"
#include "transform.h"

namespace bandjax {
namespace BANDJAX_ISA {
template void TransformTyped<true>(const TransformArgs&, Pool*);
template void TransformTyped<false>(const TransformArgs&, Pool*);
template void FourierTyped<true>(const FourierArgs&, Pool*);
template void FourierTyped<false>(const FourierArgs&, Pool*);
template void PackTyped<true>(const PackArgs&, Pool*);
template void PackTyped<false>(const PackArgs&, Pool*);
template void BitsTyped<true>(const BitsArgs&, Pool*);
template void BitsTyped<false>(const BitsArgs&, Pool*);
}  // namespace BANDJAX_ISA
}  // namespace bandjax

#elif defined(BANDJAX_WINDOWS)

#include "columns.h"
#include "direct.h"
#include "windows.h"

namespace bandjax {
namespace BANDJAX_ISA {
template void ColumnsTyped<false>(const ColumnArgs&, Pool*);
template void ColumnsTyped<true>(const ColumnArgs&, Pool*);
template void DirectTyped<false>(const DirectArgs&, Pool*);
template void DirectTyped<true>(const DirectArgs&, Pool*);
template void WindowsTyped<false>(const WindowArgs&, Pool*);
template void WindowsTyped<true>(const WindowArgs&, Pool*);
}  // namespace BANDJAX_ISA
}  // namespace bandjax

#else

#include "contractions.h"
#define BANDJAX_BASE BANDJAX_ISA
#include "kernels_table.h"

#endif
