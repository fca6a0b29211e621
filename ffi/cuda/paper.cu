#include "launchers.h"
#include "paper.h"

namespace bandjax::cuda {
namespace {

template <class S, bool kPlanar>
const char* LaunchPaper(const PaperParams& p, Stream stream) {
  return Launch<PaperBody<S, kPlanar>>(
      p, p.N * p.O, static_cast<int>(Min<int64_t>(kPaperThreads, p.K)), 0, stream);
}

}  // namespace

const char* LaunchPaperMultiplySum(const ProductShape& s, Storage spectra, bool planar,
                                   const void* xre, const void* xim, const float* wre,
                                   const float* wim, float* yre, float* yim, Stream stream) {
  const PaperParams p{xre, xim, wre, wim, yre, yim, s.K0 * s.K1, s.N, s.C, s.O};
  if (p.K == 0 || p.N == 0 || p.O == 0) return nullptr;
  if (planar) {
    return spectra == Storage::kF32 ? LaunchPaper<float, true>(p, stream)
                                    : LaunchPaper<Bf16, true>(p, stream);
  }
  return spectra == Storage::kF32 ? LaunchPaper<float, false>(p, stream)
                                  : LaunchPaper<Bf16, false>(p, stream);
}

}  // namespace bandjax::cuda
