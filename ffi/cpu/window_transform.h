// The transforms of windows.h: of one window between its map and a group's spectrum.
//
// The circle's frequencies are those of a real signal: of axis 0 the first half, of the others all,
// at place u or grid + u where u < 0. Signals are seen from the middle of their samples: then an
// even part meets cosines alone and an odd one sines alone, which halves the work.
#ifndef BANDJAX_FFI_CPU_WINDOW_TRANSFORM_H_
#define BANDJAX_FFI_CPU_WINDOW_TRANSFORM_H_

#include "epilogue.h"
#include "pairs.h"

namespace bandjax {
namespace BANDJAX_ISA {

// The next window's samples, fetched a few lines at a time while this one is transformed: its rows
// are too short for the processor to see them coming.
class Fetch {
 public:
  Fetch(const char* begin, int64_t bytes, int64_t rows1, int64_t stride1, int64_t rows0,
        int64_t stride0, int64_t calls)
      : begin_(begin),
        lines_(CeilDiv(bytes, kLine)),
        rows1_(rows1),
        stride1_(stride1),
        stride0_(stride0),
        left_(lines_ * rows1 * rows0),
        each_(CeilDiv(left_, Max(calls, 1))) {}
  BANDJAX_INLINE void Some() {
    for (int64_t i = 0; i < each_ && left_ > 0; ++i, --left_) {
      __builtin_prefetch(begin_ + row1_ * stride1_ + line_ * kLine);
      if (++line_ < lines_) continue;
      line_ = 0;
      if (++row1_ < rows1_) continue;
      row1_ = 0;
      begin_ += stride0_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* begin_;
  int64_t lines_, rows1_, stride1_, stride0_, left_, each_, line_ = 0, row1_ = 0;
};

// Computes in A; maps are stored in T.
template <typename A, typename T>
struct WindowTransform {
  static constexpr int64_t kLane = kLanes<A>;
  static constexpr int64_t kGroupBytes = 640 << 10;  // of a core's second-level cache, for spectra
  static constexpr int64_t kChunk = 2;               // vectors of channels transformed together

  const WindowArgs& args;
  const int64_t in = args.in / args.groups, out = args.out / args.groups;
  const bool depthwise = in == 1 && out == 1;
  // What is multiplied: a depthwise convolution has one input channel, and the others as lanes.
  const int64_t groups = depthwise ? 1 : args.groups;
  const int64_t depth = in, columns = depthwise ? args.out : out;
  const int64_t vectors = columns > kLane ? 2 : 1, width = vectors * kLane;
  const int64_t panels = CeilDiv(columns, width);
  const int64_t points = Kept(0) * Kept(1) * Kept(2);
  const int64_t taps = args.axes[0].taps * args.axes[1].taps * args.axes[2].taps;
  const int64_t windows =
      args.n * args.axes[0].windows * args.axes[1].windows * args.axes[2].windows;
  const int64_t x_padded = CeilDiv(args.in, kLane) * kLane;
  const int64_t y_padded = CeilDiv(args.out, kLane) * kLane;
  // Windows of a group, whatever the number of threads.
  const int64_t group =
      Max(12, Min(48, kGroupBytes /
                          (points * 2 * (x_padded + y_padded) * static_cast<int64_t>(sizeof(A))) /
                          12 * 12));
  // Windows of a group's spectrum are so far apart: no multiple of 4 KiB.
  const int64_t x_row = 2 * points * x_padded + kLane, y_row = 2 * points * y_padded + kLane;

  int64_t Kept(int axis) const {
    return axis == 0 ? args.axes[0].grid / 2 + 1 : args.axes[axis].grid;
  }

  // The windows of one of the two maps.
  struct Side {
    T* map;
    int64_t channels, padded;
    int64_t size[3], first[3], count[3];
    const A *cosines[3], *sines[3];
    int64_t Positions() const { return count[1] * count[2]; }
  };
  Side SideOf(void* map, int64_t channels, bool inputs) const {
    Side side{static_cast<T*>(map), channels, CeilDiv(channels, kLane) * kLane, {}, {}, {}, {}, {}};
    for (int axis = 0; axis < 3; ++axis) {
      const WindowAxis& a = args.axes[axis];
      side.size[axis] = inputs ? a.in : a.out;
      side.first[axis] = inputs ? a.first : 0;
      side.count[axis] = inputs ? a.span : a.length;
      side.cosines[axis] = static_cast<const A*>(inputs ? a.span_table : a.length_table);
      side.sines[axis] = side.cosines[axis] + (a.grid / 2 + 1) * CeilDiv(side.count[axis], 2);
    }
    return side;
  }

  // Scratch memory of a thread.
  struct Scratch {
    A *re, *im;       // (frequency of axis 0, position, channel)
    A *re1, *im1;     // (frequencies of axes 0 and 1, position of axis 2, channel)
    A* folded;        // of a line
    int64_t* places;  // of a position's channels in the map, or -1
  };
  int64_t Columns(const Side& side) const { return (side.Positions() * kChunk + 1) / 2 * 2; }
  size_t ScratchBytes(const Side& side) const {
    const int64_t row = Columns(side) * kLane;
    return 2 * Arena::Bytes<A>(Kept(0) * row) +
           2 * Arena::Bytes<A>(Kept(0) * Kept(1) * side.count[2] * kChunk * kLane) +
           Arena::Bytes<A>(4 * LongestLine() * kLane) + Arena::Bytes<int64_t>(Columns(side));
  }
  Scratch TakeScratch(Arena* arena, const Side& side) const {
    const int64_t row = Columns(side) * kLane;
    const int64_t planes = Kept(0) * Kept(1) * side.count[2] * kChunk * kLane;
    Scratch scratch;
    scratch.re = arena->Take<A>(Kept(0) * row), scratch.im = arena->Take<A>(Kept(0) * row);
    scratch.re1 = arena->Take<A>(planes), scratch.im1 = arena->Take<A>(planes);
    scratch.folded = arena->Take<A>(4 * LongestLine() * kLane);
    scratch.places = arena->Take<int64_t>(Columns(side));
    return scratch;
  }
  int64_t LongestLine() const {
    int64_t most = 0;
    for (const WindowAxis& axis : args.axes) most = Max(most, axis.grid / 2 + 1);
    return most;
  }

  // Where a window begins.
  struct Corner {
    int64_t image, at[3];
  };
  Corner CornerOf(const Side& side, int64_t window) const {
    Corner corner{window, {}};
    for (int axis = 2; axis >= 0; --axis) {
      const WindowAxis& a = args.axes[axis];
      corner.at[axis] = side.first[axis] + corner.image % a.windows * a.length;
      corner.image /= a.windows;
    }
    return corner;
  }

  // What there is of a window in its map.
  Fetch FetchOf(const Side& side, int64_t window, int64_t calls) const {
    if (window >= windows) return Fetch(nullptr, 0, 0, 0, 0, 0, 1);
    const Corner corner = CornerOf(side, window);
    int64_t from[3], count[3];
    for (int axis = 0; axis < 3; ++axis) {
      from[axis] = Max(0, corner.at[axis]);
      count[axis] = Max(0, Min(side.size[axis], corner.at[axis] + side.count[axis]) - from[axis]);
    }
    // The last axis that there is has rows that lie together.
    const int64_t point = side.channels * sizeof(T), stride1 = side.size[2] * point;
    const int64_t stride0 = side.size[1] * stride1;
    const char* begin = reinterpret_cast<const char*>(side.map) +
                        corner.image * side.size[0] * stride0 + from[0] * stride0 +
                        from[1] * stride1 + from[2] * point;
    if (side.size[2] == 1) {
      return Fetch(begin, count[1] * point, 1, 0, count[0], stride0, calls);
    }
    return Fetch(begin, count[2] * point, count[1], stride1, count[0], stride0, calls);
  }

  // Where a window lies in its map: its image, first row of axis 0 and the place of each column,
  // `vectors` of channels from c on for each position of the axes 1 and 2.
  struct Place {
    T* image;
    int64_t row0, stride0;
    const int64_t* columns;
    T* Row(const Side& side, int64_t j) const {
      const int64_t row = row0 + j;
      return row >= 0 && row < side.size[0] ? image + row * stride0 : nullptr;
    }
  };
  Place PlaceOf(const Side& side, int64_t window, int64_t c, int64_t vectors_here,
                int64_t* places) const {
    const Corner corner = CornerOf(side, window);
    const int64_t stride1 = side.size[2] * side.channels, stride0 = side.size[1] * stride1;
    int64_t* to = places;
    for (int64_t j1 = 0; j1 < side.count[1]; ++j1) {
      const int64_t at1 = corner.at[1] + j1;
      for (int64_t j2 = 0; j2 < side.count[2]; ++j2) {
        const int64_t at2 = corner.at[2] + j2;
        const bool there = at1 >= 0 && at1 < side.size[1] && at2 >= 0 && at2 < side.size[2];
        for (int64_t v = 0; v < vectors_here; ++v) {
          *to++ = there ? at1 * stride1 + at2 * side.channels + c + v * kLane : -1;
        }
      }
    }
    if ((to - places) % 2 != 0) *to = -1;
    return {side.map + corner.image * side.size[0] * stride0, corner.at[0], stride0, places};
  }

  // Complex numbers along an axis, real and imaginary parts `step` apart each.
  struct Line {
    A *re, *im;
    int64_t step;
  };

  // Samples to frequencies: the line's even and odd parts about its middle are transformed.
  BANDJAX_NOINLINE void AnalyseLine(const Side& side, int axis, const Line& source,
                                    const Line& target, A* folded) const {
    const Line from = source, to = target;  // No store can change them.
    const int64_t count = side.count[axis], grid = args.axes[axis].grid;
    const int64_t pairs = CeilDiv(count, 2);
    const auto fold = [&](int64_t k, Vec<A>(&even)[2],
                          Vec<A>(&odd)[2]) __attribute__((always_inline)) {
      const int64_t mirror = count - 1 - k;
      const Vec<A> a_re = Load<A>(from.re + k * from.step), a_im = Load<A>(from.im + k * from.step);
      Vec<A> b_re = {}, b_im = {};
      if (mirror != k) {
        b_re = Load<A>(from.re + mirror * from.step), b_im = Load<A>(from.im + mirror * from.step);
      }
      even[0] = a_re + b_re, even[1] = a_im + b_im;
      odd[0] = b_re - a_re, odd[1] = b_im - a_im;
    };
    const auto put = [&](int64_t u, const Vec<A>(&a)[2], const Vec<A>(&b)[2]) {
      Store<A>(to.re + u * to.step, a[0] + b[1]);
      Store<A>(to.im + u * to.step, a[1] - b[0]);
      if (u == 0 || 2 * u == grid) return;
      Store<A>(to.re + (grid - u) * to.step, a[0] - b[1]);
      Store<A>(to.im + (grid - u) * to.step, a[1] + b[0]);
    };
    FoldedPairs<A>(grid / 2 + 1, pairs, side.cosines[axis], side.sines[axis], pairs, 1, folded,
                   fold, put);
  }

  // The other way.
  BANDJAX_NOINLINE void SynthesiseLine(const Side& side, int axis, const Line& source,
                                       const Line& target, A* folded) const {
    const Line from = source, to = target;  // No store can change them.
    const int64_t count = side.count[axis], grid = args.axes[axis].grid;
    const int64_t pairs = CeilDiv(count, 2);
    const auto fold = [&](int64_t u, Vec<A>(&even)[2],
                          Vec<A>(&odd)[2]) __attribute__((always_inline)) {
      const Vec<A> a_re = Load<A>(from.re + u * from.step), a_im = Load<A>(from.im + u * from.step);
      Vec<A> b_re = {}, b_im = {};
      if (u > 0 && 2 * u != grid) {
        const int64_t minus = (grid - u) * from.step;
        b_re = Load<A>(from.re + minus), b_im = Load<A>(from.im + minus);
      }
      even[0] = a_re + b_re, even[1] = a_im + b_im;
      odd[0] = b_im - a_im, odd[1] = a_re - b_re;
    };
    const auto put = [&](int64_t k, const Vec<A>(&a)[2], const Vec<A>(&b)[2]) {
      const int64_t mirror = (count - 1 - k) * to.step;
      Store<A>(to.re + k * to.step, a[0] - b[0]);
      Store<A>(to.im + k * to.step, a[1] - b[1]);
      if (count - 1 - k == k) return;
      Store<A>(to.re + mirror, a[0] + b[0]);
      Store<A>(to.im + mirror, a[1] + b[1]);
    };
    FoldedPairs<A>(pairs, grid / 2 + 1, side.cosines[axis], side.sines[axis], 1, pairs, folded,
                   fold, put);
  }

  // The steps of axes 1 and 2 between the spectrum of axis 0, whose columns (position, vector) are
  // side by side, and row `row` of a group's spectrum: lines(axis, from, to), from the samples on.
  template <typename Lines>
  BANDJAX_INLINE void InnerAxes(const Side& side, const Scratch& s, int64_t ld, int64_t here,
                                A* row, int64_t step, bool analysis, Lines lines) const {
    const int64_t grid1 = args.axes[1].grid, grid2 = args.axes[2].grid, count2 = side.count[2];
    const int64_t step2 = here * kLane, step1 = count2 * step2;
    for (int64_t u0 = 0; u0 < Kept(0); ++u0) {
      for (int64_t v = 0; v < here; ++v) {
        const int64_t column = u0 * ld + v * kLane;
        A* point = row + u0 * grid1 * grid2 * step + v * kLane;
        const Line samples{s.re + column, s.im + column, step1};
        const Line spectrum{point, point + side.padded, grid2 * step};
        if (grid2 == 1) {
          lines(1, samples, spectrum);
          continue;
        }
        const auto along1 = [&] {
          for (int64_t j2 = 0; j2 < count2; ++j2) {
            lines(1, Line{samples.re + j2 * step2, samples.im + j2 * step2, step1},
                  Line{s.re1 + j2 * kLane, s.im1 + j2 * kLane, count2 * kLane});
          }
        };
        if (analysis) along1();
        for (int64_t u1 = 0; u1 < grid1; ++u1) {
          const int64_t at = u1 * count2 * kLane;
          lines(2, Line{s.re1 + at, s.im1 + at, kLane},
                Line{spectrum.re + u1 * spectrum.step, spectrum.im + u1 * spectrum.step, step});
        }
        if (!analysis) along1();
      }
    }
  }

  // One window into a row of a group's spectrum, whose frequencies are `step` apart.
  void Analyse(const Side& side, int64_t window, const Scratch& s, A* row, int64_t step) const {
    const int64_t chunks = CeilDiv(side.padded, kChunk * kLane);
    Fetch fetch = FetchOf(side, window + 1, chunks * Kept(0) * kChunk);
    for (int64_t c = 0; c < side.padded; c += kChunk * kLane) {
      const int64_t here = Min(kChunk, (side.padded - c) / kLane);
      const int64_t ld = CeilDiv(side.Positions() * here, 2) * 2 * kLane;
      const Place place = PlaceOf(side, window, c, here, s.places);
      if (Inside(side, window) && c + here * kLane <= side.channels) {
        AnalyseRows<true>(side, place, c, here, s, ld);
      } else {
        AnalyseRows<false>(side, place, c, here, s, ld);
      }
      InnerAxes(side, s, ld, here, row + c, step, true,
                [&](int axis, const Line& samples, const Line& spectrum) {
                  fetch.Some();
                  AnalyseLine(side, axis, samples, spectrum, s.folded);
                });
    }
  }

  // Whether there is a sample at every point of a window.
  bool Inside(const Side& side, int64_t window) const {
    const Corner corner = CornerOf(side, window);
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
      inside &= corner.at[axis] >= 0 && corner.at[axis] + side.count[axis] <= side.size[axis];
    }
    return inside;
  }

  // Axis 0, columns two by two. Inside, all samples and whole vectors of channels are there.
  template <bool kInside>
  BANDJAX_NOINLINE void AnalyseRows(const Side& side, const Place& place, int64_t c, int64_t here,
                                    const Scratch& s, int64_t ld) const {
    const int64_t count = side.count[0], pairs = CeilDiv(count, 2);
    for (int64_t q = 0; q < ld; q += 2 * kLane) {
      const int64_t first = q / kLane, left = side.channels - c;
      int64_t at[2] = {place.columns[first], place.columns[first + 1]};
      const int64_t valid[2] = {left - first % here * kLane, left - (first + 1) % here * kLane};
      if (kInside && at[1] < 0) at[1] = at[0];
      const auto sample = [&](int64_t j, int v) __attribute__((always_inline)) {
        if constexpr (kInside) {
          return Load<A>(place.image + (place.row0 + j) * place.stride0 + at[v]);
        } else {
          const T* row = place.Row(side, j);
          return row != nullptr && at[v] >= 0 ? LoadUpTo<A>(row + at[v], valid[v]) : Vec<A>{};
        }
      };
      const auto fold = [&](int64_t k, Vec<A>(&even)[2],
                            Vec<A>(&odd)[2]) __attribute__((always_inline)) {
        const int64_t mirror = count - 1 - k;
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          const Vec<A> a = sample(k, v), b = mirror != k ? sample(mirror, v) : Vec<A>{};
          even[v] = a + b, odd[v] = b - a;
        }
      };
      const auto put = [&](int64_t u, const Vec<A>(&a)[2], const Vec<A>(&b)[2]) {
        A *re = s.re + u * ld + q, *im = s.im + u * ld + q;
        Store<A>(re, a[0]);
        Store<A>(re + kLane, a[1]);
        Store<A>(im, -b[0]);
        Store<A>(im + kLane, -b[1]);
      };
      FoldedPairs<A>(Kept(0), pairs, side.cosines[0], side.sines[0], pairs, 1, s.folded, fold, put);
    }
  }

