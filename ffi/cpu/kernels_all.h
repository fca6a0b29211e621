// The table of kernels of one instruction set; see kernels_*.cpp.
#include "contractions.h"
#include "fourier.h"
#include "transform.h"

namespace bandjax {
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
};
}  // namespace bandjax
