// The multiply-sum and its adjoint, the input product: for each frequency a complex matrix product
// of a spectrum with the filter's spectrum, which is built in shared memory from the taps.
//
//   result[k, n, column] = sum over depth of a[k, n, depth] * v[k, depth, column]
//
//   multiply-sum    a = X, depth = input channels of a group, column = output channels, v = conj W
//   input product   a = Y, depth = output channels of a group, column = input channels,  v = W
//
// A block makes kFrequencies x (128 / kFrequencies) rows of the batch x 64 columns. Several
// frequencies share the taps that one block reads, so small batches fill the tile as well. It
// walks over the depth 16 at a time: spectra arrive by asynchronous copies, one step ahead,
// while the filter's spectrum of the current step is built.

#ifndef BANDJAX_FFI_CUDA_MULTIPLY_H_
#define BANDJAX_FFI_CUDA_MULTIPLY_H_

#include "block.h"
#include "fragments.h"
#include "numbers.h"

namespace bandjax::cuda {

struct ProductParams {
  const void* a_re;  // S[K, N, groups * depth]
  const void* a_im;
  const float* taps;   // [k0*k1, input, groups * output], input and output channels of a group
  const float* outer;  // [2, K0, k0]
  const float* inner;  // [2, K1, k1]
  float* re;           // [K, N, groups * width]
  float* im;
  int K0, K1, N, k0, k1, groups;
  int depth, width;   // The sum's channels and the result's, of a group.
  int input, output;  // The same two as the taps have them.
  bool copy_a;        // Whether spectra can be copied 16 bytes at a time.
  bool wide_taps;     // Whether taps can be read, and
  bool wide_result;   // results be written, as vectors.
};

enum class Contraction { kMultiplySum, kInputProduct };

constexpr int kProductThreads = 256;
constexpr int kProductRows = 128;
constexpr int kProductDepth = 16;
constexpr int kPhases = 1024;  // Complex numbers in shared memory, for taps x frequencies.

template <Contraction kContraction, class S, class Arithmetic, int kFrequencies>
struct ProductBody {
  using Params = ProductParams;
  static constexpr int kThreads = kProductThreads;
  static constexpr int kBlocksPerProcessor = 2;
  static constexpr bool kForward = kContraction == Contraction::kMultiplySum;
  static constexpr int kBatch = kProductRows / kFrequencies;
  static constexpr int kColumns = Arithmetic::kColumns;
  static constexpr int kTiles = kColumns / 2 / 8;  // Of 8 columns, in a warp's half of them.

  // Row lengths in shared memory, padded so that the lanes of a fragment load meet different
  // banks and rows start at multiples of 16 bytes.
  static constexpr int kAStride = kProductDepth + 16 / static_cast<int>(sizeof(S));
  static constexpr int kAPlane = kProductRows * kAStride;
  static constexpr int kAStage = 2 * kAPlane;
  // The filter's tile is [input][output] as the taps are: [depth][column], or [column][depth].
  static constexpr int kBRows = kForward ? kProductDepth : kColumns;
  static constexpr int kBColumns = kForward ? kColumns : kProductDepth;
  static constexpr int kBStride = kBColumns + (kForward ? 8 : 4);
  static constexpr int kBPlane = kBRows * kBStride;
  // Output channels for which a thread builds the filter's spectrum, loaded and stored at once.
  static constexpr int kOutputs = kBRows * kBColumns / kThreads;
  struct alignas(4 * kOutputs) Outputs {
    float v[kOutputs];
  };
  // Taps in flight while the filter's spectrum is built; more would spill registers.
  static constexpr int kTapsAhead = kFrequencies == 4 ? 2 : 3;
  static constexpr int kTapsAtATime = kPhases / kFrequencies;
  static constexpr size_t kABytes = 2 * kAStage * sizeof(S);
  static constexpr size_t kBBytes = 2 * kFrequencies * kBPlane * sizeof(float);
  static constexpr size_t kShared = kABytes + kBBytes + kPhases * 2 * sizeof(float);

  // Which part of the result a block makes.
  struct Tile {
    int frequency, batch, group, column;
  };

  BANDJAX_BOTH static int64_t Blocks(const Params& p) {
    return int64_t{CeilDiv(p.width, kColumns)} * p.groups * CeilDiv(p.N, kBatch) *
           CeilDiv(p.K0 * p.K1, kFrequencies);
  }

  // Neighbouring blocks share spectra, and whoever follows shares the taps, through the cache.
  BANDJAX_DEVICE static Tile TileOf(const Params& p, int64_t index) {
    const int columns = CeilDiv(p.width, kColumns), batches = CeilDiv(p.N, kBatch);
    Tile tile;
    tile.column = static_cast<int>(index % columns) * kColumns;
    index /= columns;
    tile.group = static_cast<int>(index % p.groups);
    index /= p.groups;
    tile.batch = static_cast<int>(index % batches) * kBatch;
    tile.frequency = static_cast<int>(index / batches) * kFrequencies;
    return tile;
  }

