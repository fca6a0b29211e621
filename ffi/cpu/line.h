// The transform of one complex line: a vector of real parts and one of imaginary parts at each
// point, so that each lane is a transform of its own.
#ifndef BANDJAX_FFI_CPU_LINE_H_
#define BANDJAX_FFI_CPU_LINE_H_

#include "butterfly.h"
#include "transform.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A>
constexpr int64_t kPoint = 2 * kLanes<A>;  // numbers in a point

// One pass over a line, in place: `blocks` blocks of kRadix transforms of `done` points each become
// transforms of kRadix * done points.
template <typename A, int kRadix, bool kFirst>
BANDJAX_NOINLINE void Pass(A* line, int64_t blocks, int64_t done, const A* twiddles) {
  const int64_t step = done * kPoint<A>;
  for (int64_t block = 0; block < blocks; ++block, line += kRadix * step) {
    const A* t = twiddles;
    for (int64_t k = 0; k < done; ++k, t += 2 * (kRadix - 1)) {
      A* point = line + k * kPoint<A>;
      Vec<A> re[kRadix], im[kRadix];
      Unrolled<0, kRadix>([&](auto q) __attribute__((always_inline)) {
        constexpr int kAt = decltype(q)::value;
        const Vec<A> r = Load<A>(point + kAt * step);
        const Vec<A> i = Load<A>(point + kAt * step + kLanes<A>);
        if constexpr (kFirst || kAt == 0) {
          re[kAt] = r, im[kAt] = i;
        } else {
          const A cosine = t[2 * kAt - 2], sine = t[2 * kAt - 1];
          re[kAt] = r * cosine + i * sine, im[kAt] = i * cosine - r * sine;
        }
      });
      Butterfly<A, kRadix>(re, im);
      Unrolled<0, kRadix>([&](auto q) __attribute__((always_inline)) {
        constexpr int kAt = decltype(q)::value;
        Store<A>(point + kAt * step, re[kAt]);
        Store<A>(point + kAt * step + kLanes<A>, im[kAt]);
      });
    }
  }
}

template <typename A, int kRadix>
BANDJAX_INLINE void PassOf(A* line, int64_t blocks, int64_t done, const A* twiddles) {
  if (done == 1) {
    Pass<A, kRadix, true>(line, blocks, done, twiddles);
  } else {
    Pass<A, kRadix, false>(line, blocks, done, twiddles);
  }
}

template <typename A>
BANDJAX_NOINLINE void FastLine(const FourierPlan& plan, const A* twiddles, A* line) {
  int64_t done = 1;
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    const int64_t radix = plan.radices[pass], blocks = plan.length / (radix * done);
    switch (radix) {
#define BANDJAX_RADIX(r)                        \
  case r:                                       \
    PassOf<A, r>(line, blocks, done, twiddles); \
    break;
      BANDJAX_RADIX(2)
      BANDJAX_RADIX(3)
      BANDJAX_RADIX(4)
      BANDJAX_RADIX(5)
      BANDJAX_RADIX(6)
      BANDJAX_RADIX(7)
      BANDJAX_RADIX(8)
      BANDJAX_RADIX(9)
      BANDJAX_RADIX(10)
      BANDJAX_RADIX(11)
      BANDJAX_RADIX(12)
      BANDJAX_RADIX(13)
      BANDJAX_RADIX(15)
      BANDJAX_RADIX(16)
#undef BANDJAX_RADIX
      default:
        __builtin_trap();  // fourier_plan.cpp has a radix more.
    }
    if (done > 1) twiddles += 2 * (radix - 1) * done;
    done *= radix;
  }
}

// Numbers of scratch space that TableLine() needs.
template <typename A>
int64_t TableScratch(const FourierPlan& plan) {
  return (2 * ((plan.samples + 1) / 2) + 2 * plan.limit + 1) * kPoint<A>;
}

