// Cosine transforms of small blocks in few bits, and booleans in bits: a pass over the array each.
//
// The mathematics and the layouts are those of bandjax/codecs. The lanes of a vector are channels.
#ifndef BANDJAX_FFI_CPU_PACK_H_
#define BANDJAX_FFI_CPU_PACK_H_

#include <cstring>

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {
namespace {

constexpr uint32_t kGolden = 0x9E3779B9u;
constexpr uint32_t kNotANumber = 0xFFF;
// Lanes are taken a cache line at a time: so many vectors. A block's values lie one after another,
// a line each.
constexpr int kLine = 64 / BANDJAX_BYTES;

using Floats = Vec<float>;
typedef int32_t Ints __attribute__((vector_size(BANDJAX_BYTES)));

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
  int64_t outer = 1, inner = args.sizes[0] * args.sizes[1] * args.sizes[2] * args.merged * kLine;
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
  const int64_t shape[3] = {args.shape[0], args.shape[1], args.shape[2]}, c = args.c;
  const int64_t sizes[3] = {args.sizes[0], args.sizes[1], args.sizes[2]};
  const int64_t first = place[2] * sizes[2];
  const int64_t there = repeat ? sizes[2] : Min(sizes[2], shape[2] - first);
  for (int64_t a = 0; a < sizes[0]; ++a) {
    const int64_t i = place[0] * sizes[0] + a;
    for (int64_t b = 0; b < sizes[1]; ++b) {
      const int64_t j = place[1] * sizes[1] + b;
      if (!repeat && (i >= shape[0] || j >= shape[1])) continue;
      const int64_t row = (n * shape[0] + Min(i, shape[0] - 1)) * shape[1] + Min(j, shape[1] - 1);
      const int64_t offset = (row * shape[2] + first) * c, point = (a * sizes[1] + b) * sizes[2];
      for (int64_t d = 0; d < there; ++d) {
        body(point + d, offset + Min(d, shape[2] - 1 - first) * c);
      }
    }
  }
}

// Of each vector of a line of lanes the bits that its noise is made of.
BANDJAX_INLINE void FirstBits(const PackArgs& args, uint32_t key, int64_t place, int64_t lane,
                              Word (&bits)[kLine]) {
  Word count;
  for (int i = 0; i < kLanes<float>; ++i) count[i] = static_cast<uint32_t>(i);
  for (int v = 0; v < kLine; ++v) {
    const int64_t first = place * args.lanes + lane + v * kLanes<float>;
    bits[v] = Mixed(count + (key + static_cast<uint32_t>(first)));
  }
}

BANDJAX_INLINE int64_t Values(const PackArgs& args) {
  return args.sizes[0] * args.sizes[1] * args.sizes[2] * args.merged;
}

BANDJAX_INLINE float* WordsOf(const PackArgs& args, int64_t n, int64_t place, int64_t lane) {
  const int64_t block = n * args.counts[0] * args.counts[1] * args.counts[2] + place;
  return static_cast<float*>(args.words) + block * args.n_words * args.lanes + lane;
}

// How far ahead the lanes lie that are next: of the same points, or of the block beside.
BANDJAX_INLINE int64_t NextLine(const PackArgs& args, int64_t lane) {
  const int64_t line = kLine * kLanes<float>;
  return lane + line < args.lanes ? line : args.sizes[2] * args.c - lane;
}

BANDJAX_INLINE void PackBlock(const PackArgs& args, int64_t n, const int64_t (&at)[3],
                              int64_t place, uint32_t key, int64_t lane, Floats* block) {
  const float* samples = static_cast<const float*>(args.samples);
  const int64_t width = args.lanes - lane, next = NextLine(args, lane);
  Points(args, n, at, true, [&](int64_t point, int64_t offset) {
    for (int64_t j = 0; j < args.merged; ++j) {
      __builtin_prefetch(samples + offset + j * args.lanes + lane + next);
      for (int v = 0; v < kLine; ++v) {
        const int64_t first = v * kLanes<float>, channel = j * args.lanes + lane + first;
        block[(point * args.merged + j) * kLine + v] =
            LoadUpTo<float>(samples + offset + channel, Min(width - first, args.c - channel));
      }
    }
  });
  Transformed<true>(args, block);
  // What is no number makes all coefficients so. Among bits of magnitudes it is the greatest.
  Ints greatest[kLine] = {};
  Floats step[kLine], bad[kLine] = {}, inverse[kLine];
  for (int64_t j = 0; j < args.merged; ++j) {
    for (int v = 0; v < kLine; ++v) bad[v] += block[j * kLine + v] * 0.f;
  }
  for (int64_t m = 0; m < args.members; ++m) {
    const float scale = args.limits[m];
    for (int v = 0; v < kLine; ++v) {
      const Ints size = (Ints)(block[args.layout[m].value * kLine + v] * scale) & 0x7FFFFFFF;
      greatest[v] = size > greatest[v] ? size : greatest[v];
    }
  }
  Word header[kLine], first[kLine];
  for (int v = 0; v < kLine; ++v) {
    step[v] = (Floats)greatest[v];
    step[v] = Select((step[v] > 0.f) & (step[v] < 0x1p-100f), Floats{} + 0x1p-100f, step[v]);
    header[v] = ((Word)step[v] + 0x7FFFFu) >> 19;
    const Ints broken = (bad[v] != bad[v]) | (Ints)(header[v] >= 0xFF0u);
    header[v] = (Word)((broken & (Ints)(Word{} + kNotANumber)) | (~broken & (Ints)header[v]));
    step[v] = (Floats)(header[v] << 19);
    inverse[v] = 1.f / Select(step[v] > 0.f, step[v], Floats{} + 1.f);
  }
  FirstBits(args, key, place, lane, first);
  float* out = WordsOf(args, n, place, lane);
  int64_t m = 0;
  for (int64_t w = 0; w < args.n_words; ++w) {
    Word word[kLine] = {};
    for (int v = 0; w == 0 && v < kLine; ++v) word[v] = header[v];
    for (; m < args.members && args.layout[m].word == w; ++m) {
      const PackMember& member = args.layout[m];
      const int32_t below = static_cast<int32_t>(1u << member.width >> 1);  // codes below zero
      const float least = static_cast<float>(-below), most = static_cast<float>(below) - 0.5f;
      const uint32_t own = kGolden * static_cast<uint32_t>(member.value + 1);
      for (int v = 0; v < kLine; ++v) {
        Floats t = block[member.value * kLine + v] * inverse[v] + (Fraction(first[v] + own) - 0.5f);
        t = t > least ? t : Floats{} + least;
        t = t < most ? t : Floats{} + most;
        // Rounded down before it is made positive, which would cost a wide code some of its bits.
        const Ints code = __builtin_convertvector(t, Ints);
        const Ints above = (Ints)(__builtin_convertvector(code, Floats) > t);  // -1 or 0
        word[v] |= (Word)(code + above + below) << member.shift;
      }
    }
    for (int v = 0; v < kLine; ++v) {
      const int64_t start = v * kLanes<float>;
      StoreUpTo<float>(out + w * args.lanes + start, (Floats)word[v], width - start);
    }
  }
}

BANDJAX_INLINE void UnpackBlock(const PackArgs& args, int64_t n, const int64_t (&at)[3],
                                int64_t place, uint32_t key, int64_t lane, Floats* block) {
  float* samples = static_cast<float*>(args.samples);
  const int64_t width = args.lanes - lane, values = Values(args);
  const float* in = WordsOf(args, n, place, lane);
  Word first[kLine];
  FirstBits(args, key, place, lane, first);
  Floats step[kLine];
  for (int v = 0; v < kLine; ++v) {
    const int64_t start = v * kLanes<float>;
    const Word header = (Word)LoadUpTo<float>(in + start, width - start) & kNotANumber;
    step[v] = (Floats)(header << 19);
  }
  // A block that is no number is one as a whole.
  for (int64_t k = 0; k < values; ++k) {
    for (int v = 0; v < kLine; ++v) block[k * kLine + v] = step[v] * 0.f;
  }
  int64_t m = 0;
  for (int64_t w = 0; w < args.n_words; ++w) {
    Word word[kLine];
    for (int v = 0; v < kLine; ++v) {
      const int64_t start = v * kLanes<float>;
      word[v] = (Word)LoadUpTo<float>(in + w * args.lanes + start, width - start);
    }
    for (; m < args.members && args.layout[m].word == w; ++m) {
      const PackMember& member = args.layout[m];
      const uint32_t all = (1u << member.width) - 1;
      const int32_t below = static_cast<int32_t>(1u << member.width >> 1);
      const uint32_t own = kGolden * static_cast<uint32_t>(member.value + 1);
      for (int v = 0; v < kLine; ++v) {
        const Ints code = (Ints)((word[v] >> member.shift) & all) - below;
        const Floats dither = Fraction(first[v] + own) - 1.f;
        block[member.value * kLine + v] =
            (__builtin_convertvector(code, Floats) - dither) * step[v];
      }
    }
  }
  Transformed<false>(args, block);
  Points(args, n, at, false, [&](int64_t point, int64_t offset) {
    for (int64_t j = 0; j < args.merged; ++j) {
      for (int v = 0; v < kLine; ++v) {
        const int64_t start = v * kLanes<float>, channel = j * args.lanes + lane + start;
        StoreUpTo<float>(samples + offset + channel, block[(point * args.merged + j) * kLine + v],
                         Min(width - start, args.c - channel));
      }
    }
  });
}

}  // namespace

