// Storage types of the kernels and the roundings of the tensor cores.
//
// Everything compiles for the device and, in the emulation of the kernels on a CPU, for the host.

#ifndef BANDJAX_FFI_CUDA_NUMBERS_H_
#define BANDJAX_FFI_CUDA_NUMBERS_H_

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define BANDJAX_DEVICE __device__ __forceinline__
#define BANDJAX_BOTH __host__ __device__ __forceinline__
#else
#define BANDJAX_DEVICE inline
#define BANDJAX_BOTH inline
#endif

namespace bandjax::cuda {

struct Bf16 {
  uint16_t bits;
};

BANDJAX_BOTH float FromBits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

BANDJAX_BOTH uint32_t ToBits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

BANDJAX_BOTH float ToFloat(float x) { return x; }
BANDJAX_BOTH float ToFloat(Bf16 x) { return FromBits(uint32_t{x.bits} << 16); }

// The bfloat16 nearest to x, ties to even.
BANDJAX_BOTH uint16_t RoundToBf16(float x) {
#ifdef __CUDA_ARCH__
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const uint32_t bits = ToBits(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

// Two bfloat16 in one register, `low` in the lower half, as the tensor cores take them.
BANDJAX_BOTH uint32_t PackBf16(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return uint32_t{RoundToBf16(low)} | (uint32_t{RoundToBf16(high)} << 16);
#endif
}

// The nearest number of ten stored mantissa bits, ties away from zero, as the bits of a float.
BANDJAX_BOTH uint32_t RoundToTf32(float x) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  const uint32_t bits = ToBits(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & 0xffffe000u;
#endif
}

BANDJAX_BOTH void Store(float* at, float x) { *at = x; }
BANDJAX_BOTH void Store(Bf16* at, float x) { at->bits = RoundToBf16(x); }

template <class Integer>
constexpr BANDJAX_BOTH Integer CeilDiv(Integer a, Integer b) {
  return (a + b - 1) / b;
}

template <class T>
constexpr BANDJAX_BOTH T Min(T a, T b) {
  return a < b ? a : b;
}

template <class T>
constexpr BANDJAX_BOTH T Max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_NUMBERS_H_