  BANDJAX_DEVICE static void Run(const Params& p, Block& block) {
    const Tile tile = TileOf(p, block.Index());
    S* a = reinterpret_cast<S*>(block.Shared());  // [2 stages][re, im][kProductRows][kAStride]
    float* b = reinterpret_cast<float*>(block.Shared() + kABytes);  // [frequency][re, im][..][..]
    float* phases = reinterpret_cast<float*>(block.Shared() + kABytes + kBBytes);
    const int lane = block.Thread() & 31, warp = block.Thread() >> 5;
    // A warp makes 32 rows x half the columns, of one frequency.
    const int row = (warp >> 1) * 32, column = (warp & 1) * kColumns / 2, frequency = row / kBatch;

    float re[2][kTiles][4] = {}, im[2][kTiles][4] = {};
    const bool few_taps = p.k0 * p.k1 <= kTapsAtATime;
    if (few_taps) FillPhases(p, block, tile, 0, p.k0 * p.k1, phases);
    LoadSpectra(p, block, tile, 0, a);
    block.CommitCopies();
    block.Sync();
    for (int depth = 0, stage = 0; depth < p.depth; depth += kProductDepth, stage ^= 1) {
      if (depth + kProductDepth < p.depth) {
        LoadSpectra(p, block, tile, depth + kProductDepth, a + (stage ^ 1) * kAStage);
      }
      block.CommitCopies();
      BuildFilter(p, block, tile, depth, few_taps, phases, b);
      block.template WaitForCopies<1>();
      block.Sync();
      MultiplyStep(block, lane, a + stage * kAStage + row * kAStride,
                   b + frequency * 2 * kBPlane + column * (kForward ? 1 : kBStride), re, im);
      block.Sync();
    }
    WriteTile(p, tile, lane, row, column, re, im);
  }

  // phases[tap][frequency] = outer * inner, conjugated for the multiply-sum; zero outside the box.
  BANDJAX_DEVICE static void FillPhases(const Params& p, Block& block, const Tile& tile, int tap0,
                                        int taps, float* phases) {
    for (int i = block.Thread(); i < taps * kFrequencies; i += block.Threads()) {
      const int tap = tap0 + i / kFrequencies, k = tile.frequency + i % kFrequencies;
      float re = 0.0f, im = 0.0f;
      if (k < p.K0 * p.K1) {
        const int o = k / p.K1 * p.k0 + tap / p.k1, j = k % p.K1 * p.k1 + tap % p.k1;
        const float ore = p.outer[o], oim = p.outer[int64_t{p.K0} * p.k0 + o];
        const float ire = p.inner[j], iim = p.inner[int64_t{p.K1} * p.k1 + j];
        re = ore * ire - oim * iim;
        im = ore * iim + oim * ire;
      }
      phases[2 * i] = re;
      phases[2 * i + 1] = kForward ? -im : im;
    }
  }

  BANDJAX_DEVICE static void LoadSpectra(const Params& p, Block& block, const Tile& tile, int depth,
                                         S* a) {
    if (p.copy_a) {
      LoadChunks<16 / static_cast<int>(sizeof(S))>(p, block, tile, depth, a);
    } else {
      LoadChunks<1>(p, block, tile, depth, a);
    }
  }

  // Loads kVector channels at a time: asynchronously if they are 16 bytes, else one by one.
  template <int kVector>
  BANDJAX_DEVICE static void LoadChunks(const Params& p, Block& block, const Tile& tile, int depth,
                                        S* a) {
    constexpr int kChunks = kProductDepth / kVector;
    // Unrolled, it would keep every address in a register.
#pragma unroll 1
    for (int i = block.Thread(); i < 2 * kProductRows * kChunks; i += kThreads) {
      const int c = i % kChunks * kVector, row = i / kChunks % kProductRows;
      const bool imaginary = i >= kProductRows * kChunks;
      const int k = tile.frequency + row / kBatch, n = tile.batch + row % kBatch;
      const S* from = static_cast<const S*>(imaginary ? p.a_im : p.a_re);
      const bool inside = k < p.K0 * p.K1 && n < p.N && depth + c < p.depth;
      if (inside) {
        from +=
            (int64_t{k} * p.N + n) * p.groups * p.depth + int64_t{tile.group} * p.depth + depth + c;
      }
      S* to = a + imaginary * kAPlane + row * kAStride + c;
      if (kVector > 1) {
        block.CopyAsync16(to, from, inside ? 16 : 0);
      } else {
        *to = inside ? *from : S{};
      }
    }
  }

