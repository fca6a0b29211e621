// The table of kernels of one instruction set; see kernels_*.cpp. With BANDJAX_TRANSFORMS the
// transforms in it, and nothing else.
#include "kernels.h"

#ifdef BANDJAX_TRANSFORMS

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

#else

#include "contractions.h"

namespace bandjax {
namespace BANDJAX_ISA {
template <bool kAnalysis>
void TransformTyped(const TransformArgs& args, Pool* pool);
template <bool kAnalysis>
void FourierTyped(const FourierArgs& args, Pool* pool);
template <bool kPack>
void PackTyped(const PackArgs& args, Pool* pool);
template <bool kPack>
void BitsTyped(const BitsArgs& args, Pool* pool);
}  // namespace BANDJAX_ISA
extern const Kernels BANDJAX_TABLE;
const Kernels BANDJAX_TABLE = {
    BANDJAX_NAME,
    &BANDJAX_ISA::TransformTyped<true>,
    &BANDJAX_ISA::TransformTyped<false>,
    &BANDJAX_ISA::FourierTyped<true>,
    &BANDJAX_ISA::FourierTyped<false>,
    &BANDJAX_ISA::MultiplySumTyped,
    &BANDJAX_ISA::InputProductTyped,
    &BANDJAX_ISA::FilterProductTyped,
    &BANDJAX_ISA::PackTyped<true>,
    &BANDJAX_ISA::PackTyped<false>,
    &BANDJAX_ISA::BitsTyped<true>,
    &BANDJAX_ISA::BitsTyped<false>,
};
}  // namespace bandjax

#endif