// X[u] of the samples, at u for u >= 0 and behind at 2 U + 1 + u; by the table of transform.h.
template <typename A>
BANDJAX_NOINLINE void TableAnalysis(const FourierPlan& plan, const A* table, A* line, A* scratch) {
  const int64_t n = plan.samples, limit = plan.limit, half = CeilDiv(n, 2), slots = 2 * limit + 1;
  A* even = scratch;
  A* odd = even + half * kPoint<A>;
  A* sums = odd + half * kPoint<A>;
  for (int64_t at = 0; at < half * kPoint<A>; at += kLanes<A>) {
    const int64_t j = at / kPoint<A>, mirror = at + (n - 1 - 2 * j) * kPoint<A>;
    const Vec<A> left = Load<A>(line + at);
    const Vec<A> right = at == mirror ? Vec<A>{} : Load<A>(line + mirror);
    Store<A>(even + at, left + right);
    Store<A>(odd + at, left - right);
  }
  TableProduct<A, 2>(limit + 1, half, table, half, 1, even, kPoint<A>, sums, kPoint<A>);
  A* sines = sums + (limit + 1) * kPoint<A>;
  TableProduct<A, 2>(limit, n / 2, table + (limit + 1) * half, half, 1, odd, kPoint<A>, sines,
                     kPoint<A>);
  Store<A>(line, Load<A>(sums));
  Store<A>(line + kLanes<A>, Load<A>(sums + kLanes<A>));
  for (int64_t u = 1; u <= limit; ++u) {
    const A* c = sums + u * kPoint<A>;
    const A* s = sines + (u - 1) * kPoint<A>;
    const Vec<A> c_re = Load<A>(c), c_im = Load<A>(c + kLanes<A>);
    const Vec<A> s_re = Load<A>(s), s_im = Load<A>(s + kLanes<A>);
    A* minus = line + (slots - u) * kPoint<A>;
    Store<A>(line + u * kPoint<A>, c_re + s_im);
    Store<A>(line + u * kPoint<A> + kLanes<A>, c_im - s_re);
    Store<A>(minus, c_re - s_im);
    Store<A>(minus + kLanes<A>, c_im + s_re);
  }
}

// The transpose: the sum over u of exp(-2 pi i u p_j / g) X[u], in place of the same slots.
template <typename A>
BANDJAX_NOINLINE void TableSynthesis(const FourierPlan& plan, const A* table, A* line, A* scratch) {
  const int64_t n = plan.samples, limit = plan.limit, half = CeilDiv(n, 2), slots = 2 * limit + 1;
  A* even = scratch;
  A* odd = even + half * kPoint<A>;
  A* sums = odd + half * kPoint<A>;
  A* gaps = sums + (limit + 1) * kPoint<A>;
  Store<A>(sums, Load<A>(line));
  Store<A>(sums + kLanes<A>, Load<A>(line + kLanes<A>));
  for (int64_t at = kPoint<A>; at < (limit + 1) * kPoint<A>; at += kLanes<A>) {
    const int64_t u = at / kPoint<A>;
    const Vec<A> plus = Load<A>(line + at),
                 minus = Load<A>(line + at + (slots - 2 * u) * kPoint<A>);
    Store<A>(sums + at, plus + minus);
    Store<A>(gaps + at - kPoint<A>, plus - minus);
  }
  TableProduct<A, 2>(half, limit + 1, table, 1, half, sums, kPoint<A>, even, kPoint<A>);
  TableProduct<A, 2>(n / 2, limit, table + (limit + 1) * half, 1, half, gaps, kPoint<A>, odd,
                     kPoint<A>);
  for (int64_t j = 0; j < half; ++j) {
    const Vec<A> e_re = Load<A>(even + j * kPoint<A>);
    const Vec<A> e_im = Load<A>(even + j * kPoint<A> + kLanes<A>);
    const bool middle = j == n - 1 - j;
    const Vec<A> o_re = middle ? Vec<A>{} : Load<A>(odd + j * kPoint<A>);
    const Vec<A> o_im = middle ? Vec<A>{} : Load<A>(odd + j * kPoint<A> + kLanes<A>);
    A* mirror = line + (n - 1 - j) * kPoint<A>;
    Store<A>(mirror, e_re - o_im);
    Store<A>(mirror + kLanes<A>, e_im + o_re);
    Store<A>(line + j * kPoint<A>, e_re + o_im);
    Store<A>(line + j * kPoint<A> + kLanes<A>, e_im - o_re);
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_LINE_H_
