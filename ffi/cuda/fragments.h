// Products of tiles in shared memory by the tensor cores, for a warp.
//
// An arithmetic is a struct with `kDepth`, the columns of A that one instruction takes,
// `kColumns`, the columns of a block's tile for which there are registers, fragments `A` and `B`,
// and functions to load, negate and multiply them. `at(row, k)` and `at(k, column)` give elements
// as floats. See block_emulated.h for the layouts, which are the PTX manual's.

#ifndef BANDJAX_FFI_CUDA_FRAGMENTS_H_
#define BANDJAX_FFI_CUDA_FRAGMENTS_H_

#include "block.h"
#include "numbers.h"

namespace bandjax::cuda {

struct Tf32 {
  static constexpr int kDepth = 8;
  static constexpr int kColumns = 64;
  struct A {
    uint32_t v[4];
  };
  struct B {
    uint32_t v[2];
  };

  template <class At>
  BANDJAX_DEVICE static A LoadA(int lane, const At& at) {
    const int group = lane >> 2, t = lane & 3;
    return {{RoundToTf32(at(group, t)), RoundToTf32(at(group + 8, t)),
             RoundToTf32(at(group, t + 4)), RoundToTf32(at(group + 8, t + 4))}};
  }
  template <class At>
  BANDJAX_DEVICE static B LoadB(int lane, const At& at) {
    const int group = lane >> 2, t = lane & 3;
    return {{RoundToTf32(at(t, group)), RoundToTf32(at(t + 4, group))}};
  }
  BANDJAX_DEVICE static B Negative(const B& b) {
    return {{b.v[0] ^ 0x80000000u, b.v[1] ^ 0x80000000u}};
  }
  BANDJAX_DEVICE static void MultiplyAdd(Block& block, float (&d)[4], const A& a, const B& b) {
    block.MmaTf32(d, a.v, b.v);
  }
};

// x = high + low up to 2^-22 of x; of the product of two such sums only low * low is left out.
// The tensor cores cut off their sums rather than round them, so that long sums
// lose a few bits against float32.
struct Tf32x3 {
  static constexpr int kDepth = 8;
  static constexpr int kColumns = 32;
  struct A {
    Tf32::A high, low;
  };
  struct B {
    Tf32::B high, low;
  };

  template <class At>
  BANDJAX_DEVICE static A LoadA(int lane, const At& at) {
    const int group = lane >> 2, t = lane & 3;
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Split(at(group + 8 * (i & 1), t + 4 * (i >> 1)), a.high.v[i], a.low.v[i]);
    }
    return a;
  }
  template <class At>
  BANDJAX_DEVICE static B LoadB(int lane, const At& at) {
    const int group = lane >> 2, t = lane & 3;
    B b;
#pragma unroll
    for (int i = 0; i < 2; ++i) Split(at(t + 4 * i, group), b.high.v[i], b.low.v[i]);
    return b;
  }
  BANDJAX_DEVICE static B Negative(const B& b) {
    return {Tf32::Negative(b.high), Tf32::Negative(b.low)};
  }
  BANDJAX_DEVICE static void MultiplyAdd(Block& block, float (&d)[4], const A& a, const B& b) {
    block.MmaTf32(d, a.low.v, b.high.v);
    block.MmaTf32(d, a.high.v, b.low.v);
    block.MmaTf32(d, a.high.v, b.high.v);
  }

  BANDJAX_DEVICE static void Split(float x, uint32_t& high, uint32_t& low) {
    high = RoundToTf32(x);
    low = RoundToTf32(x - FromBits(high));
  }
};

// The instruction pairs depths 2t and 2t+1 in a register. A sum does not mind the order of its
// terms: here depths t and t+4 are paired, in both operands, so that lanes read shared memory as
// they do for tf32, without meeting in a bank.
struct Bfloat16 {
  static constexpr int kDepth = 16;
  static constexpr int kColumns = 64;
  using A = Tf32::A;
  using B = Tf32::B;

  template <class At>
  BANDJAX_DEVICE static A LoadA(int lane, const At& at) {
    const int group = lane >> 2, t = lane & 3;
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i & 1), k = t + 8 * (i >> 1);
      a.v[i] = PackBf16(at(row, k), at(row, k + 4));
    }
    return a;
  }
  template <class At>
  BANDJAX_DEVICE static B LoadB(int lane, const At& at) {
    const int group = lane >> 2, t = lane & 3;
    B b;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      b.v[i] = PackBf16(at(t + 8 * i, group), at(t + 8 * i + 4, group));
    }
    return b;
  }
  BANDJAX_DEVICE static B Negative(const B& b) {
    return {{b.v[0] ^ 0x80008000u, b.v[1] ^ 0x80008000u}};
  }
  BANDJAX_DEVICE static void MultiplyAdd(Block& block, float (&d)[4], const A& a, const B& b) {
    block.MmaBf16(d, a.v, b.v);
  }
};

// A complex product by four real ones, re += ar br - ai bi and im += ar bi + ai br.
//
// Three would do (Gauss), but not here: they need a third accumulator, a third more registers of
// what there is least of, and sums ar + ai and br - bi of numbers that are about to be rounded to
// 8 or 11 bits, whose errors do not cancel when large products are subtracted. Four
// need two accumulators, and a minus sign that is one exclusive or.
template <class Arithmetic, bool kConjugateB>
BANDJAX_DEVICE void ComplexMultiplyAdd(Block& block, float (&re)[4], float (&im)[4],
                                       const typename Arithmetic::A& a_re,
                                       const typename Arithmetic::A& a_im,
                                       const typename Arithmetic::B& b_re,
                                       const typename Arithmetic::B& b_im) {
  const typename Arithmetic::B negative = Arithmetic::Negative(b_im);
  Arithmetic::MultiplyAdd(block, re, a_re, b_re);
  Arithmetic::MultiplyAdd(block, im, a_im, b_re);
  Arithmetic::MultiplyAdd(block, re, a_im, kConjugateB ? b_im : negative);
  Arithmetic::MultiplyAdd(block, im, a_re, kConjugateB ? negative : b_im);
}

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_FRAGMENTS_H_
