// Cosine transforms of small blocks in few bits, and booleans in bits: a pass over the array each.
//
// The mathematics and the layouts are those of bandjax/codecs. The lanes of a vector are channels.
#ifndef BANDJAX_FFI_CPU_PACK_H_
#define BANDJAX_FFI_CPU_PACK_H_

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {
namespace {

constexpr uint32_t kGolden = 0x9E3779B9u;
constexpr uint32_t kNotANumber = 0xFFF;

using Floats = Vec<float>;
typedef int32_t Ints __attribute__((vector_size(BANDJAX_BYTES)));
typedef uint8_t Bytes __attribute__((vector_size(BANDJAX_BYTES / 4)));

template <typename V>
BANDJAX_INLINE V Mixed(V x) {
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

BANDJAX_INLINE Floats Select(Ints mask, Floats a, Floats b) {
  return (Floats)((mask & (Ints)a) | (~mask & (Ints)b));
}

// Numbers in [0, 1) of the bits of a vector.
BANDJAX_INLINE Floats Fraction(Word bits) {
  return __builtin_convertvector((Ints)(bits >> 8), Floats) * 0x1p-24f;
}

// One axis of a block: `size` points that lie `stride` vectors apart. Measured from the middle,
// even frequencies see the sums of opposite points, odd ones the differences.
template <int kSize>
BANDJAX_INLINE void Forward(const float* matrix, int64_t any, int64_t stride, const Floats* in,
                            Floats* out) {
  const int size = kSize ? kSize : static_cast<int>(any), half = size / 2;
  Floats sum[kSize ? (kSize + 1) / 2 : 32], difference[kSize ? (kSize + 1) / 2 : 32];
#pragma GCC unroll 4
  for (int i = 0; i < half; ++i) {
    const Floats a = in[i * stride], b = in[(size - 1 - i) * stride];
    sum[i] = a + b, difference[i] = a - b;
  }
  if (size % 2) sum[half] = in[half * stride];
#pragma GCC unroll 8
  for (int k = 0; k < size; ++k) {
    const float* row = matrix + k * size;
    Floats total = {};
    if (k % 2 == 0) {
#pragma GCC unroll 4
      for (int i = 0; i < half + size % 2; ++i) total += sum[i] * row[i];
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < half; ++i) total += difference[i] * row[i];
    }
    out[k * stride] = total;
  }
}

template <int kSize>
BANDJAX_INLINE void Backward(const float* matrix, int64_t any, int64_t stride, const Floats* in,
                             Floats* out) {
  const int size = kSize ? kSize : static_cast<int>(any), half = size / 2;
  Floats values[kSize ? kSize : 64];
#pragma GCC unroll 8
  for (int k = 0; k < size; ++k) values[k] = in[k * stride];
#pragma GCC unroll 4
  for (int i = 0; i < half + size % 2; ++i) {
    Floats even = {}, odd = {};
#pragma GCC unroll 4
    for (int k = 0; k < size; k += 2) even += values[k] * matrix[k * size + i];
#pragma GCC unroll 4
    for (int k = 1; k < size; k += 2) odd += values[k] * matrix[k * size + i];
    out[(size - 1 - i) * stride] = even - odd;
    out[i * stride] = even + odd;
  }
}

template <bool kForward, int kSize>
BANDJAX_NOINLINE void Lines(const float* matrix, int64_t size, int64_t outer, int64_t stride,
                            Floats* block) {
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < stride; ++i) {
      Floats* line = block + o * size * stride + i;
      if constexpr (kForward) {
        Forward<kSize>(matrix, size, stride, line, line);
      } else {
        Backward<kSize>(matrix, size, stride, line, line);
      }
    }
  }
}

// All axes of a block, in place. In place is safe: each line is read whole before it is written.
template <bool kForward>
inline void Transformed(const PackArgs& args, Floats* block) {
  int64_t outer = 1, inner = args.sizes[0] * args.sizes[1] * args.sizes[2] * args.merged;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t size = args.sizes[axis];
    inner /= size;
    const float* matrix = args.matrices[axis];
    switch (size) {
      case 1:
        break;
      case 2:
        Lines<kForward, 2>(matrix, size, outer, inner, block);
        break;
      case 4:
        Lines<kForward, 4>(matrix, size, outer, inner, block);
        break;
      case 7:
        Lines<kForward, 7>(matrix, size, outer, inner, block);
        break;
      case 8:
        Lines<kForward, 8>(matrix, size, outer, inner, block);
        break;
      default:
        Lines<kForward, 0>(matrix, size, outer, inner, block);
    }
    outer *= size;
  }
}

