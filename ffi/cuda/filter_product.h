// The filter product: the gradient with respect to the taps.
//
//   taps[t, c, o] = Re sum_k conj(outer inner)[k, t] D[k, c, o],
//   D[k, c, o] = sum_n X[k, n, c] conj Y[k, n, o]
//
// A block makes a tile of input channels x output channels x taps, over a share of the
// frequencies. For one frequency after another it makes D by the tensor cores and adds it to
// the taps, which stay in registers: D is never in memory. The shares are added by a second
// kernel in a fixed order, so that the result is the same every time. More than 9 taps are made 9
// at a time, and D as many times over.

#ifndef BANDJAX_FFI_CUDA_FILTER_PRODUCT_H_
#define BANDJAX_FFI_CUDA_FILTER_PRODUCT_H_

#include "block.h"
#include "filter_workspace.h"
#include "fragments.h"
#include "numbers.h"

namespace bandjax::cuda {

struct FilterParams {
  const void* x_re;  // S[K, N, groups * input]
  const void* x_im;
  const float* y_re;  // [K, N, groups * output]
  const float* y_im;
  const float* outer;  // [2, K0, k0]
  const float* inner;  // [2, K1, k1]
  float* parts;        // [splits, k0*k1, input, groups * output]
  int K0, K1, N, k0, k1, groups, input, output;
  int splits;
  bool copy_x, copy_y;  // Whether spectra can be copied 16 bytes at a time.
};

constexpr int kFilterThreads = 256;
constexpr int kFilterDepth = 16;  // Rows of the batch in shared memory at a time.

template <class S, class Arithmetic, int kTaps>
struct FilterBody {
  using Params = FilterParams;
  static constexpr int kThreads = kFilterThreads;
  static constexpr int kBlocksPerProcessor = 2;
  static constexpr int kRows = kFilterRows, kColumns = kFilterColumns;

  // [2 stages][re, im][batch][channel], rows padded so that the lanes of a fragment load meet
  // different banks.
  static constexpr int kXStride = kRows + 8;
  static constexpr int kYStride = kColumns + 8;
  static constexpr int kXPlane = kFilterDepth * kXStride;
  static constexpr int kYPlane = kFilterDepth * kYStride;
  static constexpr size_t kXBytes = 4 * kXPlane * sizeof(S);
  static constexpr size_t kYBytes = 4 * kYPlane * sizeof(float);
  static constexpr size_t kShared = kXBytes + kYBytes + 4 * kTaps * sizeof(float);

  struct Tile {
    int column, row, group, tap, split;
  };

  BANDJAX_BOTH static int64_t Blocks(const Params& p) {
    return int64_t{CeilDiv(p.output, kColumns)} * CeilDiv(p.input, kRows) * p.groups *
           CeilDiv(p.k0 * p.k1, kTaps) * p.splits;
  }

  BANDJAX_DEVICE static Tile TileOf(const Params& p, int64_t index) {
    const int columns = CeilDiv(p.output, kColumns), rows = CeilDiv(p.input, kRows);
    const int taps = CeilDiv(p.k0 * p.k1, kTaps);
    Tile tile;
    tile.column = static_cast<int>(index % columns) * kColumns, index /= columns;
    tile.row = static_cast<int>(index % rows) * kRows, index /= rows;
    tile.group = static_cast<int>(index % p.groups), index /= p.groups;
    tile.tap = static_cast<int>(index % taps) * kTaps, index /= taps;
    tile.split = static_cast<int>(index);
    return tile;
  }

