// The table of kernels of an instruction set that multiplies bfloat16: those of AVX-512, but for
// products of such spectra. The Unit in hand is of half.h.
#include "half.h"

namespace bandjax {
namespace avx512 {
void MultiplySumTyped(const MultiplyArgs& args, Pool* pool);
void InputProductTyped(const MultiplyArgs& args, Pool* pool);
void FilterProductTyped(const MultiplyArgs& args, Pool* pool);
}  // namespace avx512

namespace BANDJAX_ISA {

// Of few rows the filter's spectrum costs more than its products: narrow.h makes it in registers,
// and given.h reads one that is given.
inline bool Pays(const MultiplyArgs& args) {
  const bool depthwise = args.in == args.groups && args.out == args.groups;
  const int64_t least = args.spectral() ? 13 : BANDJAX_ROWS;
  return args.y_type == Type::kBFloat16 && !depthwise && args.n >= least;
}

inline void MultiplySumTyped(const MultiplyArgs& args, Pool* pool) {
  if (!Pays(args)) return avx512::MultiplySumTyped(args, pool);
  HalfMultiplier<Unit>(args).Spread<true>(pool);
}
inline void InputProductTyped(const MultiplyArgs& args, Pool* pool) {
  if (!Pays(args)) return avx512::InputProductTyped(args, pool);
  HalfMultiplier<Unit>(args).Spread<false>(pool);
}
inline void FilterProductTyped(const MultiplyArgs& args, Pool* pool) {
  if (!Pays(args)) return avx512::FilterProductTyped(args, pool);
  HalfMultiplier<Unit>(args).FilterProduct(pool);
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#define BANDJAX_BASE avx512
#include "kernels_table.h"
