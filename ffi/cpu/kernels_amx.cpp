// Compiled with AMX instructions: eight tiles of 16 rows of 64 bytes. A product of two tiles, of 16
// pairs a row, adds to a third of float32.
#define BANDJAX_ISA amx
#define BANDJAX_BYTES 64
#define BANDJAX_REGISTERS 24
#define BANDJAX_TABLE kKernelsAmx
#define BANDJAX_NAME "amx"
#define BANDJAX_ROWS 4
#include <immintrin.h>

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

struct Unit {
  static constexpr int64_t kTile = 32, kRows = 16, kDepth = 16;

  // The tiles of a thread, all of full size. Afterwards they hold nothing that the system must
  // save.
  struct Session {
    Session() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } config;
      _tile_loadconfig(&config);
    }
    ~Session() { _tile_release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  // Tiles 0 to 3 hold sums: of the first and the next 16 rows real and imaginary part.
  static BANDJAX_INLINE void Tile(int64_t rows, int64_t depth, const uint32_t* left, int64_t step,
                                  const uint32_t* block, float* re, float* im, int64_t ldo,
                                  bool add) {
    constexpr int64_t kWidth = 16;
    const int64_t step_bytes = step * sizeof *left, out_bytes = ldo * sizeof *re;
    const uint32_t* other = block + depth * kWidth;
    const bool two = rows > kWidth;
    // The compiler does not know what the instructions read.
    __asm__ volatile("" ::: "memory");
    if (add) {
      _tile_loadd(0, re, out_bytes);
      _tile_loadd(1, im, out_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    if (!two) {
      for (int64_t k = 0; k < depth; k += kDepth) {
        _tile_loadd(4, left + k, step_bytes);
        _tile_loadd(6, block + k * kWidth, kWidth * sizeof *block);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, other + k * kWidth, kWidth * sizeof *block);
        _tile_dpbf16ps(1, 4, 7);
      }
    } else {
      const uint32_t* below = left + kWidth * step;
      if (add) {
        _tile_loadd(2, re + kWidth * ldo, out_bytes);
        _tile_loadd(3, im + kWidth * ldo, out_bytes);
      } else {
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t k = 0; k < depth; k += kDepth) {
        _tile_loadd(4, left + k, step_bytes);
        _tile_loadd(6, block + k * kWidth, kWidth * sizeof *block);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, other + k * kWidth, kWidth * sizeof *block);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, below + k, step_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(2, re + kWidth * ldo, out_bytes);
      _tile_stored(3, im + kWidth * ldo, out_bytes);
    }
    _tile_stored(0, re, out_bytes);
    _tile_stored(1, im, out_bytes);
    __asm__ volatile("" ::: "memory");
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#include "kernels_half.h"
