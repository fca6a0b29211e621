// Discrete Fourier transforms of few points, X[k] = sum over j of x[j] exp(-2 pi i j k / R), each
// point a vector of real and one of imaginary parts. Everything is unrolled: indices and factors
// are known to the compiler.
#ifndef BANDJAX_FFI_CPU_BUTTERFLY_H_
#define BANDJAX_FFI_CPU_BUTTERFLY_H_

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls body(Constant<i>) for i = kFrom .. kTo - 1.
template <int kFrom, int kTo, typename Body>
BANDJAX_INLINE void Unrolled(const Body& body) {
  if constexpr (kFrom < kTo) {
    body(Constant<kFrom>{});
    Unrolled<kFrom + 1, kTo>(body);
  }
}

// sin(2 pi a / b) and the cosine, by their series, of an angle in the first eighth of the circle.
constexpr double SineSeries(double x) {
  double term = x, sum = x;
  for (int i = 1; i < 12; ++i) {
    term *= -x * x / ((2 * i) * (2 * i + 1));
    sum += term;
  }
  return sum;
}
constexpr double CosineSeries(double x) {
  double term = 1, sum = 1;
  for (int i = 1; i < 12; ++i) {
    term *= -x * x / ((2 * i - 1) * (2 * i));
    sum += term;
  }
  return sum;
}
constexpr double kTwoPi = 6.283185307179586476925286766559;
constexpr double Sine(int a, int b);
constexpr double Cosine(int a, int b) {
  a = (a % b + b) % b;
  if (2 * a > b) a = b - a;
  if (4 * a > b) return -Cosine(b - 2 * a, 2 * b);
  if (4 * a == b) return 0;
  return 8 * a <= b ? CosineSeries(kTwoPi * a / b) : Sine(b - 4 * a, 4 * b);
}
constexpr double Sine(int a, int b) {
  a = (a % b + b) % b;
  if (2 * a > b) return -Sine(b - a, b);
  if (4 * a > b) return Sine(b - 2 * a, 2 * b);
  return 8 * a <= b ? SineSeries(kTwoPi * a / b) : Cosine(b - 4 * a, 4 * b);
}

constexpr int Divisor(int length) {  // A factor near the square root, or 1 of a prime.
  int best = 1;
  for (int i = 2; i * i <= length; ++i) {
    if (length % i == 0) best = i;
  }
  return best;
}
constexpr bool Coprime(int a, int b) { return b == 0 ? a == 1 : Coprime(b, a % b); }
// The number below a * b that is `p` modulo a and `q` modulo b.
constexpr int Chinese(int p, int a, int q, int b) {
  int k = p;
  while (k % b != q) k += a;
  return k;
}

// x exp(-2 pi i kNumerator / kDenominator)
template <typename A, int kNumerator, int kDenominator>
BANDJAX_INLINE void Turn(Vec<A>& re, Vec<A>& im) {
  constexpr int kAt = kNumerator % kDenominator;
  const Vec<A> r = re, i = im;
  if constexpr (kAt == 0) {
    return;
  } else if constexpr (4 * kAt == kDenominator) {
    re = i, im = -r;
  } else if constexpr (2 * kAt == kDenominator) {
    re = -r, im = -i;
  } else if constexpr (4 * kAt == 3 * kDenominator) {
    re = -i, im = r;
  } else if constexpr (8 * kAt == kDenominator) {
    constexpr A kHalf = static_cast<A>(Cosine(1, 8));
    re = (r + i) * kHalf, im = (i - r) * kHalf;
  } else if constexpr (8 * kAt == 3 * kDenominator) {
    constexpr A kHalf = static_cast<A>(Cosine(1, 8));
    re = (i - r) * kHalf, im = (r + i) * -kHalf;
  } else {
    constexpr A kCosine = static_cast<A>(Cosine(kAt, kDenominator));
    constexpr A kSine = static_cast<A>(Sine(kAt, kDenominator));
    re = r * kCosine + i * kSine, im = i * kCosine - r * kSine;
  }
}

template <typename A, int kRadix>
BANDJAX_INLINE void Butterfly(Vec<A> (&re)[kRadix], Vec<A> (&im)[kRadix]);

