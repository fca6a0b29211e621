// The truncated transform of both axes in one kernel.
//
// Analysis and synthesis are two passes of the same shape, each a product with a table of cosines
// and sines along one axis. A thread owns one column of the batch, (n, c), so that neighbouring
// threads touch neighbouring channels, and a warp 32 of them:
//
//   first pass    for every line and every near index: sums over steps     -> shared memory
//   second pass   for every near index and every far index: sums over lines -> global memory
//
//               near                 line               step               far
//   analysis    u1                   pair of rows       pair of samples    u0
//   synthesis   pair of rows         u1                 u0                 pair of samples
//
// A "pair" is samples j and n-1-j, whose positions are opposite: their sum meets cosines alone and
// their difference sines alone, which halves the multiply-adds. In both passes a step is four
// numbers, of which two meet a cosine and two meet the sine of the same angle. A block has a
// chunk of near indices and a range of far ones; it walks over lines, and steps, in chunks that
// fit in shared memory, so that every size works.

#ifndef BANDJAX_FFI_CUDA_TRANSFORM_H_
#define BANDJAX_FFI_CUDA_TRANSFORM_H_

#include "block.h"
#include "numbers.h"

namespace bandjax::cuda {

struct TransformParams {
  const void* x;  // T[N,H,W,C]; written by the synthesis
  const float* table0;
  const float* table1;
  const void* re;  // S[K0,K1,N,C]; written by the analysis
  const void* im;
  int64_t columns;  // N * C
  int C, H, W, U0, U1, K0, K1;
  // The two passes, in the words of the table above.
  int near, lines, steps, far;
  // How they are cut: near and far indices of a block, lines and steps in shared memory at a time.
  int near_chunk, far_chunk, line_chunk, step_chunk;
};

constexpr int kFarTile = 8;
constexpr int kTransformThreads = 256;

// Shared memory, in floats: what the first pass made, and the tables of both passes.
BANDJAX_BOTH int MiddleFloats(const TransformParams& p) {
  return p.line_chunk * p.near_chunk * 4 * 32;
}
BANDJAX_BOTH int FarPadded(const TransformParams& p) {
  return CeilDiv(p.far_chunk, kFarTile) * kFarTile;
}
BANDJAX_BOTH int TransformFloats(const TransformParams& p, int near_tile) {
  return MiddleFloats(p) + p.line_chunk * 2 * FarPadded(p) +
         p.step_chunk * 2 * CeilDiv(p.near_chunk, near_tile) * near_tile;
}

// acc[0], acc[2] += (d[0], d[2]) * cosine; acc[1], acc[3] += (d[1], d[3]) * sine, for a tile of
// kTile angles. `row` holds the tile's cosines and, `sines` floats on, its sines.
template <int kTile>
BANDJAX_DEVICE void Accumulate(float (&acc)[4][kTile], const float (&d)[4], const float* row,
                               int sines) {
  // One load for several numbers: the copy of an aligned struct.
  struct alignas(kTile >= 4 ? 16 : 4 * kTile) Tile {
    float v[kTile];
  };
  const Tile cosine = *reinterpret_cast<const Tile*>(row);
  const Tile sine = *reinterpret_cast<const Tile*>(row + sines);
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    acc[0][i] += d[0] * cosine.v[i];
    acc[1][i] += d[1] * sine.v[i];
    acc[2][i] += d[2] * cosine.v[i];
    acc[3][i] += d[3] * sine.v[i];
  }
}

// Row u of a table with n samples: cosines in rows 0..U, sines of 1..U below; sin(0) is not stored.
BANDJAX_DEVICE float TableEntry(const float* table, int U, int n, int u, int pair, bool sine) {
  const int pairs = (n + 1) / 2;
  if (!sine) return table[int64_t{u} * pairs + pair];
  return u == 0 ? 0.0f : table[(int64_t{U} + u) * pairs + pair];
}

template <class T, class S>
struct Analysis {
  BANDJAX_DEVICE static float FirstEntry(const TransformParams& p, int near, int step, bool sine) {
    return TableEntry(p.table1, p.U1, p.W, near, step, sine);
  }
  BANDJAX_DEVICE static float SecondEntry(const TransformParams& p, int far, int line, bool sine) {
    return TableEntry(p.table0, p.U0, p.H, far, line, sine);
  }