  // b[frequency][re, im][input][output] = sum over taps of phase * tap, for one step of depth.
  BANDJAX_DEVICE static void BuildFilter(const Params& p, Block& block, const Tile& tile, int depth,
                                         bool few_taps, float* phases, float* b) {
    constexpr int kAcross = kBColumns / kOutputs;
    struct alignas(kFrequencies > 1 ? 16 : 8) Phase {
      float v[2 * kFrequencies];
    };
    const int i = block.Thread() / kAcross, o = block.Thread() % kAcross * kOutputs;
    const int input = i + (kForward ? depth : tile.column);
    const int output = o + (kForward ? tile.column : depth);
    const int row = p.groups * p.output;
    const float* from = p.taps + int64_t{input} * row + int64_t{tile.group} * p.output + output;
    const int64_t tap_stride = int64_t{p.input} * row;
    const int count = input < p.input ? Min(Max(p.output - output, 0), kOutputs) : 0;

    Outputs re[kFrequencies] = {}, im[kFrequencies] = {};
    const int all = p.k0 * p.k1;
    for (int tap0 = 0; tap0 < all; tap0 += kTapsAtATime) {
      const int taps = Min(kTapsAtATime, all - tap0);
      if (!few_taps) {
        if (tap0 > 0) block.Sync();  // The previous phases have been used.
        FillPhases(p, block, tile, tap0, taps, phases);
        block.Sync();
      }
#pragma unroll kTapsAhead
      for (int tap = 0; tap < taps; ++tap) {
        const Outputs w = ReadTaps(from + (tap0 + tap) * tap_stride, count, p.wide_taps);
        const Phase phase = reinterpret_cast<const Phase*>(phases)[tap];
#pragma unroll
        for (int f = 0; f < kFrequencies; ++f) {
#pragma unroll
          for (int j = 0; j < kOutputs; ++j) {
            re[f].v[j] += phase.v[2 * f] * w.v[j];
            im[f].v[j] += phase.v[2 * f + 1] * w.v[j];
          }
        }
      }
    }
#pragma unroll
    for (int f = 0; f < kFrequencies; ++f) {
      float* to = b + f * 2 * kBPlane + i * kBStride + o;
      *reinterpret_cast<Outputs*>(to) = re[f];
      *reinterpret_cast<Outputs*>(to + kBPlane) = im[f];
    }
  }

  // One tap of neighbouring output channels, of which the first `count` exist.
  BANDJAX_DEVICE static Outputs ReadTaps(const float* from, int count, bool wide) {
    if (wide && count == kOutputs) return *reinterpret_cast<const Outputs*>(from);
    Outputs w;
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) w.v[j] = j < count ? from[j] : 0.0f;
    return w;
  }

  BANDJAX_DEVICE static void MultiplyStep(Block& block, int lane, const S* a, const float* b,
                                          float (&re)[2][kTiles][4], float (&im)[2][kTiles][4]) {
    constexpr int kDown = kForward ? kBStride : 1, kAcross = kForward ? 1 : kBStride;
#pragma unroll
    for (int k0 = 0; k0 < kProductDepth; k0 += Arithmetic::kDepth) {
      typename Arithmetic::A a_re[2], a_im[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const S* from = a + i * 16 * kAStride + k0;
        a_re[i] = Arithmetic::LoadA(
            lane, [&](int row, int k) { return ToFloat(from[row * kAStride + k]); });
        a_im[i] = Arithmetic::LoadA(
            lane, [&](int row, int k) { return ToFloat(from[kAPlane + row * kAStride + k]); });
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const float* from = b + k0 * kDown + j * 8 * kAcross;
        const auto b_re = Arithmetic::LoadB(
            lane, [&](int k, int column) { return from[k * kDown + column * kAcross]; });
        const auto b_im = Arithmetic::LoadB(
            lane, [&](int k, int column) { return from[kBPlane + k * kDown + column * kAcross]; });
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          ComplexMultiplyAdd<Arithmetic, false>(block, re[i][j], im[i][j], a_re[i], a_im[i], b_re,
                                                b_im);
        }
      }
    }
  }

  BANDJAX_DEVICE static void WriteTile(const Params& p, const Tile& tile, int lane, int row,
                                       int column, const float (&re)[2][kTiles][4],
                                       const float (&im)[2][kTiles][4]) {
    const int k = tile.frequency + row / kBatch;
    if (k >= p.K0 * p.K1) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = tile.batch + row % kBatch + i * 16 + half * 8 + (lane >> 2);
        if (n >= p.N) continue;
        const int64_t first =
            (int64_t{k} * p.N + n) * p.groups * p.width + int64_t{tile.group} * p.width;
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          const int c = tile.column + column + j * 8 + 2 * (lane & 3);
          WritePair(p.re + first + c, p.width - c, p.wide_result, re[i][j][2 * half],
                    re[i][j][2 * half + 1]);
          WritePair(p.im + first + c, p.width - c, p.wide_result, im[i][j][2 * half],
                    im[i][j][2 * half + 1]);
        }
      }
    }
  }

  BANDJAX_DEVICE static void WritePair(float* at, int room, bool wide, float x, float y) {
    struct alignas(8) Two {
      float v[2];
    };
    if (wide && room >= 2) {
      *reinterpret_cast<Two*>(at) = {{x, y}};
    } else {
      if (room >= 1) at[0] = x;
      if (room >= 2) at[1] = y;
    }
  }
};

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_MULTIPLY_H_
