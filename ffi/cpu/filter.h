// The filter's spectrum W, made of the taps block by block or read where it is given, and the
// transpose of both: see multiply.h.
#ifndef BANDJAX_FFI_CPU_FILTER_H_
#define BANDJAX_FFI_CPU_FILTER_H_

#include "product.h"

namespace bandjax {
namespace BANDJAX_ISA {

// The frequencies of one part of a split.
struct Part {
  int64_t u0_first, u0_last, u1_first, u1_last;
  Part(const MultiplyArgs& args, const FilterSplit& split, int64_t part) {
    const int64_t part0 = part % split.parts0, part1 = part / split.parts0;
    u0_first = args.k0 * part0 / split.parts0, u0_last = args.k0 * (part0 + 1) / split.parts0;
    u1_first = args.k1 * part1 / split.parts1, u1_last = args.k1 * (part1 + 1) / split.parts1;
  }
};

// Conjugates, `rows` rows of so many columns, `step` apart.
template <typename A, typename S>
inline void CopyConjugate(int64_t rows, int64_t columns, int64_t step, const S* re, const S* im,
                          S* twin_re, S* twin_im) {
  for (int64_t at = 0; at < rows * step; at += step) {
    for (int64_t v = 0; v < columns; v += kLanes<A>) {
      const int64_t valid = columns - v;
      StoreUpTo<A>(twin_re + at + v, LoadUpTo<A>(re + at + v, valid), valid);
      StoreUpTo<A>(twin_im + at + v, -LoadUpTo<A>(im + at + v, valid), valid);
    }
  }
}

template <typename A>
struct Filter {
  static constexpr int64_t kLane = kLanes<A>;
  static constexpr int64_t kPanel = kPanelVectors * kLane;
  static constexpr int64_t kDepth = 256;  // of a block along the sum
  static constexpr int64_t kBlockBytes = 256 << 10;
  static constexpr int64_t kAhead = 8;  // rows of taps to fetch ahead

  const MultiplyArgs& args;
  const int64_t in = args.in / args.groups, out = args.out / args.groups;
  const A* outer_re = static_cast<const A*>(args.outer);
  const A* outer_im = outer_re + args.k0 * args.t0;
  const A* inner_re = static_cast<const A*>(args.inner);
  const A* inner_im = inner_re + args.k1 * args.t1;
  // One spatial axis: the taps themselves stand in the place of their inner sums.
  const bool real = args.k1 == 1 && args.t1 == 1 && *inner_im == 0;

  int64_t Frequency(int64_t u0, int64_t u1) const { return (u0 * args.k1 + u1) * args.n; }

  // Enough parts of the frequencies for all threads, where there are `others` tasks for each, at
  // the price of reading the taps once more for each part.
  FilterSplit SplitSpread(const Pool* pool, int64_t others, int64_t each = 4) const {
    const int64_t wanted = CeilDiv(each * pool->threads, others);
    const int64_t parts1 = Min(args.k1, wanted);
    return {parts1, Min(args.k0, CeilDiv(wanted, Max(parts1, 1)))};
  }

  // The row frequencies of a column that are computed begin with the first one of `u0_last`, and
  // end here: the others are conjugates of those.
  int64_t Computed(int64_t u1, int64_t u0_last) const {
    return args.hermitian && u1 == 0 ? Min(u0_last, args.k0 / 2 + 1) : u0_last;
  }
  // The row that is the conjugate of a computed one, or that row itself.
  int64_t Twin(int64_t u0, int64_t u1) const {
    return args.hermitian && u1 == 0 && u0 > 0 ? args.k0 - u0 : u0;
  }

  A* Tap(int64_t t0, int64_t t1, int64_t c, int64_t o) const {
    return static_cast<A*>(args.taps) + ((t0 * args.t1 + t1) * in + c) * args.out + o;
  }

  // The given spectrum at a frequency, in storage type F.
  template <typename F = A>
  F* Given(int64_t u0, int64_t u1, int64_t c, int64_t o) const {
    return static_cast<F*>(args.taps) + ((u0 * args.k1 + u1) * in + c) * args.out + o;
  }
  int64_t GivenPlane() const { return args.k0 * args.k1 * in * args.out; }

  // A panel of the given spectrum: rows are input channels, columns output channels.
  template <typename F>
  void GivenForward(int64_t u0, int64_t u1, int64_t row0, int64_t rows, int64_t column0,
                    int64_t columns, A* panel, int64_t width) const {
    const int64_t imaginary = GivenPlane(), ahead = kAhead * args.out;
    for (int64_t r = 0; r < rows; ++r) {
      const F* from = Given<F>(u0, u1, row0 + r, column0);
      for (int64_t v = 0; v < width; v += kLane) {
        __builtin_prefetch(from + v + ahead);
        __builtin_prefetch(from + v + imaginary + ahead);
        StorePanel<A, true>(panel + r * width + v, rows * width, LoadUpTo<A>(from + v, columns - v),
                            LoadUpTo<A>(from + v + imaginary, columns - v));
      }
    }
  }

