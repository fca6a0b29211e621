// The filter's spectrum of windows.h, and the taps of one.
#ifndef BANDJAX_FFI_CPU_WINDOW_FILTER_H_
#define BANDJAX_FFI_CPU_WINDOW_FILTER_H_

#include "window_transform.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A, typename T>
struct WindowFilter : WindowTransform<A, T> {
  using Base = WindowTransform<A, T>;
  using Base::args, Base::columns, Base::depth, Base::depthwise, Base::groups, Base::in,
      Base::kLane;
  using Base::Kept, Base::out, Base::panels, Base::points, Base::taps, Base::width;

  explicit WindowFilter(const WindowArgs& all) : Base{all} {}

  // The filter's conjugate spectrum (group, frequency, panel, input channel, part, column), the
  // parts being real and imaginary ones of a panel's columns.
  int64_t FilterNumbers() const { return groups * points * panels * depth * 2 * width; }
  int64_t FilterAt(int64_t g, int64_t point, int64_t panel) const {
    return ((g * points + point) * panels + panel) * depth * 2 * width;
  }

  // Taps of a row of that spectrum, side by side: (tap, column), zero beyond the last column.
  void GatherTaps(int64_t g, int64_t row, A* to) const {
    const A* from = static_cast<const A*>(args.taps);
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t o = 0; o < panels * width; ++o) {
        A value = 0;
        if (o < columns && !args.transposed) {
          value = from[(t * depth + row) * args.out + g * columns + o];
        } else if (o < columns && depthwise) {
          value = from[(taps - 1 - t) * args.out + o];
        } else if (o < columns) {
          value = from[((taps - 1 - t) * out + o) * args.in + g * in + row];
        }
        to[t * panels * width + o] = value;
      }
    }
  }

  const A* Turns(int axis) const { return static_cast<const A*>(args.axes[axis].turns); }

  // What the transforms between taps and spectrum need: of a vector of columns the filter's
  // spectrum on axis 0 (frequency, tap of axes 1 and 2), and one frequency of that on axis 1.
  struct Workspace {
    A *p, *q;
  };
  size_t WorkspaceBytes() const {
    return Arena::Bytes<A>(2 * Kept(0) * Inner() * kLane) +
           Arena::Bytes<A>(2 * args.axes[2].taps * kLane);
  }
  Workspace TakeWorkspace(Arena* arena) const {
    A* p = arena->template Take<A>(2 * Kept(0) * Inner() * kLane);
    return {p, arena->template Take<A>(2 * args.axes[2].taps * kLane)};
  }
  int64_t Inner() const { return args.axes[1].taps * args.axes[2].taps; }
  // In a spectrum, from one frequency of axis 2 to the next.
  int64_t Step() const { return panels * depth * 2 * width; }

  void TransformFilter(Pool* pool, A* spectrum) const {
    const WindowAxis* axes = args.axes;
    const int64_t row_width = panels * width;
    ParallelFor(pool, groups * depth, [&](int64_t task) {
      const int64_t g = task / depth, row = task % depth;
      Arena arena(pool, Arena::Bytes<A>(taps * row_width) + WorkspaceBytes());
      A* gathered = arena.Take<A>(taps * row_width);
      const auto [p, q] = TakeWorkspace(&arena);
      GatherTaps(g, row, gathered);
      for (int64_t v = 0; v < row_width; v += kLane) {
        A* to = spectrum + FilterAt(g, 0, v / width) + row * 2 * width + v % width;
        TurnReal(gathered + v, row_width, p);
        for (int64_t u0 = 0; u0 < Kept(0); ++u0) {
          for (int64_t u1 = 0; u1 < Kept(1); ++u1) {
            const A *re1 = Turns(1) + u1 * axes[1].taps, *im1 = re1 + Kept(1) * axes[1].taps;
            Turn(re1, im1, axes[1].taps, axes[2].taps, p + 2 * u0 * Inner() * kLane, q);
            for (int64_t u2 = 0; u2 < Kept(2); ++u2) {
              const A *re2 = Turns(2) + u2 * axes[2].taps, *im2 = re2 + Kept(2) * axes[2].taps;
              A* at = to + ((u0 * Kept(1) + u1) * Kept(2) + u2) * Step();
              A both[2 * kLane];
              Turn(re2, im2, axes[2].taps, 1, q, both);
              Store<A>(at, Load<A>(both));
              Store<A>(at + width, Load<A>(both + kLane));
            }
          }
        }
      }
    });
  }

  // Axis 0 of real taps, `step` apart, from frequency u0 on: several frequencies at a time.
  template <int kCount = 4>
  void TurnReal(const A* from, int64_t step, A* to, int64_t u0 = 0) const {
    const int64_t count = args.axes[0].taps, inner = Inner();
    for (; u0 + kCount <= Kept(0); u0 += kCount) {
      const A *re = Turns(0) + u0 * count, *im = re + Kept(0) * count;
      for (int64_t t = 0; t < inner; ++t) {
        Vec<A> sum_re[kCount] = {}, sum_im[kCount] = {};
        for (int64_t t0 = 0; t0 < count; ++t0) {
          const Vec<A> w = Load<A>(from + (t0 * inner + t) * step);
#pragma GCC unroll 4
          for (int f = 0; f < kCount; ++f) {
            sum_re[f] += re[f * count + t0] * w, sum_im[f] += im[f * count + t0] * w;
          }
        }
#pragma GCC unroll 4
        for (int f = 0; f < kCount; ++f) {
          A* at = to + 2 * ((u0 + f) * inner + t) * kLane;
          Store<A>(at, sum_re[f]);
          Store<A>(at + kLane, sum_im[f]);
        }
      }
    }
    if constexpr (kCount > 1) TurnReal<kCount / 2>(from, step, to, u0);
  }

  // to[i] = sum_t (re + i im)[t] from[t][i], complex vectors.
  static void Turn(const A* re, const A* im, int64_t depth, int64_t count, const A* from, A* to) {
    for (int64_t i = 0; i < count; ++i) {
      Vec<A> sum_re = {}, sum_im = {};
      for (int64_t t = 0; t < depth; ++t) {
        const A* at = from + 2 * (t * count + i) * kLane;
        const Vec<A> a = Load<A>(at), b = Load<A>(at + kLane);
        sum_re += re[t] * a - im[t] * b;
        sum_im += re[t] * b + im[t] * a;
      }
      Store<A>(to + 2 * i * kLane, sum_re);
      Store<A>(to + (2 * i + 1) * kLane, sum_im);
    }
  }

  // The transpose of TransformFilter, of one input channel of a group: taps (tap, input channel,
  // output channel) of a spectrum.
  void ReadTaps(int64_t g, int64_t row, const A* spectrum, const Workspace& workspace,
                A* result) const {
    const WindowAxis* axes = args.axes;
    const int64_t last = axes[2].taps;
    const auto [p, q] = workspace;
    for (int64_t v = 0; v < columns; v += kLane) {
      const A* from = spectrum + FilterAt(g, 0, v / width) + row * 2 * width + v % width;
      for (int64_t i = 0; i < 2 * Kept(0) * Inner() * kLane; i += kLane) Store<A>(p + i, Vec<A>{});
      for (int64_t u0 = 0; u0 < Kept(0); ++u0) {
        for (int64_t u1 = 0; u1 < Kept(1); ++u1) {
          for (int64_t i = 0; i < 2 * last * kLane; i += kLane) Store<A>(q + i, Vec<A>{});
          for (int64_t u2 = 0; u2 < Kept(2); ++u2) {
            const A* at = from + ((u0 * Kept(1) + u1) * Kept(2) + u2) * Step();
            const Vec<A> d[2] = {Load<A>(at), Load<A>(at + width)};
            const A* re2 = Turns(2) + u2 * last;
            AddTurned(re2, re2 + Kept(2) * last, last, d, q, 1);
          }
          const A* re1 = Turns(1) + u1 * axes[1].taps;
          for (int64_t t2 = 0; t2 < last; ++t2) {
            const A* at = q + 2 * t2 * kLane;
            const Vec<A> d[2] = {Load<A>(at), Load<A>(at + kLane)};
            AddTurned(re1, re1 + Kept(1) * axes[1].taps, axes[1].taps, d,
                      p + 2 * (u0 * Inner() + t2) * kLane, last);
          }
        }
      }
      ReadReal(p, columns - v, result + row * args.out + g * columns + v);
    }
  }

  // The transpose of TurnReal: the taps of a vector of columns, of which so many are there, from
  // tap t0 of axis 0 on.
  template <int kCount = 8>
  void ReadReal(const A* from, int64_t there, A* to, int64_t t0 = 0) const {
    const int64_t count = args.axes[0].taps, inner = Inner();
    for (; t0 + kCount <= count; t0 += kCount) {
      for (int64_t t = 0; t < inner; ++t) {
        Vec<A> sum[kCount] = {};
        for (int64_t u0 = 0; u0 < Kept(0); ++u0) {
          const A *re = Turns(0) + u0 * count + t0, *im = re + Kept(0) * count;
          const A* at = from + 2 * (u0 * inner + t) * kLane;
          const Vec<A> a = Load<A>(at), b = Load<A>(at + kLane);
#pragma GCC unroll 8
          for (int f = 0; f < kCount; ++f) sum[f] += re[f] * a - im[f] * b;
        }
#pragma GCC unroll 8
        for (int f = 0; f < kCount; ++f) {
          StoreUpTo<A>(to + ((t0 + f) * inner + t) * depth * args.out, sum[f], there);
        }
      }
    }
    if constexpr (kCount > 1) ReadReal<kCount / 2>(from, there, to, t0);
  }

  // to[t] += (re + i im)[t] d, complex vectors `step` apart.
  static void AddTurned(const A* re, const A* im, int64_t count, const Vec<A> (&d)[2], A* to,
                        int64_t step) {
    for (int64_t t = 0; t < count; ++t) {
      A* at = to + 2 * t * step * kLane;
      Store<A>(at, Load<A>(at) + (re[t] * d[0] - im[t] * d[1]));
      Store<A>(at + kLane, Load<A>(at + kLane) + (re[t] * d[1] + im[t] * d[0]));
    }
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_WINDOW_FILTER_H_
