// Truncated analysis and synthesis of real two-dimensional samples.
//
// Seen from the middle of its axis a signal is an even part, which meets cosines alone, and an odd
// one, which meets sines alone: half the multiply-adds of a transform of real samples. The
// transform of one image and up to four vectors of channels stays in the cache of one core:
//
//   samples --fold--> even/odd rows and columns --table1--> z --table0--> cc, cs, sc, ss -->
//   spectrum
//
// and the other way round for the synthesis. z[p][i][q] holds, for the even (p = 0) or odd rows,
// row pair i against column frequency q: first the cosines, then the sines.
#ifndef BANDJAX_FFI_CPU_TRANSFORM_H_
#define BANDJAX_FFI_CPU_TRANSFORM_H_

#include "epilogue.h"

namespace bandjax {
namespace BANDJAX_ISA {

constexpr int64_t kCacheBytes = 512 << 10;  // of a core's second-level cache, for z

// c[m][v] = sum_k t[m * step_m + k * step_k] * b[k][v], rows of b and c `ldb` and `ldc` apart.
template <typename A, int kRows, int kVectors>
BANDJAX_INLINE void TableTile(int64_t depth, const A* t, int64_t step_m, int64_t step_k, const A* b,
                              int64_t ldb, A* c, int64_t ldc) {
  Vec<A> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = Load<A>(b + k * ldb + v * kLanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const A factor = t[m * step_m + k * step_k];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) Store<A>(c + m * ldc + v * kLanes<A>, sum[m][v]);
  }
}

template <typename A, int kVectors, int kRows = TileRows(kVectors)>
BANDJAX_INLINE void TableTiles(int64_t rows, int64_t depth, const A* t, int64_t step_m,
                               int64_t step_k, const A* b, int64_t ldb, A* c, int64_t ldc) {
  for (; rows >= kRows; rows -= kRows, t += kRows * step_m, c += kRows * ldc) {
    TableTile<A, kRows, kVectors>(depth, t, step_m, step_k, b, ldb, c, ldc);
  }
  if constexpr (kRows > 1) {
    TableTiles<A, kVectors, NextTileRows(kRows)>(rows, depth, t, step_m, step_k, b, ldb, c, ldc);
  }
}

template <typename A, int kVectors>
BANDJAX_NOINLINE void TableProduct(int64_t rows, int64_t depth, const A* t, int64_t step_m,
                                   int64_t step_k, const A* b, int64_t ldb, A* c, int64_t ldc) {
  TableTiles<A, kVectors>(rows, depth, t, step_m, step_k, b, ldb, c, ldc);
}

template <typename A, typename T, typename S, bool kAnalysis, int kVectors>
struct Transformer {
  static constexpr int64_t kWidth = kVectors * kLanes<A>;
  const TransformArgs& args;
  const int64_t half_h = CeilDiv(args.h, 2), half_w = CeilDiv(args.w, 2);
  const A* table0 = static_cast<const A*>(args.table0);
  const A* table1 = static_cast<const A*>(args.table1);
  static constexpr int64_t kBytes = kAnalysis ? sizeof(S) : sizeof(T);  // of a number that results
  const bool stream =
      Streams(kWidth * kBytes,
              args.n* args.c * kBytes * (kAnalysis ? 2 * args.k0 * args.k1 : args.h * args.w));

  const Finish<A, T> finish{args.epilogue, args.samples};

  // Column frequencies, or row pairs, that are worked on together.
  int64_t Block(int64_t all, int64_t bytes_each) const {
    return Max(1, Min(all, kCacheBytes / bytes_each));
  }

