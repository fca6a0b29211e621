// Exact convolution of a map in one pass, window by window.
//
// The outputs are cut into tiles, and the window of inputs that a tile needs is convolved on a
// circle just large enough: overlap-save. A group of windows is transformed, multiplied by the
// filter's spectrum and transformed back while all of it lies in the second-level cache of one
// core; of the maps each number is read once, or little more often, and written once:
//
//   inputs --Analyse--> x (frequency, window, channel) --product--> y --Synthesise--> outputs
#ifndef BANDJAX_FFI_CPU_WINDOWS_H_
#define BANDJAX_FFI_CPU_WINDOWS_H_

#include "window_filter.h"

namespace bandjax {
namespace BANDJAX_ISA {

// Computes in A; maps are stored in T.
template <typename A, typename T>
struct Windows : WindowFilter<A, T> {
  using Base = WindowFilter<A, T>;
  using Base::Analyse, Base::args, Base::columns, Base::depth, Base::depthwise, Base::FilterAt;
  using Base::FilterNumbers, Base::group, Base::groups, Base::in, Base::kLane, Base::out;
  using Base::panels, Base::points, Base::WorkspaceBytes, Base::ReadTaps, Base::ScratchBytes;
  using Base::SideOf, Base::Synthesise, Base::TakeWorkspace, Base::TakeScratch, Base::taps;
  using Base::TransformFilter, Base::vectors;
  using Base::width, Base::windows, Base::x_padded, Base::x_row, Base::y_padded, Base::y_row;
  using typename Base::Scratch;
  using typename Base::Side;

  explicit Windows(const WindowArgs& all) : Base(all) {}

  // A tile of complex rows times a panel: rows of the left factor hold `depth` real parts and,
  // `x_im` on, the imaginary ones.
  template <int kRows, int kVectors>
  BANDJAX_INLINE void ProductTile(const A* x, int64_t ldx, int64_t x_im, const A* w, A* y,
                                  int64_t ldy, int64_t y_im, int64_t valid) const {
    constexpr int64_t kWidth = kVectors * kLane;
    Vec<A> re[kRows][kVectors] = {}, im[kRows][kVectors] = {};
    for (int64_t k = 0; k < depth; ++k, w += 2 * kWidth) {
      Vec<A> w_re[kVectors], w_im[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        w_re[v] = Load<A>(w + v * kLane), w_im[v] = Load<A>(w + kWidth + v * kLane);
      }
#pragma GCC unroll 12
      for (int m = 0; m < kRows; ++m) {
        const A a = x[m * ldx + k], b = x[m * ldx + x_im + k];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          re[m][v] += a * w_re[v];
          im[m][v] += a * w_im[v];
          re[m][v] -= b * w_im[v];
          im[m][v] += b * w_re[v];
        }
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        StoreUpTo<A>(y + m * ldy + v * kLane, re[m][v], valid - v * kLane);
        StoreUpTo<A>(y + m * ldy + y_im + v * kLane, im[m][v], valid - v * kLane);
      }
    }
  }

  template <int kVectors, int kRows = BANDJAX_REGISTERS / (2 * kVectors)>
  BANDJAX_INLINE void ProductTiles(int64_t rows, const A* x, int64_t ldx, int64_t x_im, const A* w,
                                   A* y, int64_t ldy, int64_t y_im, int64_t valid) const {
    for (; rows >= kRows; rows -= kRows, x += kRows * ldx, y += kRows * ldy) {
      ProductTile<kRows, kVectors>(x, ldx, x_im, w, y, ldy, y_im, valid);
    }
    if constexpr (kRows > 1) {
      ProductTiles<kVectors, kRows / 2>(rows, x, ldx, x_im, w, y, ldy, y_im, valid);
    }
  }

