#include "launchers.h"
#include "transform.h"

namespace bandjax::cuda {
namespace {

int NearTile(int64_t near) { return near >= 8 ? 8 : near >= 4 ? 4 : near >= 2 ? 2 : 1; }

// Cuts the two passes so that they fit the budget: whole lines if possible, since what is made of
// a chunk of lines must be made again for every round of far tiles.
void Plan(TransformParams& p, const TransformBudget& budget) {
  p.far_chunk = static_cast<int>(Min<int64_t>(p.far, budget.far));
  const int64_t far_bytes = int64_t{FarPadded(p)} * 2 * sizeof(float);
  constexpr int64_t kNearBytes = 4 * 32 * sizeof(float);
  int64_t near = (budget.middle / p.lines - far_bytes) / kNearBytes;
  near = Min<int64_t>(Max<int64_t>(near, 1), Min(p.near, 64));
  const int64_t others = CeilDiv<int64_t>(p.columns, 32) * CeilDiv(p.far, p.far_chunk);
  const int64_t wanted = Min<int64_t>(CeilDiv(budget.blocks, others), p.near);
  near = Min(near, CeilDiv<int64_t>(p.near, wanted));
  // Whole tiles, unless one chunk is all.
  if (near < p.near) near = near / NearTile(near) * NearTile(near);
  p.near_chunk = static_cast<int>(near);
  const int64_t lines = budget.middle / (kNearBytes * near + far_bytes);
  p.line_chunk = static_cast<int>(Min<int64_t>(Max<int64_t>(lines, 1), p.lines));
  const int64_t padded = CeilDiv<int64_t>(near, NearTile(near)) * NearTile(near);
  const int64_t steps = budget.table / (padded * 2 * static_cast<int64_t>(sizeof(float)));
  p.step_chunk = static_cast<int>(Min<int64_t>(Max<int64_t>(steps, 1), p.steps));
}

template <class Ends, int kNearTile, bool kAllLines>
const char* LaunchTile(const TransformParams& p, Stream stream) {
  const int64_t blocks =
      CeilDiv<int64_t>(p.columns, 32) * CeilDiv(p.near, p.near_chunk) * CeilDiv(p.far, p.far_chunk);
  const int first = p.line_chunk * CeilDiv(p.near_chunk, kNearTile);
  const int second = p.near_chunk * CeilDiv(p.far_chunk, kFarTile);
  const int warps = Min(Max(first, second), kTransformThreads / 32);
  return Launch<TransformBody<Ends, kNearTile, kAllLines>>(
      p, blocks, warps * 32, TransformFloats(p, kNearTile) * sizeof(float), stream);
}

template <class Ends>
const char* LaunchPlanned(TransformParams& p, const TransformBudget& budget, Stream stream) {
  Plan(p, budget);
  // Where not all lines fit, there was no room for more than one near index either.
  if (p.line_chunk < p.lines) return LaunchTile<Ends, 1, false>(p, stream);
  switch (NearTile(p.near_chunk)) {
    case 8:
      return LaunchTile<Ends, 8, true>(p, stream);
    case 4:
      return LaunchTile<Ends, 4, true>(p, stream);
    case 2:
      return LaunchTile<Ends, 2, true>(p, stream);
    default:
      return LaunchTile<Ends, 1, true>(p, stream);
  }
}

template <template <class, class> class Ends>
const char* LaunchTyped(TransformParams& p, Storage samples, Storage spectra,
                        const TransformBudget& budget, Stream stream) {
  if (samples == Storage::kF32) {
    return spectra == Storage::kF32 ? LaunchPlanned<Ends<float, float>>(p, budget, stream)
                                    : LaunchPlanned<Ends<float, Bf16>>(p, budget, stream);
  }
  return spectra == Storage::kF32 ? LaunchPlanned<Ends<Bf16, float>>(p, budget, stream)
                                  : LaunchPlanned<Ends<Bf16, Bf16>>(p, budget, stream);
}

size_t Bytes(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

TransformParams Parameters(const TransformShape& s, const void* x, const float* table0,
                           const float* table1, const void* re, const void* im) {
  TransformParams p{};
  p.x = x, p.table0 = table0, p.table1 = table1, p.re = re, p.im = im;
  p.columns = s.N * s.C;
  p.C = static_cast<int>(s.C), p.H = static_cast<int>(s.H), p.W = static_cast<int>(s.W);
  p.U0 = static_cast<int>(s.U0), p.U1 = static_cast<int>(s.U1);
  p.K0 = static_cast<int>(s.K0), p.K1 = static_cast<int>(s.K1);
  return p;
}

}  // namespace

const char* LaunchAnalysis(const TransformShape& s, Storage samples, Storage spectra, const void* x,
                           const float* table0, const float* table1, void* re, void* im,
                           Stream stream, const TransformBudget& budget) {
  if (s.H == 0 || s.W == 0 || s.N == 0 || s.C == 0) {
    const size_t bytes = s.K0 * s.K1 * s.N * s.C * Bytes(spectra);
    const char* error = Zero(re, bytes, stream);
    return error != nullptr ? error : Zero(im, bytes, stream);
  }
  TransformParams p = Parameters(s, x, table0, table1, re, im);
  p.near = p.K1, p.lines = CeilDiv(p.H, 2), p.steps = CeilDiv(p.W, 2), p.far = p.U0 + 1;
  return LaunchTyped<Analysis>(p, samples, spectra, budget, stream);
}

const char* LaunchSynthesis(const TransformShape& s, Storage samples, Storage spectra,
                            const void* re, const void* im, const float* table0,
                            const float* table1, void* y, Stream stream,
                            const TransformBudget& budget) {
  if (s.H == 0 || s.W == 0 || s.N == 0 || s.C == 0) return nullptr;
  TransformParams p = Parameters(s, y, table0, table1, re, im);
  p.near = CeilDiv(p.H, 2), p.lines = p.K1, p.steps = p.U0 + 1, p.far = CeilDiv(p.W, 2);
  return LaunchTyped<Synthesis>(p, samples, spectra, budget, stream);
}

}  // namespace bandjax::cuda