  // One image, channels c0 and on.
  void Analyse(Pool* pool, int64_t n, int64_t c0) const {
    const int64_t block = Block(args.u1 + 1, 4 * half_h * kWidth * sizeof(A));
    const int64_t columns = 2 * block;
    Arena arena(pool, Arena::Bytes<A>(2 * half_h * columns * kWidth) +
                          4 * Arena::Bytes<A>(half_w * kWidth) +
                          4 * Arena::Bytes<A>((args.u0 + 1) * kWidth));
    A* z = arena.Take<A>(2 * half_h * columns * kWidth);
    A *fold[4], *sums[4];
    for (A*& f : fold) f = arena.Take<A>(half_w * kWidth);
    for (A*& s : sums) s = arena.Take<A>((args.u0 + 1) * kWidth);
    A* z_odd = z + half_h * columns * kWidth;
    for (int64_t first = 0; first <= args.u1; first += block) {
      const int64_t count = Min(block, args.u1 + 1 - first);
      const int64_t first_sine = Max(first, 1);
      const int64_t sines = first + count - first_sine;
      const A* cosine = table1 + first * half_w;
      const A* sine = table1 + (args.u1 + first_sine) * half_w;
      const int64_t sine_column = (block + first_sine - first) * kWidth;
      for (int64_t i = 0; i < half_h; ++i) {
        const bool paired = i != args.h - 1 - i;
        Fold(n, c0, i, fold);
        A* row = z + i * columns * kWidth;
        TableProduct<A, kVectors>(count, half_w, cosine, half_w, 1, fold[0], kWidth, row, kWidth);
        TableProduct<A, kVectors>(sines, args.w / 2, sine, half_w, 1, fold[1], kWidth,
                                  row + sine_column, kWidth);
        if (!paired) continue;
        row = z_odd + i * columns * kWidth;
        TableProduct<A, kVectors>(count, half_w, cosine, half_w, 1, fold[2], kWidth, row, kWidth);
        TableProduct<A, kVectors>(sines, args.w / 2, sine, half_w, 1, fold[3], kWidth,
                                  row + sine_column, kWidth);
      }
      const A* sine0 = table0 + (args.u0 + 1) * half_h;
      const int64_t ldz = columns * kWidth, odd = args.h / 2;
      for (int64_t u = first; u < first + count; ++u) {
        const int64_t qc = (u - first) * kWidth, qs = (block + u - first) * kWidth;
        TableProduct<A, kVectors>(args.u0 + 1, half_h, table0, half_h, 1, z + qc, ldz, sums[0],
                                  kWidth);
        TableProduct<A, kVectors>(args.u0, odd, sine0, half_h, 1, z_odd + qc, ldz, sums[2], kWidth);
        if (u > 0) {
          TableProduct<A, kVectors>(args.u0 + 1, half_h, table0, half_h, 1, z + qs, ldz, sums[1],
                                    kWidth);
          TableProduct<A, kVectors>(args.u0, odd, sine0, half_h, 1, z_odd + qs, ldz, sums[3],
                                    kWidth);
        }
        StoreSpectrum(n, c0, u, sums);
      }
    }
  }