  // The same transposed: rows are output channels, columns input channels.
  void GivenTransposed(int64_t u0, int64_t u1, int64_t row0, int64_t rows, int64_t column0,
                       int64_t columns, A* panel, int64_t width) const {
    for (int64_t v = 0; v < width; v += kLane) {
      for (int64_t r = 0; r < rows; r += kLane) {
        Vec<A> re[kLane], im[kLane];
        for (int64_t i = 0; i < kLane; ++i) {
          re[i] = im[i] = Vec<A>{};
          if (v + i >= columns) continue;
          const A* from = Given(u0, u1, column0 + v + i, row0 + r);
          re[i] = LoadUpTo<A>(from, rows - r);
          im[i] = LoadUpTo<A>(from + GivenPlane(), rows - r);
        }
        Transpose<A>(re);
        Transpose<A>(im);
        for (int64_t i = 0; i < Min(kLane, rows - r); ++i) {
          StorePanel<A, false>(panel + (r + i) * width + v, rows * width, re[i], im[i]);
        }
      }
    }
  }

  // Sums the inner taps: p[t0][re, im][row along the sum][column of the panel].
  // Forward, rows are input channels and columns output channels of the group.
  void InnerForward(int64_t u1, int64_t row0, int64_t rows, int64_t column0, int64_t columns, A* p,
                    int64_t width) const {
    for (int64_t t0 = 0; t0 < args.t0; ++t0) {
      A* p_re = p + 2 * t0 * rows * width;
      A* p_im = p_re + rows * width;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t v = 0; v < width; v += kLane) {
          Vec<A> re = {}, im = {};
          for (int64_t t1 = 0; t1 < args.t1; ++t1) {
            // Rows of a panel are far apart: the processor does not see them coming.
            __builtin_prefetch(Tap(t0, t1, row0 + r + kAhead, column0 + v));
            const Vec<A> w = LoadUpTo<A>(Tap(t0, t1, row0 + r, column0 + v), columns - v);
            re += inner_re[u1 * args.t1 + t1] * w;
            im += inner_im[u1 * args.t1 + t1] * w;
          }
          Store<A>(p_re + r * width + v, re);
          if (!real) Store<A>(p_im + r * width + v, im);
        }
      }
    }
  }

  // The same with rows the output channels and columns the input channels: transposed.
  void InnerTransposed(int64_t u1, int64_t row0, int64_t rows, int64_t column0, int64_t columns,
                       A* p, int64_t width) const {
    const int64_t tap_step = in * args.out;
    for (int64_t t0 = 0; t0 < args.t0; ++t0) {
      A* p_re = p + 2 * t0 * rows * width;
      A* p_im = p_re + rows * width;
      for (int64_t v = 0; v < width; v += kLane) {
        const int64_t valid = Min(kLane, columns - v);
        for (int64_t r = 0; r < rows; r += kLane) {
          Vec<A> re[kLane], im[kLane];
          const A* corner = Tap(t0, 0, column0 + v, row0 + r);
          if (__builtin_expect(valid == kLane && rows - r >= kLane, 1)) {
#pragma GCC unroll 16
            for (int i = 0; i < kLane; ++i) {
              re[i] = im[i] = Vec<A>{};
              for (int64_t t1 = 0; t1 < args.t1; ++t1) {
                const A* tap = corner + t1 * tap_step + i * args.out;
                __builtin_prefetch(tap + kLane);
                re[i] += inner_re[u1 * args.t1 + t1] * Load<A>(tap);
                im[i] += inner_im[u1 * args.t1 + t1] * Load<A>(tap);
              }
            }
          } else {
            for (int64_t i = 0; i < kLane; ++i) {
              re[i] = im[i] = Vec<A>{};
              for (int64_t t1 = 0; i < valid && t1 < args.t1; ++t1) {
                const Vec<A> w = LoadUpTo<A>(corner + t1 * tap_step + i * args.out, rows - r);
                re[i] += inner_re[u1 * args.t1 + t1] * w;
                im[i] += inner_im[u1 * args.t1 + t1] * w;
              }
            }
          }
          const int64_t height = Min(kLane, rows - r);
          Transpose<A>(re);
          for (int64_t i = 0; i < height; ++i) Store<A>(p_re + (r + i) * width + v, re[i]);
          if (real) continue;
          Transpose<A>(im);
          for (int64_t i = 0; i < height; ++i) Store<A>(p_im + (r + i) * width + v, im[i]);
        }
      }
    }
  }