// Calls body(number of the point in the block, offset of its channels) for every point of a block;
// with `repeat` points beyond the edge are those on it, without they are left out.
template <typename Body>
BANDJAX_INLINE void Points(const PackArgs& args, int64_t n, const int64_t (&place)[3], bool repeat,
                           Body body) {
  int64_t point = 0;
  for (int64_t a = 0; a < args.sizes[0]; ++a) {
    const int64_t i = place[0] * args.sizes[0] + a;
    for (int64_t b = 0; b < args.sizes[1]; ++b) {
      const int64_t j = place[1] * args.sizes[1] + b;
      for (int64_t d = 0; d < args.sizes[2]; ++d, ++point) {
        const int64_t k = place[2] * args.sizes[2] + d;
        if (!repeat && (i >= args.shape[0] || j >= args.shape[1] || k >= args.shape[2])) continue;
        const int64_t row = (n * args.shape[0] + Min(i, args.shape[0] - 1)) * args.shape[1];
        const int64_t column = (row + Min(j, args.shape[1] - 1)) * args.shape[2];
        body(point, (column + Min(k, args.shape[2] - 1)) * args.c);
      }
    }
  }
}

BANDJAX_INLINE Word FirstBits(const PackArgs& args, uint32_t key, int64_t place, int64_t lane) {
  Word bits;
  for (int i = 0; i < kLanes<float>; ++i) {
    bits[i] = key + static_cast<uint32_t>(place * args.lanes + lane + i);
  }
  return Mixed(bits);
}

BANDJAX_INLINE void PackBlock(const PackArgs& args, int64_t n, const int64_t (&at)[3],
                              int64_t place, uint32_t key, int64_t lane, Floats* block) {
  const float* samples = static_cast<const float*>(args.samples);
  const int64_t width = args.lanes - lane;
  Points(args, n, at, true, [&](int64_t point, int64_t offset) {
    for (int64_t j = 0; j < args.merged; ++j) {
      const int64_t channel = j * args.lanes + lane;
      block[point * args.merged + j] =
          LoadUpTo<float>(samples + offset + channel, Min(width, args.c - channel));
    }
  });
  Transformed<true>(args, block);
  const int64_t values = args.sizes[0] * args.sizes[1] * args.sizes[2] * args.merged;
  Floats step = {}, bad = {};
  for (int64_t k = 0; k < values; ++k) bad += block[k] * 0.f;
  for (int64_t m = 0; m < args.members; ++m) {
    const PackMember& member = args.layout[m];
    const Floats x = block[member.value];
    const float scale = args.limits[m];
    const Floats size = (Floats)((Ints)x & 0x7FFFFFFF) * scale;
    step = Select(size > step, size, step);
  }
  step = Select((step > 0.f) & (step < 0x1p-100f), Floats{} + 0x1p-100f, step);
  Word header = ((Word)step + 0x7FFFFu) >> 19;
  const Ints broken = (bad != bad) | (Ints)(header >= 0xFF0u);
  header = (Word)((broken & (Ints)(Word{} + kNotANumber)) | (~broken & (Ints)header));
  step = (Floats)(header << 19);
  const Floats inverse = 1.f / Select(step > 0.f, step, Floats{} + 1.f);
  const Word first = FirstBits(args, key, place, lane);
  float* out =
      static_cast<float*>(args.words) +
      ((n * args.counts[0] * args.counts[1] * args.counts[2] + place) * args.n_words) * args.lanes +
      lane;
  int64_t m = 0;
  for (int64_t w = 0; w < args.n_words; ++w) {
    Word word = w == 0 ? header : Word{};
    for (; m < args.members && args.layout[m].word == w; ++m) {
      const PackMember& member = args.layout[m];
      const float half = static_cast<float>(1u << member.width >> 1), top = 2 * half - 0.5f;
      const Word bits = first + kGolden * static_cast<uint32_t>(member.value + 1);
      Floats t = block[member.value] * inverse + (Fraction(bits) + (half - 0.5f));
      t = Select(t > 0.f, t, Floats{});
      t = Select(t < top, t, Floats{} + top);
      word |= (Word) __builtin_convertvector(t, Ints) << member.shift;
    }
    StoreUpTo<float>(out + w * args.lanes, (Floats)word, width);
  }
}

