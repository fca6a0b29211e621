// The multiply-sum of few examples: there the filter's spectrum costs more than the product.
//
// A panel in memory, as of multiply.h, pays where many rows meet it. Here a vector of W is made in
// registers, of sums that the first-level cache holds, and meets the few rows at once. Where the
// taps of the first axis lie symmetrically about 0 the phases of two are conjugate, and
//
//   e p + conj(e) q  =  cos (p + q) + i sin (p - q)
//
// takes a third of the multiply-adds.
#ifndef BANDJAX_FFI_CPU_NARROW_H_
#define BANDJAX_FFI_CPU_NARROW_H_

#include <cfloat>

#include "filter.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A>
struct Narrow : Filter<A> {
  using Base = Filter<A>;
  using Base::args, Base::kLane, Base::outer_re, Base::outer_im;

  static constexpr int kTileMost = BANDJAX_REGISTERS / 3;  // rows at once: 8 or 4
  static constexpr int64_t kRows = 12;                     // a batch that is few examples
  static constexpr int64_t kStage = 8;                     // row frequencies worked on together

  // Rows of a left or right factor, `step` apart, at row frequencies that are `next` apart.
  template <typename L>
  struct Factor {
    const L *re, *im;
    int64_t step, next;
    Factor At(int64_t frequencies, int64_t rows, int64_t k = 0) const {
      const int64_t offset = frequencies * next + rows * step + k;
      return {re + offset, im + offset, step, next};
    }
  };
  // Of consecutive row frequencies the phases of all taps of the first axis.
  struct Phases {
    const A *re, *im;
  };

  explicit Narrow(const MultiplyArgs& all) : Base{all} {}

  bool pays() const {
    return args.n <= kRows && !args.spectral() && !this->real && !(this->in == 1 && this->out == 1);
  }

  const int64_t planes = 2 * args.t0;
  const bool folded = Folded();
  const bool three = folded && args.t0 == 3;

  bool Folded() const {
    if (args.t0 % 2 == 0 || args.t0 < 3) return false;
    const A gap = 16 * (sizeof(A) == 4 ? A(FLT_EPSILON) : A(DBL_EPSILON));
    const auto equal = [&](A a, A b) { return a - b <= gap && b - a <= gap; };
    for (int64_t u = 0; u < args.k0; ++u) {
      const A *re = outer_re + u * args.t0, *im = outer_im + u * args.t0;
      for (int64_t t = 0; t <= args.t0 / 2; ++t) {
        const int64_t other = args.t0 - 1 - t;
        if (!equal(re[t], re[other]) || !equal(im[t], -im[other])) return false;
      }
      if (!equal(re[args.t0 / 2], 1)) return false;
    }
    return true;
  }

  // The sums p[t0][re, im][row][column] of filter.h as q[vector][row][plane]: the planes of a folded
  // filter are the middle tap, then p + q and p - q of each pair from the outside in, and of others
  // each tap; always the real part first.
  template <bool kConjugate>
  void Gather(int64_t rows, int64_t width, const A* p, A* q) const {
    const int64_t plane = rows * width;
    for (int64_t v = 0; v < width; v += kLane) {
      for (int64_t r = 0; r < rows; ++r, q += planes * kLane) {
        const A* from = p + r * width + v;
        const auto tap = [&](int64_t t, bool imaginary) {
          const Vec<A> value = Load<A>(from + (2 * t + imaginary) * plane);
          return kConjugate && imaginary ? -value : value;
        };
        if (!folded) {
          for (int64_t at = 0; at < planes; ++at) Store<A>(q + at * kLane, tap(at / 2, at % 2));
          continue;
        }
        for (int64_t im = 0; im < 2; ++im) Store<A>(q + im * kLane, tap(args.t0 / 2, im));
        A* to = q + 2 * kLane;
        for (int64_t t = 0; t < args.t0 / 2; ++t, to += 4 * kLane) {
          for (int64_t im = 0; im < 2; ++im) {
            const Vec<A> one = tap(t, im), other = tap(args.t0 - 1 - t, im);
            Store<A>(to + im * kLane, one + other);
            Store<A>(to + (2 + im) * kLane, one - other);
          }
        }
      }
    }
  }

