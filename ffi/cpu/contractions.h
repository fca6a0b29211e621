// The three contractions for every type of their arrays.
#ifndef BANDJAX_FFI_CPU_CONTRACTIONS_H_
#define BANDJAX_FFI_CPU_CONTRACTIONS_H_

#include "given.h"
#include "multiply.h"
#include "narrow_multiply.h"

namespace bandjax {
namespace BANDJAX_ISA {

// The filter, or its spectrum, in storage type F.
template <typename A, typename S, typename F>
void MultiplySum(const MultiplyArgs& args, Pool* pool) {
  const Multiplier<A, S> m(args);
  const S *a = static_cast<const S*>(args.x_re), *b = static_cast<const S*>(args.x_im);
  A *re = static_cast<A*>(args.y_re), *im = static_cast<A*>(args.y_im);
  const NarrowMultiplier<A, S> narrow(args);
  const GivenProduct<A, S, F> given{args};
  if (m.depthwise()) {
    m.template SpreadDepthwise<true>(pool, a, b, re, im);
  } else if (narrow.pays()) {
    narrow.template Spread<true>(pool, a, b, re, im);
  } else if (given.pays()) {
    given.MultiplySum(pool);
  } else {
    m.template Spread<true>(pool, a, b, re, im);
  }
}

template <typename A>
void InputProduct(const MultiplyArgs& args, Pool* pool) {
  const Multiplier<A, A> m(args);
  const A *a = static_cast<const A*>(args.y_re), *b = static_cast<const A*>(args.y_im);
  A *re = static_cast<A*>(args.x_re), *im = static_cast<A*>(args.x_im);
  const NarrowMultiplier<A, A> narrow(args);
  if (m.depthwise()) {
    m.template SpreadDepthwise<false>(pool, a, b, re, im);
  } else if (narrow.pays()) {
    narrow.template Spread<false>(pool, a, b, re, im);
  } else {
    m.template Spread<false>(pool, a, b, re, im);
  }
}

template <typename A, typename S>
void FilterProduct(const MultiplyArgs& args, Pool* pool) {
  const Multiplier<A, S> m(args);
  const NarrowMultiplier<A, S> narrow(args);
  if (m.depthwise()) {
    m.FilterProductDepthwise(pool);
  } else if (narrow.pays()) {
    narrow.FilterProduct(pool);
  } else {
    m.FilterProduct(pool);
  }
}

inline void MultiplySumTyped(const MultiplyArgs& args, Pool* pool) {
  if (args.type == Type::kFloat64) return MultiplySum<double, double, double>(args, pool);
  const bool half = args.x_type == Type::kBFloat16;
  if (args.w_type == Type::kBFloat16) {
    return half ? MultiplySum<float, BFloat16, BFloat16>(args, pool)
                : MultiplySum<float, float, BFloat16>(args, pool);
  }
  return half ? MultiplySum<float, BFloat16, float>(args, pool)
              : MultiplySum<float, float, float>(args, pool);
}

inline void InputProductTyped(const MultiplyArgs& args, Pool* pool) {
  if (args.type == Type::kFloat64) return InputProduct<double>(args, pool);
  return InputProduct<float>(args, pool);
}

inline void FilterProductTyped(const MultiplyArgs& args, Pool* pool) {
  if (args.type == Type::kFloat64) return FilterProduct<double, double>(args, pool);
  if (args.x_type == Type::kBFloat16) return FilterProduct<float, BFloat16>(args, pool);
  return FilterProduct<float, float>(args, pool);
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_CONTRACTIONS_H_