  void Synthesise(const Side& side, int64_t window, const Scratch& s, A* row, int64_t step,
                  bool stream) const {
    const int64_t count = side.count[0], pairs = CeilDiv(count, 2);
    const Finish<A, T> finish(args.epilogue, side.map);
    for (int64_t c = 0; c < side.padded; c += kChunk * kLane) {
      const int64_t here = Min(kChunk, (side.padded - c) / kLane);
      const int64_t ld = CeilDiv(side.Positions() * here, 2) * 2 * kLane;
      InnerAxes(side, s, ld, here, row + c, step, false,
                [&](int axis, const Line& samples, const Line& spectrum) {
                  SynthesiseLine(side, axis, spectrum, samples, s.folded);
                });
      const Place place = PlaceOf(side, window, c, here, s.places);
      for (int64_t q = 0; q < ld; q += 2 * kLane) {
        const int64_t first = q / kLane, at[2] = {place.columns[first], place.columns[first + 1]};
        const int64_t valid[2] = {side.channels - c - first % here * kLane,
                                  side.channels - c - (first + 1) % here * kLane};
        const auto put = [&](int64_t k, const Vec<A>(&a)[2], const Vec<A>(&b)[2]) {
          T *to = place.Row(side, k), *mirror = place.Row(side, count - 1 - k);
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            if (at[i] < 0) continue;
            const auto store = [&](T* row, Vec<A> value) {
              value = finish(value, row + at[i], side.channels - valid[i], valid[i]);
              StreamUpTo<A>(row + at[i], value, valid[i], stream);
            };
            if (to) store(to, a[i] + b[i]);
            if (mirror && count - 1 - k != k) store(mirror, a[i] - b[i]);
          }
        };
        const auto spectrum = [&](int64_t u, Vec<A>(&even)[2], Vec<A>(&odd)[2])
                                  __attribute__((always_inline)) {
                                    const A *re = s.re + u * ld + q, *im = s.im + u * ld + q;
                                    even[0] = Load<A>(re), even[1] = Load<A>(re + kLane);
                                    odd[0] = Load<A>(im), odd[1] = Load<A>(im + kLane);
                                  };
        Pairs<A>(pairs, Kept(0), side.cosines[0], side.sines[0], 1, pairs, spectrum, put);
      }
    }
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_WINDOW_TRANSFORM_H_
