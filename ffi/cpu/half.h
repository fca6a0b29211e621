// The multiply-sum of spectra in bfloat16, by instructions that multiply pairs of such numbers and
// add to float32.
//
// The parts of a complex number are one pair. With (a, b) on the left a product is two sums of
// pairs: of (c, d) the real part of (a + ib)(c - id), and of (-d, c) its imaginary part; (c, -d)
// and (d, c) give those of (a + ib)(c + id). The sums are of float32; the factors, and so the
// filter's spectrum, are rounded to bfloat16 once.
//
// A Unit has the instructions. Its tile multiplies up to kTile rows of pairs, and reads and writes
// whole kRows of them, by a block of kBlock columns; the depth is a multiple of its kDepth. A
// Session is there while a thread is at work.
#ifndef BANDJAX_FFI_CPU_HALF_H_
#define BANDJAX_FFI_CPU_HALF_H_

#include <immintrin.h>

#include "filter.h"

namespace bandjax {
namespace BANDJAX_ISA {

typedef uint32_t Pair;  // the first number in the low half
constexpr int64_t kBlock = kLanes<float>;

BANDJAX_INLINE Word PairOf(const BFloat16* re, const BFloat16* im) {
  Half low, high;
  __builtin_memcpy(&low, re, sizeof low);
  __builtin_memcpy(&high, im, sizeof high);
  return __builtin_convertvector(low, Word) | __builtin_convertvector(high, Word) << 16;
}
BANDJAX_INLINE Word PairOf(Vec<float> re, Vec<float> im) {
  const auto rounded = [](Vec<float> v) {
    const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)v);
    return (Word)_mm512_cvtepu16_epi32(half);
  };
  return rounded(re) | rounded(im) << 16;
}
// The first `count` of them; the others are zero.
BANDJAX_INLINE Word PairUpTo(const BFloat16* re, const BFloat16* im, int64_t count) {
  if (__builtin_expect(count >= kBlock, 1)) return PairOf(re, im);
  if (count <= 0) return Word{};
  BFloat16 low[kBlock] = {}, high[kBlock] = {};
  for (int64_t i = 0; i < count; ++i) low[i] = re[i], high[i] = im[i];
  return PairOf(low, high);
}

BANDJAX_INLINE Word PairUpTo(const float* re, const float* im, int64_t count) {
  return PairOf(LoadUpTo<float>(re, count), LoadUpTo<float>(im, count));
}

// The two factors on the right of c + id, `imaginary` numbers apart.
template <bool kConjugate>
BANDJAX_INLINE void StorePairs(Pair* block, int64_t imaginary, Word pair) {
  const Word turned = pair << 16 | pair >> 16;
  const Word real = kConjugate ? pair : pair ^ 0x80000000u;
  const Word other = kConjugate ? turned ^ 0x8000u : turned;
  __builtin_memcpy(block, &real, sizeof real);
  __builtin_memcpy(block + imaginary, &other, sizeof other);
}

template <typename Unit>
struct HalfMultiplier : Filter<float> {
  using Base = Filter<float>;

  explicit HalfMultiplier(const MultiplyArgs& all) : Base{all} {}

  static int64_t Padded(int64_t pairs) { return CeilDiv(pairs, Unit::kDepth) * Unit::kDepth; }
  static int64_t PaddedRows(int64_t rows) { return CeilDiv(rows, Unit::kRows) * Unit::kRows; }
  // Rows are not a multiple of 4 KiB apart, which would map all to the same few lines of the cache.
  static int64_t Step(int64_t pairs) { return Padded(pairs) + kBlock; }

  // Rows of pairs; of what is added to fill a row the pairs are zero.
  static void PairRows(const BFloat16* re, const BFloat16* im, int64_t rows, int64_t length,
                       int64_t step, Pair* to, int64_t to_step) {
    const int64_t padded = Padded(length);
    for (int64_t m = 0; m < rows; ++m) {
      const BFloat16 *row_re = re + m * step, *row_im = im + m * step;
      for (int64_t k = 0; k < padded; k += kBlock) {
        const Word pair = PairUpTo(row_re + k, row_im + k, length - k);
        __builtin_memcpy(to + m * to_step + k, &pair, sizeof pair);
      }
    }
  }