  // Rows h and H-1-h of one column.
  struct Line {
    const T* row;
    const T* opposite;
    int C, W;
    bool paired;

    BANDJAX_DEVICE Line(const TransformParams& p, int64_t column, int line) {
      const int64_t n = column / p.C, c = column % p.C;
      const T* first = static_cast<const T*>(p.x) + n * p.H * p.W * p.C + c;
      const int other = p.H - 1 - line;
      row = first + int64_t{line} * p.W * p.C;
      opposite = first + int64_t{other} * p.W * p.C;
      C = p.C, W = p.W, paired = other != line;
    }

    // Sum and difference of samples j and W-1-j, in both rows.
    BANDJAX_DEVICE void Load(int step, float (&d)[4]) const {
      const int64_t at = int64_t{step} * C, mirrored = int64_t{W - 1 - step} * C;
      const bool middle = at == mirrored;
      Fold(ToFloat(row[at]), middle ? 0.0f : ToFloat(row[mirrored]), middle, d[0], d[1]);
      if (paired) {
        Fold(ToFloat(opposite[at]), middle ? 0.0f : ToFloat(opposite[mirrored]), middle, d[2],
             d[3]);
      } else {
        d[2] = d[3] = 0.0f;
      }
    }

    BANDJAX_DEVICE static void Fold(float a, float b, bool middle, float& even, float& odd) {
      even = a + b;
      odd = middle ? 0.0f : a - b;
    }

    // (cosine, sine sums of row h, of row H-1-h) to the even and odd part of the pair of rows.
    BANDJAX_DEVICE void Finish(const float (&acc)[4], float (&middle)[4]) const {
      middle[0] = acc[0] + acc[2];
      middle[1] = paired ? acc[0] - acc[2] : 0.0f;
      middle[2] = acc[1] + acc[3];
      middle[3] = paired ? acc[1] - acc[3] : 0.0f;
    }
  };

  // acc = cc, sc, cs, ss at (u0, u1), the first letter that of axis 0.
  BANDJAX_DEVICE static void Write(const TransformParams& p, int64_t column, int near, int far,
                                   const float (&acc)[4]) {
    S* re = static_cast<S*>(const_cast<void*>(p.re));
    S* im = static_cast<S*>(const_cast<void*>(p.im));
    int64_t at = (int64_t{far} * p.K1 + near) * p.columns + column;
    Store(re + at, acc[0] - acc[3]);
    Store(im + at, -(acc[2] + acc[1]));
    if (far == 0 || 2 * far == p.K0) return;  // No partner: the mean, or Nyquist stored once.
    at = (int64_t{p.K0 - far} * p.K1 + near) * p.columns + column;
    Store(re + at, acc[0] + acc[3]);
    Store(im + at, acc[1] - acc[2]);
  }
};

template <class T, class S>
struct Synthesis {
  BANDJAX_DEVICE static float FirstEntry(const TransformParams& p, int near, int step, bool sine) {
    return TableEntry(p.table0, p.U0, p.H, step, near, sine);
  }
  BANDJAX_DEVICE static float SecondEntry(const TransformParams& p, int far, int line, bool sine) {
    return TableEntry(p.table1, p.U1, p.W, line, far, sine);
  }

  // Frequencies (+-u0, u1) of one column, for every u0.
  struct Line {
    const S* re;
    const S* im;
    int64_t stride;
    int K0;

    BANDJAX_DEVICE Line(const TransformParams& p, int64_t column, int line) {
      const int64_t first = line * p.columns + column;
      re = static_cast<const S*>(p.re) + first;
      im = static_cast<const S*>(p.im) + first;
      stride = p.K1 * p.columns;
      K0 = p.K0;
    }