  BANDJAX_DEVICE static void Run(const Params& p, Block& block) {
    const Tile tile = TileOf(p, block.Index());
    S* x = reinterpret_cast<S*>(block.Shared());
    float* y = reinterpret_cast<float*>(block.Shared() + kXBytes);
    // [odd frequency][tap][re, im]
    float* phases = reinterpret_cast<float*>(block.Shared() + kXBytes + kYBytes);
    const int lane = block.Thread() & 31, warp = block.Thread() >> 5;
    // A warp makes 16 x 16 of the tile: two instructions side by side.
    const int row = (warp & 1) * 16, column = (warp >> 1) * 16;

    const int share = CeilDiv(p.K0 * p.K1, p.splits);
    const int first = tile.split * share, last = Min(first + share, p.K0 * p.K1);
    const int batches = CeilDiv(p.N, kFilterDepth);

    float sums[kTaps][8] = {};
    LoadBoth(p, block, tile, first, 0, x, y);
    block.CommitCopies();
    int stage = 0;
    for (int k = first; k < last; ++k) {
      float re[2][4] = {}, im[2][4] = {};
      for (int batch = 0; batch < batches; ++batch, stage ^= 1) {
        const bool turn = batch + 1 == batches;
        if (!turn || k + 1 < last) {
          LoadBoth(p, block, tile, turn ? k + 1 : k, turn ? 0 : (batch + 1) * kFilterDepth,
                   x + (stage ^ 1) * 2 * kXPlane, y + (stage ^ 1) * 2 * kYPlane);
        }
        block.CommitCopies();
        // Slow threads may still read the phases of the previous frequency: those of odd ones
        // lie apart from those of even ones.
        if (batch == 0) FillPhases(p, block, tile, k, phases + k % 2 * 2 * kTaps);
        block.template WaitForCopies<1>();
        block.Sync();
        MultiplyStep(block, lane, x + stage * 2 * kXPlane + row, y + stage * 2 * kYPlane + column,
                     re, im);
        block.Sync();
      }
      AddToTaps(phases + k % 2 * 2 * kTaps, re, im, sums);
    }
    WriteTile(p, tile, lane, row, column, sums);
  }

  // phases[tap] = outer * inner at frequency k.
  BANDJAX_DEVICE static void FillPhases(const Params& p, Block& block, const Tile& tile, int k,
                                        float* phases) {
    const int tap = tile.tap + block.Thread();
    if (block.Thread() >= kTaps) return;
    float re = 0.0f, im = 0.0f;
    if (tap < p.k0 * p.k1) {
      const int o = k / p.K1 * p.k0 + tap / p.k1, j = k % p.K1 * p.k1 + tap % p.k1;
      const float ore = p.outer[o], oim = p.outer[int64_t{p.K0} * p.k0 + o];
      const float ire = p.inner[j], iim = p.inner[int64_t{p.K1} * p.k1 + j];
      re = ore * ire - oim * iim;
      im = ore * iim + oim * ire;
    }
    phases[2 * block.Thread()] = re;
    phases[2 * block.Thread() + 1] = im;
  }

  BANDJAX_DEVICE static void LoadBoth(const Params& p, Block& block, const Tile& tile, int k,
                                      int n0, S* x, float* y) {
    const S* x_re = static_cast<const S*>(p.x_re);
    const S* x_im = static_cast<const S*>(p.x_im);
    constexpr int kXVector = 16 / static_cast<int>(sizeof(S));
    if (p.copy_x) {
      LoadOne<kXVector, kRows, kXStride>(p, block, x_re, x_im, p.input, tile.group, tile.row, k, n0,
                                         x);
    } else {
      LoadOne<1, kRows, kXStride>(p, block, x_re, x_im, p.input, tile.group, tile.row, k, n0, x);
    }
    if (p.copy_y) {
      LoadOne<4, kColumns, kYStride>(p, block, p.y_re, p.y_im, p.output, tile.group, tile.column, k,
                                     n0, y);
    } else {
      LoadOne<1, kColumns, kYStride>(p, block, p.y_re, p.y_im, p.output, tile.group, tile.column, k,
                                     n0, y);
    }
  }