  // The same transposed: `length` rows, of which each becomes a column.
  static void PairColumns(const BFloat16* re, const BFloat16* im, int64_t length, int64_t columns,
                          int64_t step, Pair* to, int64_t to_step) {
    const int64_t padded = Padded(length);
    for (int64_t v = 0; v < columns; v += kBlock) {
      for (int64_t k = 0; k < padded; k += kBlock) {
        Vec<float> square[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) {
          const int64_t from = (k + i) * step + v;
          square[i] =
              (Vec<float>)(k + i < length ? PairUpTo(re + from, im + from, columns - v) : Word{});
        }
        Transpose<float>(square);
        for (int64_t i = 0; i < kBlock; ++i)
          Store<float>((float*)to + (v + i) * to_step + k, square[i]);
      }
    }
  }

  // The panel of a row frequency, block by block of columns, each first the factors of the real
  // part. Rows that fill up the depth are zero already.
  template <bool kConjugate>
  void OuterPairs(int64_t u0, int64_t rows, const float* p, int64_t width, Pair* panel) const {
    const int64_t plane = rows * width, imaginary = Padded(rows) * kBlock;
    const float *re0 = outer_re + u0 * args.t0, *im0 = outer_im + u0 * args.t0;
    for (int64_t v = 0; v < width; v += kBlock, panel += 2 * imaginary) {
      for (int64_t r = 0; r < rows; ++r) {
        Vec<float> c = {}, d = {};
        const float* from = p + r * width + v;
        for (int64_t t0 = 0; t0 < args.t0; ++t0, from += 2 * plane) {
          const Vec<float> re = Load<float>(from);
          c += re0[t0] * re;
          d += im0[t0] * re;
          if (real) continue;
          const Vec<float> im = Load<float>(from + plane);
          c -= im0[t0] * im;
          d += re0[t0] * im;
        }
        StorePairs<kConjugate>(panel + r * kBlock, imaginary, PairOf(c, d));
      }
    }
  }

