// Compiled with the instructions of AVX-512 that multiply pairs of bfloat16.
#define BANDJAX_ISA avx512bf16
#define BANDJAX_BYTES 64
#define BANDJAX_REGISTERS 24
#define BANDJAX_TABLE kKernelsAvx512Bf16
#define BANDJAX_NAME "avx512bf16"
#define BANDJAX_ROWS 8
#include <immintrin.h>

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

struct Unit {
  static constexpr int64_t kTile = 12, kRows = 1, kDepth = 1;

  struct Session {
    Session() {}  // Not trivial: what is never read is no unused variable.
  };

  static BANDJAX_INLINE void Tile(int64_t rows, int64_t depth, const uint32_t* left, int64_t step,
                                  const uint32_t* block, float* re, float* im, int64_t ldo,
                                  bool add) {
    if (rows == kTile) return Rows<kTile>(depth, left, step, block, re, im, ldo, add);
    while (rows > 0) {
      const int64_t done = rows >= 4 ? 4 : 1;
      const auto tile = done == 4 ? &Rows<4> : &Rows<1>;
      tile(depth, left, step, block, re, im, ldo, add);
      rows -= done, left += done * step, re += done * ldo, im += done * ldo;
    }
  }

 private:
  template <int kCount>
  static BANDJAX_NOINLINE void Rows(int64_t depth, const uint32_t* left, int64_t step,
                                    const uint32_t* block, float* re, float* im, int64_t ldo,
                                    bool add) {
    const uint32_t* other = block + depth * kLanes<float>;
    __m512 sums_re[kCount], sums_im[kCount];
#pragma GCC unroll 12
    for (int m = 0; m < kCount; ++m) {
      sums_re[m] = add ? _mm512_loadu_ps(re + m * ldo) : _mm512_setzero_ps();
      sums_im[m] = add ? _mm512_loadu_ps(im + m * ldo) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < depth; ++k) {
      const auto real = (__m512bh)_mm512_loadu_si512(block + k * kLanes<float>);
      const auto imaginary = (__m512bh)_mm512_loadu_si512(other + k * kLanes<float>);
#pragma GCC unroll 12
      for (int m = 0; m < kCount; ++m) {
        const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(left[m * step + k]));
        sums_re[m] = _mm512_dpbf16_ps(sums_re[m], pair, real);
        sums_im[m] = _mm512_dpbf16_ps(sums_im[m], pair, imaginary);
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < kCount; ++m) {
      _mm512_storeu_ps(re + m * ldo, sums_re[m]);
      _mm512_storeu_ps(im + m * ldo, sums_im[m]);
    }
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#include "kernels_half.h"