template <bool kPack>
void PackTyped(const PackArgs& args, Pool* pool) {
  if (args.n == 0 || args.c == 0) return;
  // A task is a row of blocks, or a block where there is one row alone.
  const int64_t lines = args.counts[0] * args.counts[1];
  const int64_t row = lines == 1 ? 1 : args.counts[2], rows = lines * args.counts[2] / row;
  uint32_t* keys = static_cast<uint32_t*>(args.keys);
  ParallelFor(pool, args.n * rows, [&](int64_t task) {
    const int64_t n = task / rows, first = task % rows * row;
    uint32_t key = 0;
    if constexpr (kPack) {
      const int64_t points = args.shape[0] * args.shape[1] * args.shape[2];
      const uint32_t* bits = static_cast<const uint32_t*>(args.samples) + n * points * args.c;
      for (int64_t i = 0; i < args.c; ++i) key += bits[i];
      key = Mixed(key);
      if (first == 0) keys[n] = key;
    } else {
      key = keys[n];
    }
    alignas(64) Floats block[kPackValues * kLine];
    for (int64_t place = first; place < first + row; ++place) {
      const int64_t at[3] = {place / (args.counts[1] * args.counts[2]),
                             place / args.counts[2] % args.counts[1], place % args.counts[2]};
      for (int64_t lane = 0; lane < args.lanes; lane += kLanes<float> * kLine) {
        if constexpr (kPack) {
          PackBlock(args, n, at, place, key, lane, block);
        } else {
          UnpackBlock(args, n, at, place, key, lane, block);
        }
      }
    }
  });
}