  // The transpose of Gather, not conjugate.
  void Scatter(int64_t rows, int64_t width, const A* q, A* p) const {
    const int64_t plane = rows * width;
    for (int64_t v = 0; v < width; v += kLane) {
      for (int64_t r = 0; r < rows; ++r, q += planes * kLane) {
        A* to = p + r * width + v;
        if (!folded) {
          for (int64_t at = 0; at < planes; ++at) Store<A>(to + at * plane, Load<A>(q + at * kLane));
          continue;
        }
        for (int64_t im = 0; im < 2; ++im) {
          Store<A>(to + (args.t0 - 1 + im) * plane, Load<A>(q + im * kLane));
        }
        const A* from = q + 2 * kLane;
        for (int64_t t = 0; t < args.t0 / 2; ++t, from += 4 * kLane) {
          for (int64_t im = 0; im < 2; ++im) {
            const Vec<A> sum = Load<A>(from + im * kLane), gap = Load<A>(from + (2 + im) * kLane);
            Store<A>(to + (2 * t + im) * plane, sum + gap);
            Store<A>(to + (2 * (args.t0 - 1 - t) + im) * plane, sum - gap);
          }
        }
      }
    }
  }

  // W of one row of the sum at a row frequency.
  template <bool kThree>
  BANDJAX_INLINE void Spectrum(const A* q, const A* re, const A* im, Vec<A>* w_re,
                               Vec<A>* w_im) const {
    const auto at = [&](int64_t plane) { return Load<A>(q + plane * kLane); };
    if constexpr (kThree) {
      *w_re = at(0) + *re * at(2) - *im * at(5);
      *w_im = at(1) + *re * at(3) + *im * at(4);
    } else if (folded) {
      *w_re = at(0), *w_im = at(1);
      for (int64_t t = 0; t < args.t0 / 2; ++t) {
        *w_re += re[t] * at(4 * t + 2) - im[t] * at(4 * t + 5);
        *w_im += re[t] * at(4 * t + 3) + im[t] * at(4 * t + 4);
      }
    } else {
      *w_re = *w_im = Vec<A>{};
      for (int64_t t = 0; t < args.t0; ++t) {
        *w_re += re[t] * at(2 * t) - im[t] * at(2 * t + 1);
        *w_im += re[t] * at(2 * t + 1) + im[t] * at(2 * t);
      }
    }
  }