// Of an odd prime: sums of opposite points meet cosines, their differences sines.
template <typename A, int kRadix>
BANDJAX_INLINE void OddButterfly(Vec<A> (&re)[kRadix], Vec<A> (&im)[kRadix]) {
  constexpr int kHalf = kRadix / 2;
  Vec<A> sum_re[kHalf], sum_im[kHalf], gap_re[kHalf], gap_im[kHalf];
  const Vec<A> first_re = re[0], first_im = im[0];
  Unrolled<0, kHalf>([&](auto j) __attribute__((always_inline)) {
    constexpr int kAt = decltype(j)::value + 1;
    sum_re[kAt - 1] = re[kAt] + re[kRadix - kAt], gap_re[kAt - 1] = re[kAt] - re[kRadix - kAt];
    sum_im[kAt - 1] = im[kAt] + im[kRadix - kAt], gap_im[kAt - 1] = im[kAt] - im[kRadix - kAt];
    re[0] += sum_re[kAt - 1], im[0] += sum_im[kAt - 1];
  });
  Unrolled<1, kHalf + 1>([&](auto k) __attribute__((always_inline)) {
    constexpr int kOut = decltype(k)::value;
    Vec<A> even_re = first_re, even_im = first_im, odd_re, odd_im;
    Unrolled<0, kHalf>([&](auto j) __attribute__((always_inline)) {
      constexpr int kAt = decltype(j)::value;
      constexpr A kCosine = static_cast<A>(Cosine((kAt + 1) * kOut, kRadix));
      constexpr A kSine = static_cast<A>(Sine((kAt + 1) * kOut, kRadix));
      even_re += kCosine * sum_re[kAt], even_im += kCosine * sum_im[kAt];
      if constexpr (kAt == 0) {
        odd_re = kSine * gap_re[kAt], odd_im = kSine * gap_im[kAt];
      } else {
        odd_re += kSine * gap_re[kAt], odd_im += kSine * gap_im[kAt];
      }
    });
    re[kOut] = even_re + odd_im, im[kOut] = even_im - odd_re;
    re[kRadix - kOut] = even_re - odd_im, im[kRadix - kOut] = even_im + odd_re;
  });
}

// Of kP kQ points: transforms of kP, then of kQ. Coprime numbers need no factors between them, for
// indices can be renamed (Good 1958, Thomas 1963); others do (Cooley and Tukey 1965).
template <typename A, int kP, int kQ>
BANDJAX_INLINE void ProductButterfly(Vec<A> (&re)[kP * kQ], Vec<A> (&im)[kP * kQ]) {
  constexpr int kRadix = kP * kQ;
  constexpr bool kRenamed = Coprime(kP, kQ);
  Vec<A> mid_re[kQ][kP], mid_im[kQ][kP];
  Unrolled<0, kQ>([&](auto q) __attribute__((always_inline)) {
    constexpr int kRow = decltype(q)::value;
    Unrolled<0, kP>([&](auto p) __attribute__((always_inline)) {
      constexpr int kAt = decltype(p)::value;
      constexpr int kIn = kRenamed ? (kQ * kAt + kP * kRow) % kRadix : kQ * kAt + kRow;
      mid_re[kRow][kAt] = re[kIn], mid_im[kRow][kAt] = im[kIn];
    });
    Butterfly<A, kP>(mid_re[kRow], mid_im[kRow]);
  });
  Unrolled<0, kP>([&](auto p) __attribute__((always_inline)) {
    constexpr int kAt = decltype(p)::value;
    Vec<A> line_re[kQ], line_im[kQ];
    Unrolled<0, kQ>([&](auto q) __attribute__((always_inline)) {
      constexpr int kRow = decltype(q)::value;
      line_re[kRow] = mid_re[kRow][kAt], line_im[kRow] = mid_im[kRow][kAt];
      if constexpr (!kRenamed) Turn<A, kRow * kAt, kRadix>(line_re[kRow], line_im[kRow]);
    });
    Butterfly<A, kQ>(line_re, line_im);
    Unrolled<0, kQ>([&](auto q) __attribute__((always_inline)) {
      constexpr int kRow = decltype(q)::value;
      // With the renamed input, output k is k modulo kP of the first transform, modulo kQ of the
      // other.
      constexpr int kOut = kRenamed ? Chinese(kAt, kP, kRow, kQ) : kAt + kP * kRow;
      re[kOut] = line_re[kRow], im[kOut] = line_im[kRow];
    });
  });
}

template <typename A, int kRadix>
BANDJAX_INLINE void Butterfly(Vec<A> (&re)[kRadix], Vec<A> (&im)[kRadix]) {
  constexpr int kDivisor = Divisor(kRadix);
  if constexpr (kRadix == 2) {
    const Vec<A> a_re = re[0], a_im = im[0];
    re[0] = a_re + re[1], im[0] = a_im + im[1];
    re[1] = a_re - re[1], im[1] = a_im - im[1];
  } else if constexpr (kDivisor == 1) {
    OddButterfly<A, kRadix>(re, im);
  } else {
    ProductButterfly<A, kDivisor, kRadix / kDivisor>(re, im);
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_BUTTERFLY_H_
