// The paper's own kernel (supplement, section 1.2), the baseline of the tiled one.
//
// "We use min(max threads in block, n^2) threads per block and the total number of GPU blocks is
// S f', where S is the mini-batch size, f' is the number of output channels [...]. Each block of
// threads is used to compute a single output plane. [...] each thread in a block of threads
// incrementally executes a complex multiplication and sums the result to an aggregate for all f
// input channels to obtain a single output cell (x, y)."
//
// n^2 is here the kept part of the plane, K0 * K1. The filter's spectrum is in memory, as in the
// paper. The paper's arrays have the plane last, (S, f, n, n), where neighbouring threads read
// neighbouring numbers; kPlanar keeps that layout, and without it the arrays are those
// of this library, in which neighbouring threads read far apart.

#ifndef BANDJAX_FFI_CUDA_PAPER_H_
#define BANDJAX_FFI_CUDA_PAPER_H_

#include "block.h"
#include "numbers.h"

namespace bandjax::cuda {

struct PaperParams {
  const void* x_re;  // S[K, N, C], or planar S[N, C, K]
  const void* x_im;
  const float* w_re;  // [K, C, O], or planar [O, C, K]
  const float* w_im;
  float* y_re;  // [K, N, O], or planar [N, O, K]
  float* y_im;
  int64_t K, N, C, O;
};

constexpr int kPaperThreads = 1024;

template <class S, bool kPlanar>
struct PaperBody {
  using Params = PaperParams;
  static constexpr int kThreads = kPaperThreads;
  static constexpr int kBlocksPerProcessor = 1;

  BANDJAX_DEVICE static void Run(const Params& p, Block& block) {
    const int64_t n = block.Index() / p.O, o = block.Index() % p.O;
    const S* x_re = static_cast<const S*>(p.x_re);
    const S* x_im = static_cast<const S*>(p.x_im);
    for (int64_t k = block.Thread(); k < p.K; k += block.Threads()) {
      const int64_t x = kPlanar ? n * p.C * p.K + k : (k * p.N + n) * p.C;
      const int64_t w = kPlanar ? o * p.C * p.K + k : k * p.C * p.O + o;
      const int64_t y = kPlanar ? (n * p.O + o) * p.K + k : (k * p.N + n) * p.O + o;
      const int64_t x_step = kPlanar ? p.K : 1, w_step = kPlanar ? p.K : p.O;
      float re = 0.0f, im = 0.0f;
      for (int64_t c = 0; c < p.C; ++c) {
        const float a = ToFloat(x_re[x + c * x_step]), b = ToFloat(x_im[x + c * x_step]);
        const float u = p.w_re[w + c * w_step], v = p.w_im[w + c * w_step];
        re += a * u + b * v;
        im += b * u - a * v;
      }
      p.y_re[y] = re;
      p.y_im[y] = im;
    }
  }
};

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_PAPER_H_