BANDJAX_INLINE void UnpackBlock(const PackArgs& args, int64_t n, const int64_t (&at)[3],
                                int64_t place, uint32_t key, int64_t lane, Floats* block) {
  float* samples = static_cast<float*>(args.samples);
  const int64_t width = args.lanes - lane;
  const int64_t values = args.sizes[0] * args.sizes[1] * args.sizes[2] * args.merged;
  const float* in =
      static_cast<const float*>(args.words) +
      ((n * args.counts[0] * args.counts[1] * args.counts[2] + place) * args.n_words) * args.lanes +
      lane;
  for (int64_t k = 0; k < values; ++k) block[k] = Floats{};
  const Word first = FirstBits(args, key, place, lane);
  Floats step = {};
  int64_t m = 0;
  for (int64_t w = 0; w < args.n_words; ++w) {
    const Word word = (Word)LoadUpTo<float>(in + w * args.lanes, width);
    if (w == 0) step = (Floats)((word & kNotANumber) << 19);
    for (; m < args.members && args.layout[m].word == w; ++m) {
      const PackMember& member = args.layout[m];
      const uint32_t all = (1u << member.width) - 1;
      const float half = static_cast<float>(1u << member.width >> 1);
      const Word bits = first + kGolden * static_cast<uint32_t>(member.value + 1);
      const Floats code = __builtin_convertvector((Ints)((word >> member.shift) & all), Floats);
      block[member.value] = (code - (Fraction(bits) + (half - 1.f))) * step;
    }
  }
  // A block that is no number is one as a whole.
  for (int64_t k = 0; k < values; ++k) block[k] += step * 0.f;
  Transformed<false>(args, block);
  Points(args, n, at, false, [&](int64_t point, int64_t offset) {
    for (int64_t j = 0; j < args.merged; ++j) {
      const int64_t channel = j * args.lanes + lane;
      StoreUpTo<float>(samples + offset + channel, block[point * args.merged + j],
                       Min(width, args.c - channel));
    }
  });
}

}  // namespace

template <bool kPack>
void PackTyped(const PackArgs& args, Pool* pool) {
  if (args.n == 0 || args.c == 0) return;
  const int64_t rows = args.counts[1] * args.counts[2];
  uint32_t* keys = static_cast<uint32_t*>(args.keys);
  ParallelFor(pool, args.n * args.counts[0], [&](int64_t task) {
    const int64_t n = task / args.counts[0], slab = task % args.counts[0];
    uint32_t key = 0;
    if constexpr (kPack) {
      const int64_t points = args.shape[0] * args.shape[1] * args.shape[2];
      const uint32_t* bits = static_cast<const uint32_t*>(args.samples) + n * points * args.c;
      for (int64_t i = 0; i < args.c; ++i) key += bits[i];
      key = Mixed(key);
      if (slab == 0) keys[n] = key;
    } else {
      key = keys[n];
    }
    alignas(64) Floats block[kPackValues];
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at[3] = {slab, row / args.counts[2], row % args.counts[2]};
      for (int64_t lane = 0; lane < args.lanes; lane += kLanes<float>) {
        if constexpr (kPack) {
          PackBlock(args, n, at, slab * rows + row, key, lane, block);
        } else {
          UnpackBlock(args, n, at, slab * rows + row, key, lane, block);
        }
      }
    }
  });
}

// Booleans (n, m) and words (n, ceil(m / 32)): a word is a column of 32 rows.
template <bool kPack>
void BitsTyped(const BitsArgs& args, Pool* pool) {
  constexpr int kLane = kLanes<float>;
  const int64_t width = CeilDiv(args.m, 32), chunks = CeilDiv(width, kLane);
  constexpr int64_t kChunks = 64;  // of a task
  const int64_t parts = CeilDiv(chunks, kChunks);
  ParallelFor(pool, args.n * parts, [&](int64_t task) {
    const int64_t n = task / parts, part = task % parts;
    uint8_t* flags = static_cast<uint8_t*>(args.flags) + n * args.m;
    float* words = static_cast<float*>(args.words) + n * width;
    for (int64_t i = part * kChunks; i < Min(chunks, (part + 1) * kChunks); ++i) {
      const int64_t column = i * kLane, count = Min(width - column, kLane);
      Word word = {};
      if constexpr (!kPack) word = (Word)LoadUpTo<float>(words + column, count);
      for (int64_t row = 0; row < 32; ++row) {
        uint8_t* at = flags + row * width + column;
        const int64_t there = Min(count, args.m - row * width - column);
        if (there <= 0) break;
        Bytes bytes = {};
        if constexpr (kPack) {
          if (there == kLane) {
            __builtin_memcpy(&bytes, at, sizeof bytes);
          } else {
            for (int64_t k = 0; k < there; ++k) bytes[k] = at[k];
          }
          word |= __builtin_convertvector(bytes, Word) << static_cast<uint32_t>(row);
        } else {
          bytes = __builtin_convertvector((word >> static_cast<uint32_t>(row)) & 1u, Bytes);
          if (there == kLane) {
            __builtin_memcpy(at, &bytes, sizeof bytes);
          } else {
            for (int64_t k = 0; k < there; ++k) at[k] = bytes[k];
          }
        }
      }
      if constexpr (kPack) StoreUpTo<float>(words + column, (Floats)word, count);
    }
  });
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_PACK_H_
