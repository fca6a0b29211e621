// The three contractions for every type of their arrays.
#ifndef BANDJAX_FFI_CPU_CONTRACTIONS_H_
#define BANDJAX_FFI_CPU_CONTRACTIONS_H_

#include "given.h"
#include "multiply.h"
#include "narrow_multiply.h"

namespace bandjax {
namespace BANDJAX_ISA {

// Computes in A; the spectra of input and output are stored in S and T.
template <typename A, typename S, typename T>
void MultiplySum(const MultiplyArgs& args, Pool* pool) {
  const Multiplier<A, S, T> m(args);
  const S *a = static_cast<const S*>(args.x_re), *b = static_cast<const S*>(args.x_im);
  T *re = static_cast<T*>(args.y_re), *im = static_cast<T*>(args.y_im);
  const NarrowMultiplier<A, S, T> narrow(args);
  if (m.depthwise()) {
    m.template SpreadDepthwise<true>(pool, a, b, re, im);
  } else if (narrow.pays()) {
    narrow.template Spread<true>(pool, a, b, re, im);
  } else if (GivenProduct<A, S, T, A>{args}.pays()) {
    if (sizeof(A) == 4 && args.w_type == Type::kBFloat16) {
      GivenProduct<A, S, T, BFloat16>{args}.MultiplySum(pool);
    } else {
      GivenProduct<A, S, T, A>{args}.MultiplySum(pool);
    }
  } else {
    m.template Spread<true>(pool, a, b, re, im);
  }
}

template <typename A, typename T>
void InputProduct(const MultiplyArgs& args, Pool* pool) {
  const Multiplier<A, T, T> m(args);
  const T *a = static_cast<const T*>(args.y_re), *b = static_cast<const T*>(args.y_im);
  T *re = static_cast<T*>(args.x_re), *im = static_cast<T*>(args.x_im);
  const NarrowMultiplier<A, T, T> narrow(args);
  if (m.depthwise()) {
    m.template SpreadDepthwise<false>(pool, a, b, re, im);
  } else if (narrow.pays()) {
    narrow.template Spread<false>(pool, a, b, re, im);
  } else {
    m.template Spread<false>(pool, a, b, re, im);
  }
}

template <typename A, typename S, typename T>
void FilterProduct(const MultiplyArgs& args, Pool* pool) {
  const Multiplier<A, S, T> m(args);
  const NarrowMultiplier<A, S, T> narrow(args);
  if (m.depthwise()) {
    m.FilterProductDepthwise(pool);
  } else if (narrow.pays()) {
    narrow.FilterProduct(pool);
  } else {
    m.FilterProduct(pool);
  }
}

void MultiplySumTyped(const MultiplyArgs& args, Pool* pool) {
  if (args.type == Type::kFloat64) return MultiplySum<double, double, double>(args, pool);
  if (args.y_type == Type::kBFloat16) return MultiplySum<float, BFloat16, BFloat16>(args, pool);
  if (args.x_type == Type::kBFloat16) return MultiplySum<float, BFloat16, float>(args, pool);
  return MultiplySum<float, float, float>(args, pool);
}

void InputProductTyped(const MultiplyArgs& args, Pool* pool) {
  if (args.type == Type::kFloat64) return InputProduct<double, double>(args, pool);
  if (args.y_type == Type::kBFloat16) return InputProduct<float, BFloat16>(args, pool);
  return InputProduct<float, float>(args, pool);
}

void FilterProductTyped(const MultiplyArgs& args, Pool* pool) {
  if (args.type == Type::kFloat64) return FilterProduct<double, double, double>(args, pool);
  if (args.y_type == Type::kBFloat16) return FilterProduct<float, BFloat16, BFloat16>(args, pool);
  if (args.x_type == Type::kBFloat16) return FilterProduct<float, BFloat16, float>(args, pool);
  return FilterProduct<float, float, float>(args, pool);
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_CONTRACTIONS_H_