  // Loads kVector channels at a time: asynchronously if they are 16 bytes, else one by one.
  template <int kVector, int kAcross, int kStride, class V>
  BANDJAX_DEVICE static void LoadOne(const Params& p, Block& block, const V* re, const V* im,
                                     int channels, int group, int channel0, int k, int n0, V* to) {
    constexpr int kChunks = kAcross / kVector;
    // Unrolled, it would keep every address in a register.
#pragma unroll 1
    for (int i = block.Thread(); i < 2 * kFilterDepth * kChunks; i += kThreads) {
      const int c = i % kChunks * kVector, row = i / kChunks % kFilterDepth;
      const bool imaginary = i >= kFilterDepth * kChunks;
      const V* from = imaginary ? im : re;
      const bool inside = n0 + row < p.N && channel0 + c < channels;
      if (inside) {
        from += (int64_t{k} * p.N + n0 + row) * p.groups * channels + int64_t{group} * channels +
                channel0 + c;
      }
      V* at = to + imaginary * kFilterDepth * kStride + row * kStride + c;
      if (kVector > 1) {
        block.CopyAsync16(at, from, inside ? 16 : 0);
      } else {
        *at = inside ? *from : V{};
      }
    }
  }

  BANDJAX_DEVICE static void MultiplyStep(Block& block, int lane, const S* x, const float* y,
                                          float (&re)[2][4], float (&im)[2][4]) {
#pragma unroll
    for (int n = 0; n < kFilterDepth; n += Arithmetic::kDepth) {
      const auto a_re =
          Arithmetic::LoadA(lane, [&](int c, int k) { return ToFloat(x[(n + k) * kXStride + c]); });
      const auto a_im = Arithmetic::LoadA(
          lane, [&](int c, int k) { return ToFloat(x[kXPlane + (n + k) * kXStride + c]); });
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float* from = y + j * 8;
        const auto b_re =
            Arithmetic::LoadB(lane, [&](int k, int o) { return from[(n + k) * kYStride + o]; });
        const auto b_im = Arithmetic::LoadB(
            lane, [&](int k, int o) { return from[kYPlane + (n + k) * kYStride + o]; });
        // X conj Y.
        Arithmetic::MultiplyAdd(block, re[j], a_re, b_re);
        Arithmetic::MultiplyAdd(block, im[j], a_im, b_re);
        Arithmetic::MultiplyAdd(block, re[j], a_im, b_im);
        Arithmetic::MultiplyAdd(block, im[j], a_re, Arithmetic::Negative(b_im));
      }
    }
  }

  // sums[tap] += Re(conj(phase) D).
  BANDJAX_DEVICE static void AddToTaps(const float* phases, const float (&re)[2][4],
                                       const float (&im)[2][4], float (&sums)[kTaps][8]) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      const float phase_re = phases[2 * tap], phase_im = phases[2 * tap + 1];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums[tap][i] += phase_re * re[i / 4][i % 4] + phase_im * im[i / 4][i % 4];
      }
    }
  }

  BANDJAX_DEVICE static void WriteTile(const Params& p, const Tile& tile, int lane, int row,
                                       int column, const float (&sums)[kTaps][8]) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      if (tile.tap + tap >= p.k0 * p.k1) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int c = tile.row + row + (lane >> 2) + 8 * (i % 4 / 2);
        const int o = tile.column + column + 8 * (i / 4) + 2 * (lane & 3) + i % 2;
        if (c >= p.input || o >= p.output) continue;
        const int64_t part = int64_t{tile.split} * p.k0 * p.k1 + tile.tap + tap;
        p.parts[(part * p.input + c) * p.groups * p.output + int64_t{tile.group} * p.output + o] =
            sums[tap][i];
      }
    }
  }
};

struct ReduceParams {
  const float* parts;  // [splits, size]
  float* sum;          // [size]
  int64_t size;
  int splits;
};

// Adds the shares of the frequencies, always in the same order.
struct ReduceBody {
  using Params = ReduceParams;
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerProcessor = 4;

  BANDJAX_DEVICE static void Run(const Params& p, Block& block) {
    const int64_t i = block.Index() * kThreads + block.Thread();
    if (i >= p.size) return;
    float sum = 0.0f;
    for (int split = 0; split < p.splits; ++split) sum += p.parts[split * p.size + i];
    p.sum[i] = sum;
  }
};

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_FILTER_PRODUCT_H_