  void Synthesise(Pool* pool, int64_t n, int64_t c0) const {
    const int64_t columns = 2 * (args.u1 + 1), sine_column = (args.u1 + 1) * kWidth;
    const int64_t block = Block(half_h, 2 * columns * kWidth * sizeof(A));
    Arena arena(pool, Arena::Bytes<A>(2 * block * columns * kWidth) +
                          4 * Arena::Bytes<A>(half_w * kWidth) +
                          4 * Arena::Bytes<A>((args.u0 + 1) * kWidth));
    A* z = arena.Take<A>(2 * block * columns * kWidth);
    A *fold[4], *sums[4];
    for (A*& f : fold) f = arena.Take<A>(half_w * kWidth);
    for (A*& s : sums) s = arena.Take<A>((args.u0 + 1) * kWidth);
    A* z_odd = z + block * columns * kWidth;
    const A* sine0 = table0 + (args.u0 + 1) * half_h;
    const A* sine1 = table1 + (args.u1 + 1) * half_w;
    const int64_t ldz = columns * kWidth;
    for (int64_t first = 0; first < half_h; first += block) {
      const int64_t rows = Min(block, half_h - first);
      // The middle row of an odd height has no odd part.
      const int64_t odd_rows = Min(rows, args.h / 2 - first);
      for (int64_t u = 0; u <= args.u1; ++u) {
        LoadSpectrum(n, c0, u, sums);
        if (u < args.u1) FetchSpectrum(n, c0, u + 1);
        const int64_t qc = u * kWidth, qs = sine_column + u * kWidth;
        TableProduct<A, kVectors>(rows, args.u0 + 1, table0 + first, 1, half_h, sums[0], kWidth,
                                  z + qc, ldz);
        TableProduct<A, kVectors>(odd_rows, args.u0, sine0 + first, 1, half_h, sums[2], kWidth,
                                  z_odd + qc, ldz);
        if (u == 0) continue;
        TableProduct<A, kVectors>(rows, args.u0 + 1, table0 + first, 1, half_h, sums[1], kWidth,
                                  z + qs, ldz);
        TableProduct<A, kVectors>(odd_rows, args.u0, sine0 + first, 1, half_h, sums[3], kWidth,
                                  z_odd + qs, ldz);
      }
      for (int64_t i = 0; i < rows; ++i) {
        const A* even = z + i * ldz;
        const A* odd = z_odd + i * ldz;
        const A* sines = even + sine_column + kWidth;
        TableProduct<A, kVectors>(half_w, args.u1 + 1, table1, 1, half_w, even, kWidth, fold[0],
                                  kWidth);
        TableProduct<A, kVectors>(args.w / 2, args.u1, sine1, 1, half_w, sines, kWidth, fold[1],
                                  kWidth);
        if (first + i != args.h - 1 - first - i) {
          sines = odd + sine_column + kWidth;
          TableProduct<A, kVectors>(half_w, args.u1 + 1, table1, 1, half_w, odd, kWidth, fold[2],
                                    kWidth);
          TableProduct<A, kVectors>(args.w / 2, args.u1, sine1, 1, half_w, sines, kWidth, fold[3],
                                    kWidth);
        }
        Unfold(n, c0, first + i, fold);
      }
    }
  }

 private:
  // Where the samples of an example are, and which of them there are.
  struct Window {
    T* first;  // sample (0, 0), which need not be there
    int64_t row, h_from, h_to, w_from, w_to;
    bool whole;
    T* At(int64_t i, int64_t j, int64_t c, int64_t step) const {
      return first + i * row + j * step + c;
    }
    bool Has(int64_t i, int64_t j) const {
      return whole || (i >= h_from && i < h_to && j >= w_from && j < w_to);
    }
  };
  Window WindowOf(int64_t n) const {
    T* samples = static_cast<T*>(args.samples);
    const Tiling& tiling = args.tiling;
    if (tiling.rows == 0) {
      return {samples + n * args.h * args.w * args.c, args.w * args.c, 0, args.h, 0, args.w, true};
    }
    const int64_t tiles = tiling.rows * tiling.columns;
    const int64_t map = n / tiles, a = n % tiles / tiling.columns, b = n % tiling.columns;
    const int64_t top = tiling.first_h + a * tiling.step_h;
    const int64_t left = tiling.first_w + b * tiling.step_w;
    const int64_t row = tiling.map_w * args.c;
    const int64_t h_from = Max(0, -top), h_to = Min(args.h, tiling.map_h - top);
    const int64_t w_from = Max(0, -left), w_to = Min(args.w, tiling.map_w - left);
    const bool whole = h_from == 0 && w_from == 0 && h_to == args.h && w_to == args.w;
    return {samples + (map * tiling.map_h + top) * row + left * args.c,
            row,
            h_from,
            h_to,
            w_from,
            w_to,
            whole};
  }

  // Rows i and h-1-i into their even-even, even-odd, odd-even and odd-odd parts.
  void Fold(int64_t n, int64_t c0, int64_t i, A* const fold[4]) const {
    const int64_t mirror = args.h - 1 - i, valid = args.c - c0;
    const Window window = WindowOf(n);
    for (int64_t j = 0; j < half_w; ++j) {
      const int64_t other = args.w - 1 - j;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lane = v * kLanes<A>, at = j * kWidth + lane;
        const auto read = [&](int64_t row, int64_t column) {
          return window.Has(row, column)
                     ? LoadUpTo<A>(window.At(row, column, c0 + lane, args.c), valid - lane)
                     : Vec<A>{};
        };
        Vec<A> even = read(i, j), odd = {};
        if (i != mirror) {
          const Vec<A> below = read(mirror, j);
          odd = even - below;
          even = even + below;
        }
        if (j == other) {
          Store<A>(fold[0] + at, even);
          Store<A>(fold[2] + at, odd);
          continue;
        }
        Vec<A> even_right = read(i, other), odd_right = {};
        if (i != mirror) {
          const Vec<A> below = read(mirror, other);
          odd_right = even_right - below;
          even_right = even_right + below;
        }
        Store<A>(fold[0] + at, even + even_right);
        Store<A>(fold[1] + at, even - even_right);
        Store<A>(fold[2] + at, odd + odd_right);
        Store<A>(fold[3] + at, odd - odd_right);
      }
    }
  }

