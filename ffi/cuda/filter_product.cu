#include "filter_product.h"
#include "launchers.h"

namespace bandjax::cuda {
namespace {

bool Aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

template <class S, class Arithmetic>
const char* LaunchTaps(const FilterParams& p, Stream stream) {
  if (p.k0 * p.k1 <= kFewTaps) {
    using Body = FilterBody<S, Arithmetic, kFewTaps>;
    return Launch<Body>(p, Body::Blocks(p), kFilterThreads, Body::kShared, stream);
  }
  using Body = FilterBody<S, Arithmetic, kManyTaps>;
  return Launch<Body>(p, Body::Blocks(p), kFilterThreads, Body::kShared, stream);
}

template <class S>
const char* LaunchPrecision(FilterParams& p, Precision precision, Stream stream) {
  p.copy_x = p.input * sizeof(S) % 16 == 0 && Aligned(p.x_re) && Aligned(p.x_im);
  p.copy_y = p.output * sizeof(float) % 16 == 0 && Aligned(p.y_re) && Aligned(p.y_im);
  switch (precision) {
    case Precision::kTf32:
      return LaunchTaps<S, Tf32>(p, stream);
    case Precision::kTf32x3:
      return LaunchTaps<S, Tf32x3>(p, stream);
    default:
      return LaunchTaps<S, Bfloat16>(p, stream);
  }
}

}  // namespace

const char* LaunchFilterProduct(const ProductShape& s, Storage spectra, Precision precision,
                                const void* xre, const void* xim, const float* yre,
                                const float* yim, const float* outer, const float* inner,
                                float* taps, float* workspace, Stream stream) {
  const int64_t frequencies = s.K0 * s.K1, all_taps = s.k0 * s.k1;
  const int64_t size = all_taps * (s.C / s.groups) * s.O;
  if (size == 0) return nullptr;
  if (frequencies == 0 || s.N == 0) return Zero(taps, size * sizeof(float), stream);
  FilterParams p{};
  p.x_re = xre, p.x_im = xim, p.y_re = yre, p.y_im = yim, p.outer = outer, p.inner = inner;
  p.K0 = static_cast<int>(s.K0), p.K1 = static_cast<int>(s.K1), p.N = static_cast<int>(s.N);
  p.k0 = static_cast<int>(s.k0), p.k1 = static_cast<int>(s.k1);
  p.groups = static_cast<int>(s.groups);
  p.input = static_cast<int>(s.C / s.groups), p.output = static_cast<int>(s.O / s.groups);
  p.splits = static_cast<int>(FilterSplits(frequencies, s.C, s.O, s.groups, all_taps));
  p.parts = p.splits == 1 ? taps : workspace;
  const char* error = spectra == Storage::kF32 ? LaunchPrecision<float>(p, precision, stream)
                                               : LaunchPrecision<Bf16>(p, precision, stream);
  if (error != nullptr || p.splits == 1) return error;
  const ReduceParams reduce{workspace, taps, size, p.splits};
  return Launch<ReduceBody>(reduce, CeilDiv<int64_t>(size, ReduceBody::kThreads),
                            ReduceBody::kThreads, 0, stream);
}

}  // namespace bandjax::cuda