  // The same of a spectrum that is given, forward.
  void GivenPairs(int64_t u0, int64_t u1, int64_t row0, int64_t rows, int64_t column0,
                  int64_t columns, int64_t width, Pair* panel) const {
    const int64_t imaginary = Padded(rows) * kBlock, ahead = kAhead * args.out;
    for (int64_t v = 0; v < width; v += kBlock, panel += 2 * imaginary) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = ((u0 * args.k1 + u1) * in + row0 + r) * args.out + column0 + v;
        const auto pair = [&](const auto* re, const auto* im) {
          __builtin_prefetch(re + ahead);
          __builtin_prefetch(im + ahead);
          StorePairs<true>(panel + r * kBlock, imaginary, PairUpTo(re, im, columns - v));
        };
        if (args.w_type == Type::kBFloat16) {
          const BFloat16* re = static_cast<const BFloat16*>(args.taps) + at;
          pair(re, re + GivenPlane());
        } else {
          const float* re = static_cast<const float*>(args.taps) + at;
          pair(re, re + GivenPlane());
        }
      }
    }
  }
  // Transposed: rows are output channels, columns input channels.
  void GivenPairsTransposed(int64_t u0, int64_t u1, int64_t row0, int64_t rows, int64_t column0,
                            int64_t columns, int64_t width, Pair* panel) const {
    const int64_t imaginary = Padded(rows) * kBlock;
    for (int64_t v = 0; v < width; v += kBlock, panel += 2 * imaginary) {
      for (int64_t r = 0; r < rows; r += kBlock) {
        Vec<float> square[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) {
          square[i] = Vec<float>{};
          if (v + i >= columns) continue;
          const float *re = Given(u0, u1, column0 + v + i, row0 + r), *im = re + GivenPlane();
          square[i] = (Vec<float>)PairUpTo(re, im, rows - r);
        }
        Transpose<float>(square);
        for (int64_t i = 0; i < Min(kBlock, rows - r); ++i) {
          StorePairs<false>(panel + (r + i) * kBlock, imaginary, (Word)square[i]);
        }
      }
    }
  }

  // Columns of a panel: as many as leave the inner sums in the second-level cache.
  int64_t PanelColumns(int64_t depth) const {
    int64_t columns = kPanel;
    while (columns > kBlock && static_cast<int64_t>(2 * (args.t0 + 1) * depth * columns *
                                                    sizeof(float)) > kInnerBytes) {
      columns /= 2;
    }
    return columns;
  }
  static constexpr int64_t kInnerBytes = 640 << 10;

  // Y from X (kForward) or X from Y.
  template <bool kForward>
  void Spread(Pool* pool) const {
    const void *left_re = kForward ? args.x_re : args.y_re,
               *left_im = kForward ? args.x_im : args.y_im;
    void *right_re = kForward ? args.y_re : args.x_re, *right_im = kForward ? args.y_im : args.x_im;
    const BFloat16 *a = static_cast<const BFloat16*>(left_re),
                   *b = static_cast<const BFloat16*>(left_im);
    BFloat16 *re = static_cast<BFloat16*>(right_re), *im = static_cast<BFloat16*>(right_im);
    const int64_t depth = kForward ? in : out, columns_all = kForward ? out : in;
    const int64_t ld_left = kForward ? args.in : args.out, ld_out = kForward ? args.out : args.in;
    const int64_t most = PanelColumns(depth), panels = CeilDiv(columns_all, most);
    const FilterSplit split = SplitSpread(pool, args.groups * panels);
    ParallelFor(pool, args.groups * panels * split.parts(), [&](int64_t task) {
      const typename Unit::Session session;
      const Part part(args, split, task % split.parts());
      const int64_t panel_index = task / split.parts() % panels;
      const int64_t group = task / split.parts() / panels;
      const int64_t column0 = panel_index * most, columns = Min(most, columns_all - column0);
      const int64_t width = CeilDiv(columns, kBlock) * kBlock;
      // The rows of a transposed inner sum are made by whole vectors.
      const int64_t inner = 2 * args.t0 * CeilDiv(depth, kBlock) * kBlock * width;
      const int64_t block = 2 * Padded(depth) * kBlock, step = Step(depth);
      const int64_t tile = Unit::kTile * kBlock;
      Arena arena(pool, Arena::Bytes<float>(inner) + Arena::Bytes<Pair>(block * (width / kBlock)) +
                            Arena::Bytes<Pair>(PaddedRows(args.n) * step) +
                            Arena::Bytes<float>(2 * tile));
      float* p = arena.Take<float>(inner);
      Pair* panel = arena.Take<Pair>(block * (width / kBlock));
      Pair* left = arena.Take<Pair>(PaddedRows(args.n) * step);
      float* sums = arena.Take<float>(2 * tile);
      for (int64_t at = 0; at < block * (width / kBlock); at += kBlock) {
        Store<float>((float*)panel + at, Vec<float>{});
      }
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        if (args.spectral()) {
        } else if constexpr (kForward) {
          InnerForward(u1, 0, depth, group * out + column0, columns, p, width);
        } else {
          InnerTransposed(u1, group * out, depth, column0, columns, p, width);
        }
        const int64_t u0_end = Computed(u1, part.u0_last);
        for (int64_t u0 = part.u0_first; u0 < u0_end; ++u0) {
          if (!args.spectral()) {
            OuterPairs<kForward>(u0, depth, p, width, panel);
          } else if constexpr (kForward) {
            GivenPairs(u0, u1, 0, depth, group * out + column0, columns, width, panel);
          } else {
            GivenPairsTransposed(u0, u1, group * out, depth, column0, columns, width, panel);
          }
          const int64_t from = Frequency(u0, u1) * ld_left + group * depth;
          const int64_t to = Frequency(u0, u1) * ld_out + group * columns_all + column0;
          PairRows(a + from, b + from, args.n, depth, ld_left, left, step);
          for (int64_t v = 0; v < columns; v += kBlock) {
            for (int64_t m = 0; m < args.n; m += Unit::kTile) {
              const int64_t rows = Min(Unit::kTile, args.n - m);
              Unit::Tile(rows, Padded(depth), left + m * step, step, panel + v / kBlock * block,
                         sums, sums + tile, kBlock, false);
              for (int64_t i = 0; i < rows; ++i) {
                const int64_t at = to + (m + i) * ld_out + v;
                const float* sum = sums + i * kBlock;
                StoreUpTo<float>(re + at, Load<float>(sum), columns - v);
                StoreUpTo<float>(im + at, Load<float>(sum + tile), columns - v);
              }
            }
          }
          if (Twin(u0, u1) == u0) continue;
          const int64_t twin = to + (Frequency(Twin(u0, u1), u1) - Frequency(u0, u1)) * ld_out;
          CopyConjugate<float>(args.n, columns, ld_out, re + to, im + to, re + twin, im + twin);
        }
      }
    });
  }

  void FilterProduct(Pool* pool) const {
    constexpr int64_t kRowsMost = 64, kDepthMost = 512;
    const BFloat16* x_re = static_cast<const BFloat16*>(args.x_re);
    const BFloat16* x_im = static_cast<const BFloat16*>(args.x_im);
    const BFloat16* y_re = static_cast<const BFloat16*>(args.y_re);
    const BFloat16* y_im = static_cast<const BFloat16*>(args.y_im);
    const FilterSplit split = SplitFilter(args);
    const int64_t chunks = split.parts();
    const int64_t row_blocks = CeilDiv(in, kRowsMost), rows_block = CeilDiv(in, row_blocks);
    const int64_t panels = CeilDiv(out, kPanel);
    const int64_t n_block = CeilDiv(args.n, Max(CeilDiv(args.n, kDepthMost), 1));
    const int64_t taps = args.t0 * args.t1 * in * args.out;
    const bool parts = chunks > 1 && !args.spectral();
    ParallelFor(pool, args.groups * row_blocks * panels * chunks, [&](int64_t task) {
      const typename Unit::Session session;
      const int64_t chunk = task % chunks, panel_index = task / chunks % panels;
      const int64_t row_index = task / chunks / panels % row_blocks;
      const int64_t group = task / chunks / panels / row_blocks;
      const int64_t row0 = row_index * rows_block, rows = Min(rows_block, in - row0);
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, out - column0);
      const int64_t width = CeilDiv(columns, kBlock) * kBlock, plane = PaddedRows(rows) * width;
      const int64_t block = 2 * Padded(n_block) * kBlock, step = Step(n_block);
      const int64_t left_rows = Max(PaddedRows(rows), CeilDiv(rows, kBlock) * kBlock);
      float* result = static_cast<float*>(parts ? args.partial : args.taps) + chunk * taps;
      Arena arena(pool, Arena::Bytes<float>(2 * args.t0 * plane) + Arena::Bytes<float>(2 * plane) +
                            Arena::Bytes<Pair>(block * (width / kBlock)) +
                            Arena::Bytes<Pair>(left_rows * step));
      float* p = arena.Take<float>(2 * args.t0 * plane);
      float* d = arena.Take<float>(2 * plane);
      Pair* panel = arena.Take<Pair>(block * (width / kBlock));
      Pair* left = arena.Take<Pair>(left_rows * step);
      // An empty batch leaves the sums as they are.
      for (int64_t at = 0; at < 2 * plane; at += kLane) Store<float>(d + at, Vec<float>{});
      const Part part(args, split, chunk);
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        for (int64_t at = 0; at < 2 * args.t0 * plane; at += kLane)
          Store<float>(p + at, Vec<float>{});
        const int64_t u0_end = Computed(u1, part.u0_last);
        for (int64_t u0 = part.u0_first; u0 < u0_end; ++u0) {
          for (int64_t n = 0; n < args.n; n += n_block) {
            const int64_t depth = Min(n_block, args.n - n), imaginary = Padded(depth) * kBlock;
            const int64_t x = (Frequency(u0, u1) + n) * args.in + group * in + row0;
            const int64_t y = (Frequency(u0, u1) + n) * args.out + group * out + column0;
            for (int64_t v = 0; v < width; v += kBlock) {
              Pair* to = panel + v / kBlock * 2 * imaginary;
              for (int64_t k = 0; k < Padded(depth); ++k) {
                const int64_t from = y + k * args.out + v;
                StorePairs<true>(to + k * kBlock, imaginary,
                                 PairUpTo(y_re + from, y_im + from, k < depth ? columns - v : 0));
              }
            }
            PairColumns(x_re + x, x_im + x, depth, rows, args.in, left, step);
            for (int64_t v = 0; v < width; v += kBlock) {
              for (int64_t m = 0; m < rows; m += Unit::kTile) {
                Unit::Tile(Min(Unit::kTile, rows - m), Padded(depth), left + m * step, step,
                           panel + v / kBlock * 2 * imaginary, d + m * width + v,
                           d + plane + m * width + v, width, n > 0);
              }
            }
          }
          if (args.spectral()) {
            StoreGiven(u0, u1, row0, rows, group * out + column0, columns, width, plane, d);
          } else {
            SpreadOuter(u0, u1, plane, d, p);
          }
        }
        if (args.spectral()) continue;
        SpreadInner(u1, u1 > part.u1_first, rows, columns, width, plane, p,
                    result + row0 * args.out + group * out + column0);
      }
    });
    if (parts) SumChunks(pool, chunks, taps);
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_HALF_H_
