// The multiply-sum of few examples by a spectrum that is given: it is read once, in its order.
//
// A panel, as of multiply.h, writes each number three times before it is met; of few examples that
// takes longer than the product. Here a few rows of the spectrum meet all examples at once, whose
// sums stay in the first-level cache, and memory is read as it lies.
#ifndef BANDJAX_FFI_CPU_GIVEN_H_
#define BANDJAX_FFI_CPU_GIVEN_H_

#include "filter.h"

namespace bandjax {
namespace BANDJAX_ISA {

// Numbers of the spectrum are in storage type F, those of the spectra of input and output in S and
// T.
template <typename A, typename S, typename T, typename F>
struct GivenProduct : Filter<A> {
  using Base = Filter<A>;
  using Base::args, Base::in, Base::out, Base::kLane, Base::Computed, Base::Twin;

  static constexpr int64_t kRows = 12;          // a batch of few examples, as of narrow.h
  static constexpr int kSteps = 4;              // rows of the spectrum met together
  static constexpr int64_t kLeast = 8 * kLane;  // columns of a task

  explicit GivenProduct(const MultiplyArgs& all) : Base{all} {}

  bool pays() const { return args.spectral() && args.n <= kRows; }

  // Adds kCount rows of the spectrum, from `re` and `im` on, times one number each of every
  // example. Of real numbers (kReal) the imaginary parts are not read.
  template <int kCount, bool kReal>
  BANDJAX_INLINE void Add(const F* re, const F* im, int64_t columns, const A* x, int64_t step,
                          A* sums, int64_t width) const {
    for (int64_t v = 0; v < columns; v += kLane) {
      Vec<A> w_re[kCount], w_im[kCount];
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        const F *row_re = re + i * args.out + v, *row_im = im + i * args.out + v;
        __builtin_prefetch(row_re + kSteps * args.out);
        w_re[i] = LoadUpTo<A>(row_re, columns - v);
        if constexpr (kReal) continue;
        __builtin_prefetch(row_im + kSteps * args.out);
        w_im[i] = LoadUpTo<A>(row_im, columns - v);
      }
      for (int64_t m = 0; m < args.n; ++m) {
        const A *x_re = x + 2 * m * step, *x_im = x_re + step;
        A *to_re = sums + 2 * m * width + v, *to_im = to_re + width;
        Vec<A> sum_re = Load<A>(to_re), sum_im = Load<A>(to_im);
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) {
          sum_re += x_re[i] * w_re[i];
          if constexpr (kReal) continue;
          sum_im += x_im[i] * w_re[i];
          sum_re += x_im[i] * w_im[i];
          sum_im -= x_re[i] * w_im[i];
        }
        Store<A>(to_re, sum_re);
        Store<A>(to_im, sum_im);
      }
    }
  }

  // The same of all rows.
  template <bool kReal>
  BANDJAX_NOINLINE void AddAll(const F* re, const F* im, int64_t columns, const A* x, int64_t step,
                               A* sums, int64_t width) const {
    int64_t c = 0;
    for (; c + kSteps <= in; c += kSteps) {
      Add<kSteps, kReal>(re + c * args.out, im + c * args.out, columns, x + c, step, sums, width);
    }
    for (; c < in; ++c) {
      Add<1, kReal>(re + c * args.out, im + c * args.out, columns, x + c, step, sums, width);
    }
  }

  void MultiplySum(Pool* pool) const {
    const S *x_re = static_cast<const S*>(args.x_re), *x_im = static_cast<const S*>(args.x_im);
    T *y_re = static_cast<T*>(args.y_re), *y_im = static_cast<T*>(args.y_im);
    const F* spectrum = static_cast<const F*>(args.taps);
    const int64_t plane = args.k0 * args.k1 * in * args.out;
    // The first column frequency may have fewer rows, all others have k0.
    const int64_t first = Computed(0, args.k0), points = first + (args.k1 - 1) * args.k0;
    const int64_t wanted = CeilDiv(4 * pool->threads, points * args.groups);
    const int64_t parts = Min(wanted, CeilDiv(out, kLeast));
    const int64_t width = CeilDiv(CeilDiv(out, parts), kLane) * kLane, blocks = CeilDiv(out, width);
    const int64_t step = CeilDiv(in, kLane) * kLane;
    ParallelFor(pool, points * args.groups * blocks, [&](int64_t task) {
      const int64_t block = task % blocks, group = task / blocks % args.groups;
      const int64_t number = task / blocks / args.groups;
      const int64_t u1 = number < first ? 0 : 1 + (number - first) / args.k0;
      const int64_t u0 = number < first ? number : (number - first) % args.k0;
      const int64_t point = u0 * args.k1 + u1;
      const int64_t column0 = group * out + block * width;
      const int64_t columns = Min(width, out - block * width);
      Arena arena(pool, Arena::Bytes<A>(2 * args.n * step) + Arena::Bytes<A>(2 * args.n * width));
      A* x = arena.Take<A>(2 * args.n * step);
      A* sums = arena.Take<A>(2 * args.n * width);
      for (int64_t at = 0; at < 2 * args.n * width; at += kLane) Store<A>(sums + at, Vec<A>{});
      for (int64_t m = 0; m < args.n; ++m) {
        const int64_t from = (point * args.n + m) * args.in + group * in;
        for (int64_t c = 0; c < in; c += kLane) {
          Store<A>(x + 2 * m * step + c, LoadUpTo<A>(x_re + from + c, in - c));
          Store<A>(x + (2 * m + 1) * step + c, LoadUpTo<A>(x_im + from + c, in - c));
        }
      }
      const F *re = spectrum + point * in * args.out + column0, *im = re + plane;
      const auto add =
          args.hermitian && point == 0 ? &GivenProduct::AddAll<true> : &GivenProduct::AddAll<false>;
      (this->*add)(re, im, columns, x, step, sums, width);
      for (int64_t m = 0; m < args.n; ++m) {
        const int64_t to = (point * args.n + m) * args.out + column0;
        for (int64_t v = 0; v < columns; v += kLane) {
          const A* from = sums + 2 * m * width + v;
          StoreUpTo<A>(y_re + to + v, Load<A>(from), columns - v);
          StoreUpTo<A>(y_im + to + v, Load<A>(from + width), columns - v);
        }
      }
      const int64_t twin = (Twin(u0, u1) - u0) * args.k1 * args.n * args.out;
      if (twin == 0) return;
      const int64_t to = point * args.n * args.out + column0;
      CopyConjugate<A>(args.n, columns, args.out, y_re + to, y_im + to, y_re + to + twin,
                       y_im + to + twin);
    });
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_GIVEN_H_