    // cc, sc, cs, ss at (u0, u1).
    BANDJAX_DEVICE void Load(int step, float (&d)[4]) const {
      const bool alone = step == 0 || 2 * step == K0;
      const int64_t plus = step * stride, minus = (K0 - step) * stride;
      const float re_plus = ToFloat(re[plus]), im_plus = ToFloat(im[plus]);
      const float re_minus = alone ? 0.0f : ToFloat(re[minus]);
      const float im_minus = alone ? 0.0f : ToFloat(im[minus]);
      d[0] = re_plus + re_minus;
      d[1] = im_minus - im_plus;
      d[2] = -(im_plus + im_minus);
      d[3] = re_minus - re_plus;
    }

    // (even, odd sum that meets cosines of axis 1, and that meets sines) to
    // (cosine, sine sums of row h, of row H-1-h).
    BANDJAX_DEVICE void Finish(const float (&acc)[4], float (&middle)[4]) const {
      middle[0] = acc[0] + acc[1];
      middle[1] = acc[2] + acc[3];
      middle[2] = acc[0] - acc[1];
      middle[3] = acc[2] - acc[3];
    }
  };

  // acc = the even and the odd part along axis 1 of row h, and of row H-1-h.
  BANDJAX_DEVICE static void Write(const TransformParams& p, int64_t column, int near, int far,
                                   const float (&acc)[4]) {
    const int64_t n = column / p.C, c = column % p.C;
    T* y = static_cast<T*>(const_cast<void*>(p.x)) + n * p.H * p.W * p.C + c;
    const int w = p.W - 1 - far, h = p.H - 1 - near;
    T* row = y + int64_t{near} * p.W * p.C;
    Store(row + int64_t{far} * p.C, acc[0] + acc[1]);
    if (w != far) Store(row + int64_t{w} * p.C, acc[0] - acc[1]);
    if (h == near) return;
    row = y + int64_t{h} * p.W * p.C;
    Store(row + int64_t{far} * p.C, acc[2] + acc[3]);
    if (w != far) Store(row + int64_t{w} * p.C, acc[2] - acc[3]);
  }
};

// kAllLines: whether every line fits in shared memory, so that the first pass is over before the
// second begins and their sums need not be in registers at the same time.
template <class Ends, int kNearTile, bool kAllLines>
struct TransformBody {
  using Params = TransformParams;
  using Line = typename Ends::Line;
  static constexpr int kThreads = kTransformThreads;
  // As many as leave enough registers: no variant spills.
  static constexpr int kBlocksPerProcessor = kAllLines && kNearTile < 8 ? 3 : 2;

  BANDJAX_DEVICE static void Run(const Params& p, Block& block) {
    const int lane = block.Thread() & 31, warp = block.Thread() >> 5;
    const int warps = block.Threads() >> 5;
    const int near_chunks = CeilDiv(p.near, p.near_chunk);
    const int far_chunks = CeilDiv(p.far, p.far_chunk);
    int64_t index = block.Index();
    // Blocks that read the same columns follow each other: the second finds them in the cache.
    const int near0 = static_cast<int>(index % near_chunks) * p.near_chunk;
    index /= near_chunks;
    const int far0 = static_cast<int>(index % far_chunks) * p.far_chunk;
    const int64_t column = index / far_chunks * 32 + lane;
    const bool inside = column < p.columns;
    const int64_t safe_column = inside ? column : p.columns - 1;
    const int near_count = Min(p.near_chunk, p.near - near0);
    const int far_count = Min(p.far_chunk, p.far - far0);

    float* middle = reinterpret_cast<float*>(block.Shared());         // [line][near][4][32]
    float* far_table = middle + MiddleFloats(p);                      // [line][cosine, sine][far]
    float* near_table = far_table + p.line_chunk * 2 * FarPadded(p);  // [step][cos, sin][near]

    if (kAllLines) {
      StageFarTable(p, block, far0, far_count, 0, p.lines, far_table);
      FirstPass(p, block, safe_column, near0, near_count, 0, p.lines, middle, near_table);
    }
    const int tasks = near_count * CeilDiv(far_count, kFarTile);
    for (int round = 0; round < tasks; round += warps) {
      const int task = round + warp;
      const int near = task % near_count, far = task / near_count * kFarTile;
      const float* from = middle + near * 4 * 32 + lane;
      float acc[4][kFarTile] = {};
      if (kAllLines) {
        if (task >= tasks) break;
        SecondPass(p, from, near_count, p.lines, far_table + far, acc);
      } else {
        for (int line0 = 0; line0 < p.lines; line0 += p.line_chunk) {
          const int lines = Min(p.line_chunk, p.lines - line0);
          block.Sync();  // The previous chunk has been used.
          StageFarTable(p, block, far0, far_count, line0, lines, far_table);
          FirstPass(p, block, safe_column, near0, near_count, line0, lines, middle, near_table);
          if (task < tasks) SecondPass(p, from, near_count, lines, far_table + far, acc);
        }
      }
      if (task >= tasks || !inside) continue;
#pragma unroll
      for (int i = 0; i < kFarTile; ++i) {
        const float sums[4] = {acc[0][i], acc[1][i], acc[2][i], acc[3][i]};
        if (far + i < far_count) Ends::Write(p, column, near0 + near, far0 + far + i, sums);
      }
    }
  }