  // kTile rows of the product of one vector of columns at one row frequency.
  template <bool kThree, int kTile>
  BANDJAX_INLINE void Tile(int64_t depth, Factor<A> left, const A* q, Phases phases, A* re, A* im,
                           int64_t ldo, int64_t valid, bool add) const {
    constexpr bool kSplit = kTile <= 2;  // too few sums to hide the time of a multiply-add
    Vec<A> sum_re[kTile] = {}, sum_im[kTile] = {}, more_re[kTile] = {}, more_im[kTile] = {};
    A cosine = 0, sine = 0;
    if constexpr (kThree) cosine = *phases.re, sine = *phases.im;
    for (int64_t k = 0; k < depth; ++k, q += (kThree ? 6 : planes) * kLane) {
      Vec<A> w_re, w_im;
      Spectrum<kThree>(q, kThree ? &cosine : phases.re, kThree ? &sine : phases.im, &w_re, &w_im);
#pragma GCC unroll 8
      for (int m = 0; m < kTile; ++m) {
        const A x = left.re[m * left.step + k], y = left.im[m * left.step + k];
        sum_re[m] += x * w_re;
        sum_im[m] += x * w_im;
        if constexpr (kSplit) {
          more_re[m] += y * w_im;
          more_im[m] += y * w_re;
        } else {
          sum_re[m] -= y * w_im;
          sum_im[m] += y * w_re;
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kTile; ++m) {
      if constexpr (kSplit) sum_re[m] -= more_re[m], sum_im[m] += more_im[m];
      A *to_re = re + m * ldo, *to_im = im + m * ldo;
      if (add) sum_re[m] += LoadUpTo<A>(to_re, valid), sum_im[m] += LoadUpTo<A>(to_im, valid);
      StoreUpTo<A>(to_re, sum_re[m], valid);
      StoreUpTo<A>(to_im, sum_im[m], valid);
    }
  }

  template <bool kThree, int kTile = kTileMost>
  BANDJAX_INLINE void Tiles(int64_t rows, int64_t depth, Factor<A> left, const A* q, Phases phases,
                            A* re, A* im, int64_t ldo, int64_t valid, bool add) const {
    for (; rows >= kTile; rows -= kTile) {
      Tile<kThree, kTile>(depth, left, q, phases, re, im, ldo, valid, add);
      left = left.At(0, kTile), re += kTile * ldo, im += kTile * ldo;
    }
    if constexpr (kTile > 1) {
      Tiles<kThree, kTile / 2>(rows, depth, left, q, phases, re, im, ldo, valid, add);
    }
  }
  // All rows at `count` row frequencies, whose results are `next` apart.
  template <bool kThree>
  BANDJAX_NOINLINE void Rows(int64_t rows, int64_t count, int64_t depth, Factor<A> left,
                             const A* q, Phases phases, A* re, A* im, int64_t ldo, int64_t next,
                             int64_t valid, bool add) const {
    for (int64_t u = 0; u < count; ++u) {
      Tiles<kThree>(rows, depth, left.At(u, 0), q,
                    {phases.re + u * args.t0, phases.im + u * args.t0}, re + u * next,
                    im + u * next, ldo, valid, add);
    }
  }

  // ------------------------------------------------------------------------ the filter's gradient

  // Adds to q what kTile rows at kCount row frequencies give.
  template <bool kThree, int kTile, int kCount>
  BANDJAX_INLINE void GradientTile(int64_t depth, Factor<A> x, Factor<A> y, int64_t valid,
                                   const A* weights, Phases phases, A* q) const {
    Vec<A> y_re[kCount][kTile], y_im[kCount][kTile];
    A weight[kCount], cosine[kCount], sine[kCount];
#pragma GCC unroll 4
    for (int u = 0; u < kCount; ++u) {
      weight[u] = weights[u], cosine[u] = weight[u] * phases.re[u * args.t0];
      sine[u] = weight[u] * phases.im[u * args.t0];
#pragma GCC unroll 8
      for (int m = 0; m < kTile; ++m) {
        y_re[u][m] = LoadUpTo<A>(y.re + u * y.next + m * y.step, valid);
        y_im[u][m] = LoadUpTo<A>(y.im + u * y.next + m * y.step, valid);
      }
    }
    for (int64_t k = 0; k < depth; ++k, q += (kThree ? 6 : planes) * kLane) {
      Vec<A> p[6];
      if constexpr (kThree) {
#pragma GCC unroll 6
        for (int plane = 0; plane < 6; ++plane) p[plane] = Load<A>(q + plane * kLane);
      }
#pragma GCC unroll 4
      for (int u = 0; u < kCount; ++u) {
        Vec<A> re = {}, im = {};
#pragma GCC unroll 8
        for (int m = 0; m < kTile; ++m) {
          const A x_re = x.re[u * x.next + m * x.step + k];
          const A x_im = x.im[u * x.next + m * x.step + k];
          re += x_re * y_re[u][m];
          re += x_im * y_im[u][m];
          im += x_im * y_re[u][m];
          im -= x_re * y_im[u][m];
        }
        if constexpr (kThree) {
          p[0] += weight[u] * re, p[1] += weight[u] * im;
          p[2] += cosine[u] * re, p[3] += cosine[u] * im;
          p[4] += sine[u] * im, p[5] -= sine[u] * re;
        } else {
          Spread(weight[u], {phases.re + u * args.t0, phases.im + u * args.t0}, re, im, q);
        }
      }
      if constexpr (kThree) {
#pragma GCC unroll 6
        for (int plane = 0; plane < 6; ++plane) Store<A>(q + plane * kLane, p[plane]);
      }
    }
  }
  void Spread(A weight, Phases phases, Vec<A> re, Vec<A> im, A* q) const {
    const auto add = [&](int64_t plane, Vec<A> value) {
      Store<A>(q + plane * kLane, Load<A>(q + plane * kLane) + value);
    };
    if (folded) add(0, weight * re), add(1, weight * im);
    for (int64_t t = 0; t < (folded ? args.t0 / 2 : args.t0); ++t) {
      const A cosine = weight * phases.re[t], sine = weight * phases.im[t];
      if (folded) {
        add(4 * t + 2, cosine * re), add(4 * t + 3, cosine * im);
        add(4 * t + 4, sine * im), add(4 * t + 5, -sine * re);
      } else {
        add(2 * t, cosine * re + sine * im), add(2 * t + 1, cosine * im - sine * re);
      }
    }
  }

  template <bool kThree, int kTile, int kCount>
  BANDJAX_INLINE void GradientTiles(int64_t count, int64_t depth, Factor<A> x, Factor<A> y,
                                    int64_t valid, const A* weights, Phases phases, A* q) const {
    for (; count >= kCount; count -= kCount) {
      GradientTile<kThree, kTile, kCount>(depth, x, y, valid, weights, phases, q);
      x = x.At(kCount, 0), y = y.At(kCount, 0), weights += kCount;
      phases.re += kCount * args.t0, phases.im += kCount * args.t0;
    }
    if constexpr (kCount > 1) {
      GradientTiles<kThree, kTile, 1>(count, depth, x, y, valid, weights, phases, q);
    }
  }
  template <bool kThree, int kTile = kTileMost>
  BANDJAX_INLINE void GradientRows(int64_t rows, int64_t count, int64_t depth, Factor<A> x,
                                   Factor<A> y, int64_t valid, const A* weights, Phases phases,
                                   A* q) const {
    constexpr int kCount = kTile >= kTileMost / 2 ? 1 : kTileMost / 2 / kTile;
    for (; rows >= kTile; rows -= kTile) {
      GradientTiles<kThree, kTile, kCount>(count, depth, x, y, valid, weights, phases, q);
      x = x.At(0, kTile), y = y.At(0, kTile);
    }
    if constexpr (kTile > 1) {
      GradientRows<kThree, kTile / 2>(rows, count, depth, x, y, valid, weights, phases, q);
    }
  }
  // Of all rows at `count` row frequencies.
  template <bool kThree>
  BANDJAX_NOINLINE void Gradient(int64_t rows, int64_t count, int64_t depth, Factor<A> x,
                                 Factor<A> y, int64_t valid, const A* weights, Phases phases,
                                 A* q) const {
    GradientRows<kThree>(rows, count, depth, x, y, valid, weights, phases, q);
  }
};

// The three contractions.
template <typename A, typename S>
struct NarrowMultiplier : Narrow<A> {
  using Base = Narrow<A>;
  template <typename L>
  using Factor = typename Base::template Factor<L>;
  using Base::args, Base::in, Base::out, Base::kLane, Base::kPanel, Base::kBlockBytes, Base::kDepth;
  using Base::Computed, Base::Twin, Base::Frequency, Base::planes, Base::three, Base::kStage;
  using Base::outer_re, Base::outer_im;

  explicit NarrowMultiplier(const MultiplyArgs& all) : Base(all) {}

  // A factor as the sums take it, from frequency `u0` on: of a storage type it is copied.
  template <typename L>
  static Factor<A> Staged(Factor<L> from, int64_t count, int64_t rows, int64_t length, A* stage) {
    if constexpr (sizeof(L) == sizeof(A)) {
      return from;
    } else {
      const int64_t step = CeilDiv(length, kLane) * kLane, next = rows * step;
      A* stage_im = stage + count * next;
      for (int64_t u = 0; u < count; ++u) {
        for (int64_t m = 0; m < rows; ++m) {
          const Factor<L> row = from.At(u, m);
          for (int64_t k = 0; k < length; k += kLane) {
            const int64_t to = u * next + m * step + k;
            Store<A>(stage + to, LoadUpTo<A>(row.re + k, length - k));
            Store<A>(stage_im + to, LoadUpTo<A>(row.im + k, length - k));
          }
        }
      }
      return {stage, stage_im, step, next};
    }
  }
  template <typename L>
  int64_t StageNumbers(int64_t length) const {
    return sizeof(L) == sizeof(A) ? 0 : 2 * kStage * args.n * CeilDiv(length, kLane) * kLane;
  }

  // Into the cache: rows of the next frequencies, far apart in memory.
  template <int kWrite, typename L>
  void Fetch(const Factor<L>& from, int64_t count, int64_t length) const {
    for (int64_t u = 0; u < count; ++u) {
      for (int64_t m = 0; m < args.n; ++m) {
        const Factor<L> row = from.At(u, m);
        for (int64_t k = 0; k < length; k += 64 / sizeof(L)) {
          __builtin_prefetch(row.re + k, kWrite, 2);
          __builtin_prefetch(row.im + k, kWrite, 2);
        }
      }
    }
  }

  // Y from X (kForward) or X from Y.
  template <bool kForward, typename L>
  void Spread(Pool* pool, const L* a, const L* b, A* re, A* im) const {
    const int64_t depth_all = kForward ? in : out, columns_all = kForward ? out : in;
    const int64_t ld_left = kForward ? args.in : args.out;
    const int64_t ld_out = kForward ? args.out : args.in;
    const int64_t panels = CeilDiv(columns_all, kPanel);
    const int64_t depth_fits = kBlockBytes / (planes * kPanel * sizeof(A));
    const int64_t depth_most = Min(Min(kDepth, depth_all), Max(depth_fits, kLane));
    const int64_t blocks = CeilDiv(depth_all, depth_most), depth_block = CeilDiv(depth_all, blocks);
    const FilterSplit split = this->SplitSpread(pool, args.groups * panels);
    ParallelFor(pool, args.groups * panels * split.parts(), [&](int64_t task) {
      const Part part(args, split, task % split.parts());
      const int64_t panel_index = task / split.parts() % panels;
      const int64_t group = task / split.parts() / panels;
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, columns_all - column0);
      const int64_t width = CeilDiv(columns, kLane) * kLane;
      const int64_t numbers = planes * depth_block * width, stage_numbers = StageNumbers<L>(depth_block);
      Arena arena(pool, 2 * Arena::Bytes<A>(numbers) + Arena::Bytes<A>(stage_numbers) +
                            Arena::Bytes<A>(kStage * args.t0));
      A* p = arena.Take<A>(numbers);
      A* q = arena.Take<A>(numbers);
      A* stage = arena.Take<A>(stage_numbers);
      A* sines = arena.Take<A>(kStage * args.t0);
      for (int64_t k = 0; k < depth_all; k += depth_block) {
        const int64_t depth = Min(depth_block, depth_all - k);
        for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
          if constexpr (kForward) {
            this->InnerForward(u1, k, depth, group * out + column0, columns, p, width);
          } else {
            this->InnerTransposed(u1, group * out + k, depth, column0, columns, p, width);
          }
          this->template Gather<kForward>(depth, width, p, q);
          const int64_t u0_end = Computed(u1, part.u0_last), next = args.k1 * args.n;
          for (int64_t u0 = part.u0_first; u0 < u0_end; u0 += kStage) {
            const int64_t count = Min(kStage, u0_end - u0);
            const int64_t from = Frequency(u0, u1) * ld_left + group * depth_all + k;
            const int64_t to = Frequency(u0, u1) * ld_out + group * columns_all + column0;
            const Factor<L> left = {a + from, b + from, ld_left, next * ld_left};
            const int64_t rest = Min(kStage, u0_end - u0 - count);
            Fetch<0>(left.At(count, 0), rest, depth);
            const Factor<A> ahead = {re + to, im + to, ld_out, next * ld_out};
            Fetch<1>(ahead.At(count, 0), rest, columns);
            const Factor<A> staged = Staged(left, count, args.n, depth, stage);
            const A* phases = outer_im + u0 * args.t0;
            for (int64_t i = 0; i < count * args.t0; ++i) {
              sines[i] = kForward ? -phases[i] : phases[i];
            }
            for (int64_t v = 0; v < columns; v += kLane) {
              const auto rows = three ? &NarrowMultiplier::template Rows<true>
                                      : &NarrowMultiplier::template Rows<false>;
              (this->*rows)(args.n, count, depth, staged, q + v * planes * depth,
                            {outer_re + u0 * args.t0, sines}, re + to + v, im + to + v, ld_out,
                            next * ld_out, columns - v, k > 0);
            }
            if (k + depth < depth_all) continue;
            for (int64_t u = u0; u < u0 + count; ++u) {
              const int64_t twin = Twin(u, u1);
              if (twin == u) continue;
              CopyConjugate<A>(args.n, columns, ld_out, re + to + (u - u0) * next * ld_out,
                               im + to + (u - u0) * next * ld_out,
                               re + to + (twin - u0) * next * ld_out,
                               im + to + (twin - u0) * next * ld_out);
            }
          }
        }
      }
    });
  }