  void Unfold(int64_t n, int64_t c0, int64_t i, A* const fold[4]) const {
    const int64_t mirror = args.h - 1 - i, valid = args.c - c0;
    const Window window = WindowOf(n);
    for (int64_t j = 0; j < half_w; ++j) {
      const int64_t other = args.w - 1 - j;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lane = v * kLanes<A>, at = j * kWidth + lane;
        const auto write = [&](int64_t row, int64_t column, Vec<A> value) {
          if (!window.Has(row, column)) return;
          T* to = window.At(row, column, c0 + lane, args.c);
          value = finish(value, to, c0 + lane, valid - lane);
          StreamUpTo<A>(to, value, valid - lane, stream);
        };
        const Vec<A> zero = {};
        const Vec<A> ee = Load<A>(fold[0] + at);
        const Vec<A> eo = j == other ? zero : Load<A>(fold[1] + at);
        const Vec<A> oe = i == mirror ? zero : Load<A>(fold[2] + at);
        const Vec<A> oo = i == mirror || j == other ? zero : Load<A>(fold[3] + at);
        write(i, j, (ee + eo) + (oe + oo));
        if (j != other) write(i, other, (ee - eo) + (oe - oo));
        if (i == mirror) continue;
        write(mirror, j, (ee + eo) - (oe + oo));
        if (j != other) write(mirror, other, (ee - eo) - (oe - oo));
      }
    }
  }

  // Where coefficient (row, u) of a spectrum lies; row counts the kept frequencies of axis 0.
  int64_t At(int64_t row, int64_t u, int64_t n, int64_t c) const {
    return ((row * args.k1 + u) * args.n + n) * args.c + c;
  }

  void StoreSpectrum(int64_t n, int64_t c0, int64_t u, A* const sums[4]) const {
    S* re = static_cast<S*>(args.re);
    S* im = static_cast<S*>(args.im);
    for (int64_t u0 = 0; u0 <= args.u0; ++u0) {
      const int64_t plus = At(u0, u, n, c0), minus = At(args.k0 - u0, u, n, c0);
      const bool paired = u0 > 0 && args.k0 - u0 != u0;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lane = v * kLanes<A>, valid = args.c - c0 - lane;
        const Vec<A> zero = {};
        const Vec<A> cc = Load<A>(sums[0] + u0 * kWidth + lane);
        const Vec<A> cs = u > 0 ? Load<A>(sums[1] + u0 * kWidth + lane) : zero;
        const Vec<A> sc = u0 > 0 ? Load<A>(sums[2] + (u0 - 1) * kWidth + lane) : zero;
        const Vec<A> ss = u0 > 0 && u > 0 ? Load<A>(sums[3] + (u0 - 1) * kWidth + lane) : zero;
        StreamUpTo<A>(re + plus + lane, cc - ss, valid, stream);
        StreamUpTo<A>(im + plus + lane, -(cs + sc), valid, stream);
        if (!paired) continue;
        StreamUpTo<A>(re + minus + lane, cc + ss, valid, stream);
        StreamUpTo<A>(im + minus + lane, sc - cs, valid, stream);
      }
    }
  }

  // Into the cache, while the column before is at work: its rows are far apart.
  void FetchSpectrum(int64_t n, int64_t c0, int64_t u) const {
    const int64_t bytes = Min(kWidth, args.c - c0) * sizeof(S);
    for (int64_t row = 0; row < args.k0; ++row) {
      const char* re =
          reinterpret_cast<const char*>(static_cast<const S*>(args.re) + At(row, u, n, c0));
      const char* im =
          reinterpret_cast<const char*>(static_cast<const S*>(args.im) + At(row, u, n, c0));
      for (int64_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch(re + at);
        __builtin_prefetch(im + at);
      }
    }
  }

  void LoadSpectrum(int64_t n, int64_t c0, int64_t u, A* const sums[4]) const {
    const S* re = static_cast<const S*>(args.re);
    const S* im = static_cast<const S*>(args.im);
    for (int64_t u0 = 0; u0 <= args.u0; ++u0) {
      const int64_t plus = At(u0, u, n, c0), minus = At(args.k0 - u0, u, n, c0);
      const bool paired = u0 > 0 && args.k0 - u0 != u0;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lane = v * kLanes<A>, valid = args.c - c0 - lane;
        const Vec<A> zero = {};
        const Vec<A> re_plus = LoadUpTo<A>(re + plus + lane, valid);
        const Vec<A> im_plus = LoadUpTo<A>(im + plus + lane, valid);
        const Vec<A> re_minus = paired ? LoadUpTo<A>(re + minus + lane, valid) : zero;
        const Vec<A> im_minus = paired ? LoadUpTo<A>(im + minus + lane, valid) : zero;
        Store<A>(sums[0] + u0 * kWidth + lane, re_plus + re_minus);
        Store<A>(sums[1] + u0 * kWidth + lane, -(im_plus + im_minus));
        if (u0 == 0) continue;
        Store<A>(sums[2] + (u0 - 1) * kWidth + lane, im_minus - im_plus);
        Store<A>(sums[3] + (u0 - 1) * kWidth + lane, re_minus - re_plus);
      }
    }
  }
};