  BANDJAX_DEVICE static void StageFarTable(const Params& p, Block& block, int far0, int far_count,
                                           int line0, int lines, float* table) {
    const int padded = FarPadded(p);
    for (int i = block.Thread(); i < lines * 2 * padded; i += block.Threads()) {
      const int far = i % padded, line = i / padded / 2;
      const bool sine = i / padded % 2;
      table[i] = far < far_count ? Ends::SecondEntry(p, far0 + far, line0 + line, sine) : 0.0f;
    }
  }

  BANDJAX_DEVICE static void SecondPass(const Params& p, const float* from, int near_count,
                                        int lines, const float* table, float (&acc)[4][kFarTile]) {
    const int padded = FarPadded(p);
    for (int line = 0; line < lines; ++line) {
      const float* at = from + line * near_count * 4 * 32;
      const float d[4] = {at[0], at[32], at[64], at[96]};
      Accumulate<kFarTile>(acc, d, table + line * 2 * padded, padded);
    }
  }

  // Fills middle[line][near][4][32] for a chunk of lines, and leaves after a barrier.
  BANDJAX_DEVICE static void FirstPass(const Params& p, Block& block, int64_t column, int near0,
                                       int near_count, int line0, int lines, float* middle,
                                       float* table) {
    const int lane = block.Thread() & 31, warp = block.Thread() >> 5;
    const int warps = block.Threads() >> 5;
    const int tiles = CeilDiv(near_count, kNearTile), padded = tiles * kNearTile;
    for (int step0 = 0; step0 < p.steps; step0 += p.step_chunk) {
      const int steps = Min(p.step_chunk, p.steps - step0);
      if (step0 > 0) block.Sync();  // The previous chunk of the table has been used.
      for (int i = block.Thread(); i < steps * 2 * padded; i += block.Threads()) {
        const int near = i % padded, step = i / padded / 2;
        const bool sine = i / padded % 2;
        table[i] = near < near_count ? Ends::FirstEntry(p, near0 + near, step0 + step, sine) : 0.0f;
      }
      block.Sync();
      for (int task = warp; task < lines * tiles; task += warps) {
        const int near = task % tiles * kNearTile, line = task / tiles;
        const Line ends(p, column, line0 + line);
        float acc[4][kNearTile] = {};
#pragma unroll 2
        for (int step = 0; step < steps; ++step) {
          float d[4];
          ends.Load(step0 + step, d);
          Accumulate<kNearTile>(acc, d, table + step * 2 * padded + near, padded);
        }
#pragma unroll
        for (int i = 0; i < kNearTile; ++i) {
          if (near + i >= near_count) continue;
          const float sums[4] = {acc[0][i], acc[1][i], acc[2][i], acc[3][i]};
          float parts[4];
          ends.Finish(sums, parts);
          float* at = middle + ((line * near_count + near + i) * 4) * 32 + lane;
#pragma unroll
          for (int part = 0; part < 4; ++part) {
            // The same thread comes back for every chunk of steps: no barrier between.
            at[part * 32] = step0 == 0 ? parts[part] : at[part * 32] + parts[part];
          }
        }
      }
    }
    block.Sync();
  }
};

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_TRANSFORM_H_
