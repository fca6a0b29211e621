#include "launchers.h"
#include "multiply.h"

namespace bandjax::cuda {
namespace {

bool Aligned(const void* at, int bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

template <class Body>
const char* LaunchBody(const ProductParams& p, Stream stream) {
  return Launch<Body>(p, Body::Blocks(p), kProductThreads, Body::kShared, stream);
}

// The tiles that leave the least of their rows empty; among equals those of fewest frequencies,
// which build the least of the filter's spectrum for each row.
template <Contraction kContraction, class S, class Arithmetic>
const char* LaunchArithmetic(const ProductParams& p, Stream stream) {
  using One = ProductBody<kContraction, S, Arithmetic, 1>;
  using Two = ProductBody<kContraction, S, Arithmetic, 2>;
  using Four = ProductBody<kContraction, S, Arithmetic, 4>;
  const int64_t one = One::Blocks(p), two = Two::Blocks(p), four = Four::Blocks(p);
  if (one <= two && one <= four) return LaunchBody<One>(p, stream);
  return two <= four ? LaunchBody<Two>(p, stream) : LaunchBody<Four>(p, stream);
}

template <Contraction kContraction, class S>
const char* LaunchContraction(ProductParams& p, Precision precision, Stream stream) {
  p.copy_a = p.depth * sizeof(S) % 16 == 0 && Aligned(p.a_re, 16) && Aligned(p.a_im, 16);
  p.wide_taps = p.output % 4 == 0 && Aligned(p.taps, 16);
  p.wide_result = p.width % 2 == 0 && Aligned(p.re, 8) && Aligned(p.im, 8);
  switch (precision) {
    case Precision::kTf32:
      return LaunchArithmetic<kContraction, S, Tf32>(p, stream);
    case Precision::kTf32x3:
      return LaunchArithmetic<kContraction, S, Tf32x3>(p, stream);
    default:
      return LaunchArithmetic<kContraction, S, Bfloat16>(p, stream);
  }
}

ProductParams Parameters(const ProductShape& s, const float* taps, const float* outer,
                         const float* inner) {
  ProductParams p{};
  p.taps = taps, p.outer = outer, p.inner = inner;
  p.K0 = static_cast<int>(s.K0), p.K1 = static_cast<int>(s.K1), p.N = static_cast<int>(s.N);
  p.k0 = static_cast<int>(s.k0), p.k1 = static_cast<int>(s.k1);
  p.groups = static_cast<int>(s.groups);
  p.input = static_cast<int>(s.C / s.groups), p.output = static_cast<int>(s.O / s.groups);
  return p;
}

// Zeros the result of an empty sum.
const char* ZeroBoth(const ProductParams& p, Stream stream) {
  const size_t bytes = sizeof(float) * p.K0 * p.K1 * p.N * p.groups * p.width;
  const char* error = Zero(p.re, bytes, stream);
  return error != nullptr ? error : Zero(p.im, bytes, stream);
}

bool Empty(const ProductParams& p) {
  return p.K0 == 0 || p.K1 == 0 || p.N == 0 || p.depth == 0 || p.width == 0 || p.k0 == 0 ||
         p.k1 == 0;
}

}  // namespace

const char* LaunchMultiplySum(const ProductShape& shape, Storage spectra, Precision precision,
                              const void* xre, const void* xim, const float* taps,
                              const float* outer, const float* inner, float* yre, float* yim,
                              Stream stream) {
  ProductParams p = Parameters(shape, taps, outer, inner);
  p.a_re = xre, p.a_im = xim, p.re = yre, p.im = yim;
  p.depth = p.input, p.width = p.output;
  if (Empty(p)) return ZeroBoth(p, stream);
  return spectra == Storage::kF32
             ? LaunchContraction<Contraction::kMultiplySum, float>(p, precision, stream)
             : LaunchContraction<Contraction::kMultiplySum, Bf16>(p, precision, stream);
}

const char* LaunchInputProduct(const ProductShape& shape, Precision precision, const float* yre,
                               const float* yim, const float* taps, const float* outer,
                               const float* inner, float* xre, float* xim, Stream stream) {
  ProductParams p = Parameters(shape, taps, outer, inner);
  p.a_re = yre, p.a_im = yim, p.re = xre, p.im = xim;
  p.depth = p.output, p.width = p.input;
  if (Empty(p)) return ZeroBoth(p, stream);
  return LaunchContraction<Contraction::kInputProduct, float>(p, precision, stream);
}

}  // namespace bandjax::cuda