  void FilterProduct(Pool* pool) const {
    constexpr int64_t kDepthMost = 64;
    const S* x_re = static_cast<const S*>(args.x_re);
    const S* x_im = static_cast<const S*>(args.x_im);
    const A* y_re = static_cast<const A*>(args.y_re);
    const A* y_im = static_cast<const A*>(args.y_im);
    const FilterSplit split = SplitFilter(args);
    const int64_t chunks = split.parts(), panels = CeilDiv(out, kPanel);
    const int64_t blocks = CeilDiv(in, kDepthMost), depth_block = CeilDiv(in, blocks);
    const int64_t taps = args.t0 * args.t1 * in * args.out;
    const bool parts = chunks > 1;
    ParallelFor(pool, args.groups * blocks * panels * chunks, [&](int64_t task) {
      const int64_t chunk = task % chunks, panel_index = task / chunks % panels;
      const int64_t block = task / chunks / panels % blocks;
      const int64_t group = task / chunks / panels / blocks;
      const int64_t k = block * depth_block, depth = Min(depth_block, in - k);
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, out - column0);
      const int64_t width = CeilDiv(columns, kLane) * kLane, numbers = planes * depth * width;
      A* result = static_cast<A*>(parts ? args.partial : args.taps) + chunk * taps;
      Arena arena(pool, 2 * Arena::Bytes<A>(numbers) + Arena::Bytes<A>(StageNumbers<S>(depth)));
      A* p = arena.Take<A>(numbers);
      A* q = arena.Take<A>(numbers);
      A* stage = arena.Take<A>(StageNumbers<S>(depth));
      const Part part(args, split, chunk);
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        for (int64_t at = 0; at < numbers; at += kLane) Store<A>(q + at, Vec<A>{});
        const int64_t u0_end = Computed(u1, part.u0_last), next = args.k1 * args.n;
        for (int64_t u0 = part.u0_first; u0 < u0_end; u0 += kStage) {
          const int64_t count = Min(kStage, u0_end - u0), rest = Min(kStage, u0_end - u0 - count);
          const int64_t at_x = Frequency(u0, u1) * args.in + group * in + k;
          const int64_t at_y = Frequency(u0, u1) * args.out + group * out + column0;
          const Factor<S> x = {x_re + at_x, x_im + at_x, args.in, next * args.in};
          const Factor<A> y = {y_re + at_y, y_im + at_y, args.out, next * args.out};
          Fetch<0>(x.At(count, 0), rest, depth);
          Fetch<0>(y.At(count, 0), rest, columns);
          const Factor<A> staged = Staged(x, count, args.n, depth, stage);
          A weights[kStage];
          for (int64_t u = 0; u < count; ++u) weights[u] = Twin(u0 + u, u1) == u0 + u ? 1 : 2;
          for (int64_t v = 0; v < columns; v += kLane) {
            const auto gradient = three ? &NarrowMultiplier::template Gradient<true>
                                        : &NarrowMultiplier::template Gradient<false>;
            (this->*gradient)(args.n, count, depth, staged, y.At(0, 0, v), columns - v, weights,
                              {outer_re + u0 * args.t0, outer_im + u0 * args.t0},
                              q + v * planes * depth);
          }
        }
        this->Scatter(depth, width, q, p);
        this->SpreadInner(u1, u1 > part.u1_first, depth, columns, width, p,
                          result + k * args.out + group * out + column0);
      }
    });
    if (parts) this->SumChunks(pool, chunks, taps);
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_NARROW_H_