// Booleans (n, m) and words (n, ceil(m / 32)): a word is a column of 32 rows. Many columns are
// taken at a time: rows may lie apart by a power of two, and of such a cache holds few.
template <bool kPack>
void BitsTyped(const BitsArgs& args, Pool* pool) {
  constexpr int64_t kColumns = 512;
  const int64_t width = CeilDiv(args.m, 32), parts = CeilDiv(width, kColumns);
  ParallelFor(pool, args.n * parts, [&](int64_t task) {
    const int64_t n = task / parts, column = task % parts * kColumns;
    const int64_t count = Min(width - column, kColumns);
    uint32_t* words = static_cast<uint32_t*>(args.words) + n * width + column;
    // Calls body(bit, first element, number of elements) for rows from 8 * byte on.
    const auto rows = [&](int64_t byte, auto body) {
      for (int64_t bit = 0; bit < 8; ++bit) {
        const int64_t first = (8 * byte + bit) * width + column;
        body(bit, n * args.m + first, Min(count, args.m - first));
      }
    };
    if (kPack && args.above_zero) {
      std::memset(words, 0, count * sizeof *words);
      const float* values = static_cast<const float*>(args.flags);
      for (int64_t byte = 0; byte < 4; ++byte) {
        rows(byte, [&](int64_t bit, int64_t first, int64_t there) {
          const uint32_t mask = 1u << (8 * byte + bit);
          for (int64_t i = 0; i < there; ++i) words[i] |= values[first + i] > 0.f ? mask : 0u;
        });
      }
      return;
    }
    uint8_t* flags = static_cast<uint8_t*>(args.flags);
    for (int64_t byte = 0; byte < 4; ++byte) {
      uint8_t plane[kColumns] = {};  // of each word one byte
      if constexpr (!kPack) {
        for (int64_t i = 0; i < count; ++i) plane[i] = static_cast<uint8_t>(words[i] >> 8 * byte);
      }
      rows(byte, [&](int64_t bit, int64_t first, int64_t there) {
        const uint8_t mask = static_cast<uint8_t>(1u << bit);
        uint8_t* at = flags + first;
        if constexpr (kPack) {
          for (int64_t i = 0; i < there; ++i) plane[i] |= at[i] ? mask : 0;
        } else {
          for (int64_t i = 0; i < there; ++i) at[i] = (plane[i] & mask) != 0;
        }
      });
      if constexpr (kPack) {
        for (int64_t i = 0; i < count; ++i) {
          const uint32_t bits = static_cast<uint32_t>(plane[i]) << 8 * byte;
          words[i] = byte ? words[i] | bits : bits;
        }
      }
    }
  });
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_PACK_H_