template <typename A, typename T, typename S, bool kAnalysis, int kVectors>
inline void TransformOne(const TransformArgs& args, Pool* pool, int64_t n, int64_t c0) {
  const Transformer<A, T, S, kAnalysis, kVectors> transformer{args};
  if constexpr (kAnalysis) {
    transformer.Analyse(pool, n, c0);
  } else {
    transformer.Synthesise(pool, n, c0);
  }
  EndStream(transformer.stream);
}

template <typename A, typename T, typename S, bool kAnalysis>
void TransformAll(const TransformArgs& args, Pool* pool) {
  constexpr int64_t kLane = kLanes<A>;
  int64_t vectors = args.c > 2 * kLane ? 4 : args.c > kLane ? 2 : 1;
  // A single example is worth the while of all threads too.
  while (vectors > 1 && args.n * CeilDiv(args.c, vectors * kLane) < pool->threads) vectors /= 2;
  const int64_t chunks = CeilDiv(args.c, vectors * kLane);
  ParallelFor(pool, args.n * chunks, [&](int64_t task) {
    const int64_t n = task / chunks, c0 = task % chunks * vectors * kLane;
    const int64_t left = Min(args.c - c0, vectors * kLane);
    if (left > 2 * kLane) {
      TransformOne<A, T, S, kAnalysis, 4>(args, pool, n, c0);
    } else if (left > kLane) {
      TransformOne<A, T, S, kAnalysis, 2>(args, pool, n, c0);
    } else {
      TransformOne<A, T, S, kAnalysis, 1>(args, pool, n, c0);
    }
  });
}

template <bool kAnalysis>
void TransformTyped(const TransformArgs& args, Pool* pool) {
  const bool half_samples = args.sample_type == Type::kBFloat16;
  const bool half_spectrum = args.spectrum_type == Type::kBFloat16;
  if (args.sample_type == Type::kFloat64) {
    TransformAll<double, double, double, kAnalysis>(args, pool);
  } else if (half_samples && half_spectrum) {
    TransformAll<float, BFloat16, BFloat16, kAnalysis>(args, pool);
  } else if (half_samples) {
    TransformAll<float, BFloat16, float, kAnalysis>(args, pool);
  } else if (half_spectrum) {
    TransformAll<float, float, BFloat16, kAnalysis>(args, pool);
  } else {
    TransformAll<float, float, float, kAnalysis>(args, pool);
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_TRANSFORM_H_