  // The panel of one row frequency.
  template <bool kConjugate>
  void Outer(int64_t u0, int64_t rows, const A* p, int64_t width, A* panel) const {
    const int64_t plane = rows * width;
    const A* re0 = outer_re + u0 * args.t0;
    const A* im0 = outer_im + u0 * args.t0;
    for (int64_t at = 0; at < plane; at += kLane) {
      Vec<A> c = {}, d = {};
      for (int64_t t0 = 0; t0 < args.t0; ++t0) {
        const Vec<A> re = Load<A>(p + 2 * t0 * plane + at);
        c += re0[t0] * re;
        d += im0[t0] * re;
        if (real) continue;
        const Vec<A> im = Load<A>(p + (2 * t0 + 1) * plane + at);
        c -= im0[t0] * im;
        d += re0[t0] * im;
      }
      StorePanel<A, kConjugate>(panel + at, plane, c, d);
    }
  }

  // The gradient of a given spectrum at a frequency: d is all of it, of planes `plane` apart.
  void StoreGiven(int64_t u0, int64_t u1, int64_t row0, int64_t rows, int64_t column0,
                  int64_t columns, int64_t width, int64_t plane, const A* d) const {
    for (int64_t r = 0; r < rows; ++r) {
      A* to = Given(u0, u1, row0 + r, column0);
      for (int64_t v = 0; v < columns; v += kLane) {
        const A* from = d + r * width + v;
        StoreUpTo<A>(to + v, Load<A>(from), columns - v);
        StoreUpTo<A>(to + v + GivenPlane(), Load<A>(from + plane), columns - v);
      }
    }
  }

  // p += conj(outer) d, the transpose of Outer. A twin adds the conjugate, and of p the real part
  // is what counts, for at column frequency 0 the inner table is real.
  void SpreadOuter(int64_t u0, int64_t u1, int64_t plane, const A* d, A* p) const {
    const A weight = Twin(u0, u1) == u0 ? 1 : 2;
    for (int64_t t0 = 0; t0 < args.t0; ++t0) {
      const A re0 = weight * outer_re[u0 * args.t0 + t0];
      const A im0 = weight * outer_im[u0 * args.t0 + t0];
      A* p_re = p + 2 * t0 * plane;
      A* p_im = p_re + plane;
      for (int64_t at = 0; at < plane; at += kLane) {
        const Vec<A> re = Load<A>(d + at), im = Load<A>(d + plane + at);
        Store<A>(p_re + at, Load<A>(p_re + at) + re0 * re + im0 * im);
        if (!real) Store<A>(p_im + at, Load<A>(p_im + at) + re0 * im - im0 * re);
      }
    }
  }

  // The taps' gradient (+)= the real part of conj(inner) p; `to` is tap (0, 0), row 0, column 0.
  void SpreadInner(int64_t u1, bool add, int64_t rows, int64_t columns, int64_t width,
                   int64_t plane, const A* p, A* to) const {
    for (int64_t t0 = 0; t0 < args.t0; ++t0) {
      for (int64_t t1 = 0; t1 < args.t1; ++t1) {
        const A re1 = inner_re[u1 * args.t1 + t1], im1 = inner_im[u1 * args.t1 + t1];
        const A* p_re = p + 2 * t0 * plane;
        const A* p_im = p_re + plane;
        A* tap = to + (t0 * args.t1 + t1) * in * args.out;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t v = 0; v < width; v += kLane) {
            A* at = tap + r * args.out + v;
            const int64_t from = r * width + v;
            Vec<A> sum = re1 * Load<A>(p_re + from) + im1 * Load<A>(p_im + from);
            if (add) sum += LoadUpTo<A>(at, columns - v);
            StoreUpTo<A>(at, sum, columns - v);
          }
        }
      }
    }
  }

  // The filter's gradient from those of the parts.
  void SumChunks(Pool* pool, int64_t chunks, int64_t taps) const {
    constexpr int64_t kPiece = 4096;
    const A* partial = static_cast<const A*>(args.partial);
    A* result = static_cast<A*>(args.taps);
    ParallelFor(pool, CeilDiv(taps, kPiece), [&](int64_t task) {
      const int64_t end = Min(taps, (task + 1) * kPiece);
      for (int64_t at = task * kPiece; at < end; at += kLane) {
        Vec<A> sum = LoadUpTo<A>(partial + at, end - at);
        for (int64_t i = 1; i < chunks; ++i) sum += LoadUpTo<A>(partial + i * taps + at, end - at);
        StoreUpTo<A>(result + at, sum, end - at);
      }
    });
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FILTER_H_