  // y = x w at every frequency, of so many windows.
  void Multiply(int64_t rows, const A* x, const A* filter, A* y) const {
    const int64_t ldx = x_row, ldy = y_row;
    for (int64_t point = 0; point < points; ++point, x += 2 * x_padded, y += 2 * y_padded) {
      if (depthwise) {
        MultiplyDepthwise(rows, x, filter + FilterAt(0, point, 0), y);
        continue;
      }
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t panel = 0; panel < panels; ++panel) {
          const A* w = filter + FilterAt(g, point, panel);
          const int64_t valid = columns - panel * width;
          const A* left = x + g * in;
          A* right = y + g * out + panel * width;
          if (vectors == 2) {
            ProductTiles<2>(rows, left, ldx, x_padded, w, right, ldy, y_padded, valid);
          } else {
            ProductTiles<1>(rows, left, ldx, x_padded, w, right, ldy, y_padded, valid);
          }
        }
      }
    }
  }

  void MultiplyDepthwise(int64_t rows, const A* x, const A* w, A* y) const {
    for (int64_t v = 0; v < y_padded; v += kLane) {
      const A* at = w + v / width * 2 * width + v % width;
      const Vec<A> w_re = Load<A>(at), w_im = Load<A>(at + width);
      for (int64_t m = 0; m < rows; ++m) {
        const A* from = x + m * x_row + v;
        A* to = y + m * y_row + v;
        const Vec<A> a = Load<A>(from), b = Load<A>(from + x_padded);
        Store<A>(to, a * w_re - b * w_im);
        Store<A>(to + y_padded, a * w_im + b * w_re);
      }
    }
  }

  void Convolve(Pool* pool) const {
    const Side inputs = SideOf(args.x, args.in, true), outputs = SideOf(args.y, args.out, false);
    A* filter = static_cast<A*>(pool->shared(pool, Arena::Bytes<A>(FilterNumbers())));
    TransformFilter(pool, filter);
    const bool stream = Streams(kLane * sizeof(T), args.n * args.axes[0].out * args.axes[1].out *
                                                       args.axes[2].out * args.out * sizeof(T));
    const int64_t all = CeilDiv(windows, group);
    int64_t next = 0;
    ParallelFor(pool, Min(pool->threads, all), [&](int64_t) {
      Arena arena(pool, ScratchBytes(inputs) + ScratchBytes(outputs) +
                            Arena::Bytes<A>(group * x_row) + Arena::Bytes<A>(group * y_row));
      const Scratch in_scratch = TakeScratch(&arena, inputs);
      const Scratch out_scratch = TakeScratch(&arena, outputs);
      A* x = arena.Take<A>(group * x_row);
      A* y = arena.Take<A>(group * y_row);
      for (;;) {
        const int64_t first = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) * group;
        if (first >= windows) break;
        const int64_t count = Min(group, windows - first);
        for (int64_t i = 0; i < count; ++i) {
          Analyse(inputs, first + i, in_scratch, x + i * x_row, 2 * x_padded);
        }
        Multiply(count, x, filter, y);
        for (int64_t i = 0; i < count; ++i) {
          Synthesise(outputs, first + i, out_scratch, y + i * y_row, 2 * y_padded, stream);
        }
      }
      EndStream(stream);
    });
  }

  // d (+)= sum over windows of x conj(y), a tile of input channels by a panel of output channels.
  template <int kRows, int kVectors>
  BANDJAX_INLINE void FilterTile(int64_t count, const A* x, const A* y, A* d, bool add) const {
    constexpr int64_t kWidth = kVectors * kLane;
    Vec<A> re[kRows][kVectors] = {}, im[kRows][kVectors] = {};
    if (add) {
#pragma GCC unroll 12
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          re[m][v] = Load<A>(d + m * 2 * kWidth + v * kLane);
          im[m][v] = Load<A>(d + (2 * m + 1) * kWidth + v * kLane);
        }
      }
    }
    for (int64_t k = 0; k < count; ++k, x += x_row, y += y_row) {
      Vec<A> y_re[kVectors], y_im[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        y_re[v] = Load<A>(y + v * kLane), y_im[v] = Load<A>(y + y_padded + v * kLane);
      }
#pragma GCC unroll 12
      for (int m = 0; m < kRows; ++m) {
        const A a = x[m], b = x[x_padded + m];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          re[m][v] += a * y_re[v];
          im[m][v] += b * y_re[v];
          re[m][v] += b * y_im[v];
          im[m][v] -= a * y_im[v];
        }
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        Store<A>(d + m * 2 * kWidth + v * kLane, re[m][v]);
        Store<A>(d + (2 * m + 1) * kWidth + v * kLane, im[m][v]);
      }
    }
  }

  template <int kVectors, int kRows = BANDJAX_REGISTERS / (2 * kVectors)>
  BANDJAX_INLINE void FilterTiles(int64_t rows, int64_t count, const A* x, const A* y, A* d,
                                  bool add) const {
    for (; rows >= kRows; rows -= kRows, x += kRows, d += kRows * 2 * kVectors * kLane) {
      FilterTile<kRows, kVectors>(count, x, y, d, add);
    }
    if constexpr (kRows > 1) FilterTiles<kVectors, kRows / 2>(rows, count, x, y, d, add);
  }

  void Correlate(int64_t count, const A* x, const A* y, A* d, bool add) const {
    for (int64_t point = 0; point < points; ++point, x += 2 * x_padded, y += 2 * y_padded) {
      if (depthwise) {
        CorrelateDepthwise(count, x, y, d + FilterAt(0, point, 0), add);
        continue;
      }
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t panel = 0; panel < panels; ++panel) {
          A* to = d + FilterAt(g, point, panel);
          const A *left = x + g * in, *right = y + g * out + panel * width;
          if (vectors == 2) {
            FilterTiles<2>(depth, count, left, right, to, add);
          } else {
            FilterTiles<1>(depth, count, left, right, to, add);
          }
        }
      }
    }
  }

  void CorrelateDepthwise(int64_t count, const A* x, const A* y, A* d, bool add) const {
    for (int64_t v = 0; v < y_padded; v += kLane) {
      A* to = d + v / width * 2 * width + v % width;
      Vec<A> re = {}, im = {};
      if (add) re = Load<A>(to), im = Load<A>(to + width);
      for (int64_t m = 0; m < count; ++m) {
        const A *left = x + m * x_row + v, *right = y + m * y_row + v;
        const Vec<A> a = Load<A>(left), b = Load<A>(left + x_padded);
        const Vec<A> c = Load<A>(right), e = Load<A>(right + y_padded);
        re += a * c + b * e;
        im += b * c - a * e;
      }
      Store<A>(to, re);
      Store<A>(to + width, im);
    }
  }

  // Whether spectra of parts are added, and not their taps: many taps take long to read.
  bool AddsSpectra(int64_t parts) const {
    constexpr int64_t kFewTaps = 16, kMostBytes = 64 << 20;
    const int64_t most = Max(args.axes[0].taps, Max(args.axes[1].taps, args.axes[2].taps));
    return parts > 1 && most > kFewTaps &&
           parts * static_cast<int64_t>(Arena::Bytes<A>(FilterNumbers())) <= kMostBytes;
  }

  // The filter's gradient, of x and the cotangent y. Its parts depend on the shapes alone, and so
  // does the order of all additions.
  void FilterGradient(Pool* pool) const {
    const Side inputs = SideOf(args.x, args.in, true), outputs = SideOf(args.y, args.out, false);
    const int64_t parts = Max(1, Min(16, windows / group));
    const bool spectra = AddsSpectra(parts);
    const int64_t numbers = spectra ? FilterNumbers() : taps * depth * args.out;
    A* result = static_cast<A*>(args.taps);
    A* partial = result;
    if (parts > 1) {
      partial = static_cast<A*>(pool->shared(pool, Arena::Bytes<A>(parts * numbers)));
    }
    ParallelFor(pool, parts, [&](int64_t part) {
      Arena arena(pool, ScratchBytes(inputs) + ScratchBytes(outputs) +
                            Arena::Bytes<A>(group * x_row) + Arena::Bytes<A>(group * y_row) +
                            Arena::Bytes<A>(spectra ? 0 : FilterNumbers()) + WorkspaceBytes());
      const Scratch in_scratch = TakeScratch(&arena, inputs);
      const Scratch out_scratch = TakeScratch(&arena, outputs);
      A* x = arena.Take<A>(group * x_row);
      A* y = arena.Take<A>(group * y_row);
      A* own = partial + part * numbers;
      A* d = spectra ? own : arena.Take<A>(FilterNumbers());
      const int64_t begin = windows * part / parts, end = windows * (part + 1) / parts;
      for (int64_t first = begin; first < end || first == begin; first += group) {
        const int64_t count = Min(group, end - first);
        for (int64_t i = 0; i < count; ++i) {
          Analyse(inputs, first + i, in_scratch, x + i * x_row, 2 * x_padded);
          Analyse(outputs, first + i, out_scratch, y + i * y_row, 2 * y_padded);
        }
        Correlate(count, x, y, d, first > begin);
      }
      if (spectra) return;
      const auto workspace = TakeWorkspace(&arena);
      for (int64_t row = 0; row < groups * depth; ++row) {
        ReadTaps(row / depth, row % depth, d, workspace, own);
      }
    });
    if (parts > 1) SumParts(pool, parts, numbers, partial, spectra ? partial : result);
    if (!spectra) return;
    ParallelFor(pool, groups * depth, [&](int64_t row) {
      Arena arena(pool, WorkspaceBytes());
      ReadTaps(row / depth, row % depth, partial, TakeWorkspace(&arena), result);
    });
  }

  static void SumParts(Pool* pool, int64_t parts, int64_t numbers, const A* partial, A* result) {
    constexpr int64_t kEach = 4096;
    ParallelFor(pool, CeilDiv(numbers, kEach), [&](int64_t task) {
      const int64_t end = Min(numbers, (task + 1) * kEach);
      for (int64_t at = task * kEach; at < end; at += kLane) {
        Vec<A> sum = {};
        for (int64_t part = 0; part < parts; ++part) {
          sum += LoadUpTo<A>(partial + part * numbers + at, end - at);
        }
        StoreUpTo<A>(result + at, sum, end - at);
      }
    });
  }
};

template <bool kGradient>
void WindowsTyped(const WindowArgs& args, Pool* pool) {
  const auto run = [&](const auto& windows) {
    if constexpr (kGradient) {
      windows.FilterGradient(pool);
    } else {
      windows.Convolve(pool);
    }
  };
  if (args.type == Type::kFloat64) {
    run(Windows<double, double>(args));
  } else if (args.map_type == Type::kBFloat16) {
    run(Windows<float, BFloat16>(args));
  } else {
    run(Windows<float, float>(args));
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_WINDOWS_H_
