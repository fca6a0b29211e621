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
  using Base::args, Base::kLane, Base::outer_re, Base::outer_im, Base::inner_re, Base::inner_im;

  static constexpr int kTileMost = BANDJAX_REGISTERS / 3;  // rows at once: 8 or 4
  static constexpr int64_t kRows = 12;  // a batch of few examples; in bandjax/_conv/cost.py too
  static constexpr int64_t kStage = 8;  // row frequencies worked on together

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
  // Of consecutive row frequencies the phases of all taps of the first axis; of one column
  // frequency those of the last of three taps.
  struct Phases {
    const A *re, *im;
    A cosine = 0, sine = 0;
  };
  // What there is of a filter: sums of the inner taps, the planes of Gather(), of three taps in the
  // first axis six; or the nine sums of NineSums().
  enum class Sums { kAny, kThree, kNine };

  explicit Narrow(const MultiplyArgs& all) : Base{all} {}

  // Of what is no depthwise convolution.
  bool pays() const { return args.n <= kRows && !args.spectral() && !this->real; }

  const int64_t planes = 2 * args.t0;
  const bool folded = Folded(outer_re, outer_im, args.k0, args.t0);
  const bool three = folded && args.t0 == 3;
  const bool nine = three && args.t1 == 3 && Folded(inner_re, inner_im, args.k1, 3);

  // Whether the taps of an axis lie symmetrically about 0.
  static bool Folded(const A* re, const A* im, int64_t kept, int64_t taps) {
    if (taps % 2 == 0 || taps < 3) return false;
    const A gap = 16 * (sizeof(A) == 4 ? A(FLT_EPSILON) : A(DBL_EPSILON));
    const auto equal = [&](A a, A b) { return a - b <= gap && b - a <= gap; };
    for (int64_t u = 0; u < kept; ++u, re += taps, im += taps) {
      for (int64_t t = 0; t <= taps / 2; ++t) {
        const int64_t other = taps - 1 - t;
        if (!equal(re[t], re[other]) || !equal(im[t], -im[other])) return false;
      }
      if (!equal(re[taps / 2], 1)) return false;
    }
    return true;
  }

  // The sums p[t0][re, im][row][column] of filter.h as q[vector][row][plane]: the planes of a
  // folded filter are the middle tap, then p + q and p - q of each pair from the outside in, and of
  // others each tap; always the real part first.
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

  // InnerForward() and Gather() in one, of three taps in each axis, both axes symmetric about 0:
  // the phases of two taps of the inner axis are conjugate too. Of the taps it takes nine sums,
  // which no frequency changes: of each plane of Gather() the middle one of the inner axis, the sum
  // of the other two and their difference.
  BANDJAX_INLINE void NineSums(const A* at, int64_t valid, bool fetch, Vec<A> (&sums)[9]) const {
    const int64_t tap = this->in * args.out;
#pragma GCC unroll 3
    for (int64_t t1 = 0; t1 < 3; ++t1) {
      Vec<A> taps[3];
#pragma GCC unroll 3
      for (int64_t t0 = 0; t0 < 3; ++t0) {
        const A* from = at + (3 * t0 + t1) * tap;
        if (fetch) __builtin_prefetch(from + Base::kAhead * args.out);
        taps[t0] = LoadUpTo<A>(from, valid);
      }
      sums[t1] = taps[1], sums[3 + t1] = taps[0] + taps[2], sums[6 + t1] = taps[0] - taps[2];
    }
#pragma GCC unroll 3
    for (int64_t plane = 0; plane < 9; plane += 3) {
      const Vec<A> first = sums[plane], last = sums[plane + 2];
      sums[plane] = sums[plane + 1], sums[plane + 1] = first + last, sums[plane + 2] = last - first;
    }
  }
  // The planes of Gather() at a column frequency.
  static BANDJAX_INLINE void PlanesOf(const Vec<A> (&sums)[9], A cosine, A sine, Vec<A> (&p)[6]) {
#pragma GCC unroll 3
    for (int64_t plane = 0; plane < 3; ++plane) {
      p[2 * plane] = sums[3 * plane] + cosine * sums[3 * plane + 1];
      p[2 * plane + 1] = Rounded<A>(sine * sums[3 * plane + 2]);
    }
  }

  template <bool kConjugate>
  void GatherNine(int64_t u1, int64_t row0, int64_t rows, int64_t column0, int64_t columns,
                  bool fetch, A* q, int64_t width) const {
    const A cosine = inner_re[3 * u1 + 2], sine = inner_im[3 * u1 + 2] * (kConjugate ? -1 : 1);
    for (int64_t r = 0; r < rows; ++r) {
      const A* from = this->Tap(0, 0, row0 + r, column0);
      for (int64_t v = 0; v < width; v += kLane) {
        Vec<A> sums[9];
        NineSums(from + v, columns - v, fetch, sums);
        Vec<A> p[6];
        PlanesOf(sums, cosine, sine, p);
        A* to = q + (v * rows + r * kLane) * 6;
#pragma GCC unroll 6
        for (int64_t i = 0; i < 6; ++i) Store<A>(to + i * kLane, p[i]);
      }
    }
  }

  // The sums alone, nine[vector][row][9], for several column frequencies.
  void SumNine(int64_t row0, int64_t rows, int64_t column0, int64_t columns, A* nine,
               int64_t width) const {
    for (int64_t r = 0; r < rows; ++r) {
      const A* from = this->Tap(0, 0, row0 + r, column0);
      for (int64_t v = 0; v < width; v += kLane) {
        Vec<A> sums[9];
        NineSums(from + v, columns - v, true, sums);
        A* to = nine + (v * rows + r * kLane) * 9;
#pragma GCC unroll 9
        for (int64_t i = 0; i < 9; ++i) Store<A>(to + i * kLane, sums[i]);
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
          for (int64_t at = 0; at < planes; ++at)
            Store<A>(to + at * plane, Load<A>(q + at * kLane));
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

  // W of one row of the sum at a row frequency; of three taps from their planes.
  template <bool kThree>
  BANDJAX_INLINE void Spectrum(const A* q, const Vec<A> (&p)[6], Phases phases, Vec<A>* w_re,
                               Vec<A>* w_im) const {
    const A *re = phases.re, *im = phases.im;
    const auto at = [&](int64_t plane) { return Load<A>(q + plane * kLane); };
    if constexpr (kThree) {
      *w_re = p[0] + *re * p[2] - *im * p[5];
      *w_im = p[1] + *re * p[3] + *im * p[4];
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

  // kTile rows of the product of one vector of columns at kCount row frequencies.
  template <Sums kSums, int kTile, int kCount, typename R>
  BANDJAX_INLINE void Tile(int64_t depth, Factor<A> left, const A* q, Phases phases, R* re, R* im,
                           int64_t ldo, int64_t next, int64_t valid, bool add) const {
    constexpr int kCells = kTile * kCount;
    constexpr bool kThree = kSums != Sums::kAny;
    // Too few sums to hide the time of a multiply-add. How many frequencies there are together
    // depends on how they were split between threads, and must not change a sum.
    constexpr bool kSplit = !kThree && kTile <= 2;
    Vec<A> sum_re[kCells] = {}, sum_im[kCells] = {}, more_re[kCells] = {}, more_im[kCells] = {};
    A cosine[kCount] = {}, sine[kCount] = {};
    const A* rows[kCells];
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) {
      if constexpr (kThree) cosine[u] = phases.re[u * args.t0], sine[u] = phases.im[u * args.t0];
#pragma GCC unroll 8
      for (int m = 0; m < kTile; ++m) rows[u * kTile + m] = left.re + u * left.next + m * left.step;
    }
    // One register tells where all imaginary parts are.
    const int64_t apart = Apart(left);
    constexpr int kPlanes = kSums == Sums::kNine ? 9 : 6;
    for (int64_t k = 0; k < depth; ++k, q += (kThree ? kPlanes : planes) * kLane) {
      Vec<A> p[6] = {};
      if constexpr (kSums == Sums::kNine) {
        Vec<A> sums[9];
#pragma GCC unroll 9
        for (int i = 0; i < 9; ++i) sums[i] = Load<A>(q + i * kLane);
        PlanesOf(sums, phases.cosine, phases.sine, p);
      } else if constexpr (kThree) {
#pragma GCC unroll 6
        for (int plane = 0; plane < 6; ++plane) p[plane] = Load<A>(q + plane * kLane);
      }
#pragma GCC unroll 8
      for (int u = 0; u < kCount; ++u) {
        Vec<A> w_re, w_im;
        const Phases at = kThree ? Phases{cosine + u, sine + u}
                                 : Phases{phases.re + u * args.t0, phases.im + u * args.t0};
        Spectrum<kThree>(q, p, at, &w_re, &w_im);
#pragma GCC unroll 8
        for (int m = 0; m < kTile; ++m) {
          const int s = u * kTile + m;
          const A x = rows[s][k], y = rows[s][k + apart];
          sum_re[s] += x * w_re;
          sum_im[s] += x * w_im;
          if constexpr (kSplit) {
            more_re[s] += y * w_im;
            more_im[s] += y * w_re;
          } else {
            sum_re[s] -= y * w_im;
            sum_im[s] += y * w_re;
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < kCells; ++s) {
      if constexpr (kSplit) sum_re[s] -= more_re[s], sum_im[s] += more_im[s];
      const int64_t to = s / kTile * next + s % kTile * ldo;
      R *to_re = re + to, *to_im = im + to;
      if (add) sum_re[s] += LoadUpTo<A>(to_re, valid), sum_im[s] += LoadUpTo<A>(to_im, valid);
      StoreUpTo<A>(to_re, sum_re[s], valid);
      StoreUpTo<A>(to_im, sum_im[s], valid);
    }
  }
  // Numbers from a real part to its imaginary one; the two may be of different buffers.
  static int64_t Apart(Factor<A> of) {
    return (reinterpret_cast<intptr_t>(of.im) - reinterpret_cast<intptr_t>(of.re)) /
           static_cast<intptr_t>(sizeof(A));
  }

  template <Sums kSums, int kTile, int kCount, typename R>
  BANDJAX_INLINE void TileRows(int64_t count, int64_t depth, Factor<A> left, const A* q,
                               Phases phases, R* re, R* im, int64_t ldo, int64_t next,
                               int64_t valid, bool add) const {
    for (; count >= kCount; count -= kCount) {
      Tile<kSums, kTile, kCount>(depth, left, q, phases, re, im, ldo, next, valid, add);
      left = left.At(kCount, 0), re += kCount * next, im += kCount * next;
      phases.re += kCount * args.t0, phases.im += kCount * args.t0;
    }
    if constexpr (kCount > 1) {
      TileRows<kSums, kTile, kCount / 2>(count, depth, left, q, phases, re, im, ldo, next, valid,
                                         add);
    }
  }
  template <Sums kSums, typename R, int kTile = kTileMost>
  BANDJAX_INLINE void Tiles(int64_t rows, int64_t count, int64_t depth, Factor<A> left, const A* q,
                            Phases phases, R* re, R* im, int64_t ldo, int64_t next, int64_t valid,
                            bool add) const {
    constexpr int kCount = kSums != Sums::kAny ? kTileMost / kTile : 1;
    for (; rows >= kTile; rows -= kTile) {
      TileRows<kSums, kTile, kCount>(count, depth, left, q, phases, re, im, ldo, next, valid, add);
      left = left.At(0, kTile), re += kTile * ldo, im += kTile * ldo;
    }
    if constexpr (kTile > 1) {
      Tiles<kSums, R, kTile / 2>(rows, count, depth, left, q, phases, re, im, ldo, next, valid,
                                 add);
    }
  }
  // All rows at `count` row frequencies, whose results are `next` apart.
  template <Sums kSums, typename R>
  BANDJAX_NOINLINE void Rows(int64_t rows, int64_t count, int64_t depth, const Factor<A>& left,
                             const A* q, const Phases& phases, R* re, R* im, int64_t ldo,
                             int64_t next, int64_t valid, bool add) const {
    Tiles<kSums>(rows, count, depth, left, q, phases, re, im, ldo, next, valid, add);
  }

  // ------------------------------------------------------------------------ the filter's gradient

  // Adds to q what kTile rows at kCount row frequencies give.
  template <bool kThree, int kTile, int kCount, typename T>
  BANDJAX_INLINE void GradientTile(int64_t depth, Factor<A> x, Factor<T> y, int64_t valid,
                                   const A* weights, Phases phases, A* q) const {
    Vec<A> y_re[kCount][kTile], y_im[kCount][kTile];
    A weight[kCount], cosine[kCount], sine[kCount];
    const A* rows[kCount][kTile];
    const int64_t apart = Apart(x);
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) {
      weight[u] = weights[u], cosine[u] = weight[u] * phases.re[u * args.t0];
      sine[u] = weight[u] * phases.im[u * args.t0];
#pragma GCC unroll 8
      for (int m = 0; m < kTile; ++m) {
        rows[u][m] = x.re + u * x.next + m * x.step;
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
#pragma GCC unroll 8
      for (int u = 0; u < kCount; ++u) {
        Vec<A> re = {}, im = {};
#pragma GCC unroll 8
        for (int m = 0; m < kTile; ++m) {
          const A x_re = rows[u][m][k], x_im = rows[u][m][k + apart];
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

  template <bool kThree, int kTile, int kCount, typename T>
  BANDJAX_INLINE void GradientTiles(int64_t count, int64_t depth, Factor<A> x, Factor<T> y,
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
  template <bool kThree, typename T, int kTile = kTileMost>
  BANDJAX_INLINE void GradientRows(int64_t rows, int64_t count, int64_t depth, Factor<A> x,
                                   Factor<T> y, int64_t valid, const A* weights, Phases phases,
                                   A* q) const {
    constexpr int kCount = kTileMost / kTile;
    for (; rows >= kTile; rows -= kTile) {
      GradientTiles<kThree, kTile, kCount>(count, depth, x, y, valid, weights, phases, q);
      x = x.At(0, kTile), y = y.At(0, kTile);
    }
    if constexpr (kTile > 1) {
      GradientRows<kThree, T, kTile / 2>(rows, count, depth, x, y, valid, weights, phases, q);
    }
  }
  // Of all rows at `count` row frequencies.
  template <bool kThree, typename T>
  BANDJAX_NOINLINE void Gradient(int64_t rows, int64_t count, int64_t depth, const Factor<A>& x,
                                 const Factor<T>& y, int64_t valid, const A* weights,
                                 const Phases& phases, A* q) const {
    GradientRows<kThree>(rows, count, depth, x, y, valid, weights, phases, q);
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_NARROW_H_
