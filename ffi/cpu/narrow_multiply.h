// The three contractions of few examples, by the tiles of narrow.h.
#ifndef BANDJAX_FFI_CPU_NARROW_MULTIPLY_H_
#define BANDJAX_FFI_CPU_NARROW_MULTIPLY_H_

#include "narrow.h"

namespace bandjax {
namespace BANDJAX_ISA {

// As Multiplier.
template <typename A, typename S, typename T>
struct NarrowMultiplier : Narrow<A> {
  using Base = Narrow<A>;
  template <typename L>
  using Factor = typename Base::template Factor<L>;
  using Base::args, Base::in, Base::out, Base::kLane, Base::kPanel, Base::kBlockBytes, Base::kDepth;
  using Base::Computed, Base::Twin, Base::Frequency, Base::planes, Base::three, Base::kStage;
  using Base::inner_im, Base::inner_re, Base::outer_im, Base::outer_re;
  using Sums = typename Base::Sums;

  explicit NarrowMultiplier(const MultiplyArgs& all) : Base(all) {}

  // A factor as the sums take it, from frequency `u0` on: of a storage type it is copied.
  template <typename L>
  static Factor<A> Staged(Factor<L> from, int64_t count, int64_t rows, int64_t length, A* stage) {
    if constexpr (sizeof(L) == sizeof(A)) {
      return from;
    } else {
      const int64_t step = CeilDiv(length, kLane) * kLane, next = rows * step;
      A* stage_im = stage + count * next;
      for (int64_t u = 0; u < count; ++u) {
        for (int64_t m = 0; m < rows; ++m) {
          const Factor<L> row = from.At(u, m);
          for (int64_t k = 0; k < length; k += kLane) {
            const int64_t to = u * next + m * step + k;
            Store<A>(stage + to, LoadUpTo<A>(row.re + k, length - k));
            Store<A>(stage_im + to, LoadUpTo<A>(row.im + k, length - k));
          }
        }
      }
      return {stage, stage_im, step, next};
    }
  }
  template <typename L>
  int64_t StageNumbers(int64_t length) const {
    return sizeof(L) == sizeof(A) ? 0 : 2 * kStage * args.n * CeilDiv(length, kLane) * kLane;
  }

  // Into the cache: rows of the next frequencies, far apart in memory.
  template <int kWrite, typename L>
  void Fetch(const Factor<L>& from, int64_t count, int64_t length) const {
    for (int64_t u = 0; u < count; ++u) {
      for (int64_t m = 0; m < args.n; ++m) {
        const Factor<L> row = from.At(u, m);
        for (int64_t k = 0; k < length; k += 64 / sizeof(L)) {
          __builtin_prefetch(row.re + k, kWrite, 2);
          __builtin_prefetch(row.im + k, kWrite, 2);
        }
      }
    }
  }

  // What one panel of columns needs: sums of the inner taps, in two orders, and factors copied.
  struct Desk {
    A *p, *q, *stage, *sines;
  };
  size_t DeskBytes(int64_t numbers, int64_t stage) const {
    return 2 * Arena::Bytes<A>(numbers) + Arena::Bytes<A>(stage) +
           Arena::Bytes<A>(kStage * args.t0);
  }
  Desk TakeDesk(Arena* arena, int64_t numbers, int64_t stage) const {
    A* p = arena->template Take<A>(numbers);
    A* q = arena->template Take<A>(numbers);
    A* staged = arena->template Take<A>(stage);
    return {p, q, staged, arena->template Take<A>(kStage * args.t0)};
  }

  // Some rows of the sum, by a panel of columns, and whether their nine sums are there, or their
  // taps not in a cache yet.
  struct Panel {
    int64_t group, k, depth, column0, columns;
    bool nine = false, fetch = true;
  };

  // Of column frequency u1 the row frequencies u0 .. u0_end of a panel. Left factor and results are
  // those of row frequency 0, at the panel's first row of the sum and first column.
  template <bool kForward, typename L, typename R>
  void SpreadColumn(int64_t u1, int64_t u0, int64_t u0_end, const Panel& panel, Factor<L> left,
                    R* re, R* im, int64_t ld_out, int64_t next_out, const Desk& desk) const {
    const int64_t depth_all = kForward ? in : out, k = panel.k, depth = panel.depth;
    const int64_t columns = panel.columns, width = CeilDiv(columns, kLane) * kLane;
    if (kForward && this->nine) {
      const int64_t first = panel.group * out + panel.column0;
      if (!panel.nine) {
        this->template GatherNine<kForward>(u1, k, depth, first, columns, panel.fetch, desk.q,
                                            width);
      }
    } else {
      if constexpr (kForward) {
        this->InnerForward(u1, k, depth, panel.group * out + panel.column0, columns, desk.p, width);
      } else {
        this->InnerTransposed(u1, panel.group * out + k, depth, panel.column0, columns, desk.p,
                              width);
      }
      this->template Gather<kForward>(depth, width, desk.p, desk.q);
    }
    const int64_t each = panel.nine ? 9 : planes;
    const A sign = kForward ? -1 : 1;
    const A cosine = inner_re[u1 * args.t1 + args.t1 - 1];
    const A sine = sign * inner_im[u1 * args.t1 + args.t1 - 1];
    u0_end = Computed(u1, u0_end);
    for (; u0 < u0_end; u0 += kStage) {
      const int64_t count = Min(kStage, u0_end - u0), rest = Min(kStage, u0_end - u0 - count);
      const Factor<L> own = left.At(u0, 0);
      R *to_re = re + u0 * next_out, *to_im = im + u0 * next_out;
      Fetch<0>(own.At(count, 0), rest, depth);
      Fetch<1>(Factor<R>{to_re, to_im, ld_out, next_out}.At(count, 0), rest, columns);
      const Factor<A> staged = Staged(own, count, args.n, depth, desk.stage);
      const A* phases = outer_im + u0 * args.t0;
      for (int64_t i = 0; i < count * args.t0; ++i) {
        desk.sines[i] = sign * phases[i];
      }
      for (int64_t v = 0; v < columns; v += kLane) {
        const auto rows = panel.nine ? &NarrowMultiplier::template Rows<Sums::kNine, R>
                          : three    ? &NarrowMultiplier::template Rows<Sums::kThree, R>
                                     : &NarrowMultiplier::template Rows<Sums::kAny, R>;
        (this->*rows)(args.n, count, depth, staged, desk.q + v * each * depth,
                      {outer_re + u0 * args.t0, desk.sines, cosine, sine}, to_re + v, to_im + v,
                      ld_out, next_out, columns - v, k > 0);
      }
      if (k + depth < depth_all) continue;
      for (int64_t u = u0; u < u0 + count; ++u) {
        const int64_t twin = Twin(u, u1);
        if (twin == u) continue;
        CopyConjugate<A>(args.n, columns, ld_out, re + u * next_out, im + u * next_out,
                         re + twin * next_out, im + twin * next_out);
      }
    }
  }

  // Rows of the sum that are taken together, of panels of so many columns, by so many sums of each.
  template <bool kForward, typename R>
  int64_t DepthBlock(int64_t columns, int64_t sums) const {
    constexpr bool kRounds = sizeof(R) != sizeof(A);  // sums then stay out of memory
    const int64_t all = kForward ? in : out;
    // Of few row frequencies it is the taps that take the time, and sums of them that stay in the
    // first-level cache save it; of many it is the results, which each block adds to.
    constexpr int64_t kBytes = 32 << 10;
    const int64_t bytes = Min(kBlockBytes, kBytes * CeilDiv(args.k0, kStage));
    const int64_t fits = bytes / (sums * columns * sizeof(A));
    const int64_t most = kRounds ? all : Min(Min(kDepth, all), Max(fits, kLane));
    return CeilDiv(all, CeilDiv(all, most));
  }
  template <bool kForward, typename R>
  int64_t DepthBlock() const {
    return DepthBlock<kForward, R>(kPanel, planes);
  }

  // Y from X (kForward) or X from Y.
  template <bool kForward, typename L, typename R>
  void Spread(Pool* pool, const L* a, const L* b, R* re, R* im) const {
    const int64_t depth_all = kForward ? in : out, columns_all = kForward ? out : in;
    const int64_t ld_left = kForward ? args.in : args.out, next = args.k1 * args.n;
    const int64_t ld_out = kForward ? args.out : args.in;
    // The sums of a vector of columns stay in the first-level cache for all column frequencies, of
    // which each reads them once for eight results: too often if there are many.
    const bool nine = kForward && this->nine && args.k0 * args.n <= 3 * kStage;
    const int64_t panels = CeilDiv(columns_all, kPanel);
    const int64_t step = nine ? kLane : kPanel;
    const int64_t depth_block = DepthBlock<kForward, R>(step, nine ? 9 : planes);
    // Every part reads the taps anew.
    const FilterSplit split = this->SplitSpread(pool, args.groups * panels, 2);
    ParallelFor(pool, args.groups * panels * split.parts(), [&](int64_t task) {
      const Part part(args, split, task % split.parts());
      const int64_t panel_index = task / split.parts() % panels;
      const int64_t group = task / split.parts() / panels;
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, columns_all - column0);
      const int64_t width = CeilDiv(Min(columns, step), kLane) * kLane;
      const int64_t numbers = (nine ? 9 : planes) * depth_block * width;
      const int64_t stage = StageNumbers<L>(depth_block);
      Arena arena(pool, DeskBytes(numbers, stage));
      const Desk desk = TakeDesk(&arena, numbers, stage);
      for (int64_t k = 0; k < depth_all; k += depth_block) {
        for (int64_t v = 0; v < columns; v += step) {
          Panel panel = {group, k, Min(depth_block, depth_all - k), column0 + v,
                         Min(step, columns - v)};
          if (nine) {
            this->SumNine(k, panel.depth, group * out + panel.column0, panel.columns, desk.q,
                          width);
            panel.nine = true;
          }
          for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1, panel.fetch = false) {
            const int64_t from = Frequency(0, u1) * ld_left + group * depth_all + k;
            const int64_t to = Frequency(0, u1) * ld_out + group * columns_all + panel.column0;
            SpreadColumn<kForward>(u1, part.u0_first, part.u0_last, panel,
                                   Factor<L>{a + from, b + from, ld_left, next * ld_left}, re + to,
                                   im + to, ld_out, next * ld_out, desk);
          }
        }
      }
    });
  }

  // What the row frequencies u0 .. u0_end of column frequency u1 (add to, or) give the gradient of
  // the taps at a panel: `result` is that of all taps. Factors are as of SpreadColumn.
  template <typename L, typename R>
  void GradientColumn(int64_t u1, int64_t u0, int64_t u0_end, const Panel& panel, Factor<L> x,
                      Factor<R> y, bool add, A* result, const Desk& desk) const {
    const int64_t depth = panel.depth, columns = panel.columns;
    const int64_t width = CeilDiv(columns, kLane) * kLane, numbers = planes * depth * width;
    for (int64_t at = 0; at < numbers; at += kLane) Store<A>(desk.q + at, Vec<A>{});
    u0_end = Computed(u1, u0_end);
    for (; u0 < u0_end; u0 += kStage) {
      const int64_t count = Min(kStage, u0_end - u0), rest = Min(kStage, u0_end - u0 - count);
      const Factor<L> left = x.At(u0, 0);
      const Factor<R> right = y.At(u0, 0);
      Fetch<0>(left.At(count, 0), rest, depth);
      Fetch<0>(right.At(count, 0), rest, columns);
      const Factor<A> staged = Staged(left, count, args.n, depth, desk.stage);
      A weights[kStage];
      for (int64_t u = 0; u < count; ++u) weights[u] = Twin(u0 + u, u1) == u0 + u ? 1 : 2;
      for (int64_t v = 0; v < columns; v += kLane) {
        const auto gradient = three ? &NarrowMultiplier::template Gradient<true, R>
                                    : &NarrowMultiplier::template Gradient<false, R>;
        (this->*gradient)(args.n, count, depth, staged, right.At(0, 0, v), columns - v, weights,
                          {outer_re + u0 * args.t0, outer_im + u0 * args.t0},
                          desk.q + v * planes * depth);
      }
    }
    this->Scatter(depth, width, desk.q, desk.p);
    this->SpreadInner(u1, add, depth, columns, width, depth * width, desk.p,
                      result + panel.k * args.out + panel.group * out + panel.column0);
  }

  // Input channels of the gradient that are taken together.
  int64_t GradientBlock() const {
    constexpr int64_t kMost = 64;
    return CeilDiv(in, CeilDiv(in, kMost));
  }

  void FilterProduct(Pool* pool) const {
    const S* x_re = static_cast<const S*>(args.x_re);
    const S* x_im = static_cast<const S*>(args.x_im);
    const T* y_re = static_cast<const T*>(args.y_re);
    const T* y_im = static_cast<const T*>(args.y_im);
    const FilterSplit split = SplitFilter(args);
    const int64_t chunks = split.parts(), panels = CeilDiv(out, kPanel);
    const int64_t depth_block = GradientBlock(), blocks = CeilDiv(in, depth_block);
    const int64_t taps = args.t0 * args.t1 * in * args.out, next = args.k1 * args.n;
    const bool parts = chunks > 1;
    ParallelFor(pool, args.groups * blocks * panels * chunks, [&](int64_t task) {
      const int64_t chunk = task % chunks, panel_index = task / chunks % panels;
      const int64_t block = task / chunks / panels % blocks;
      const int64_t group = task / chunks / panels / blocks;
      const int64_t k = block * depth_block, column0 = panel_index * kPanel;
      const Panel panel = {group, k, Min(depth_block, in - k), column0, Min(kPanel, out - column0)};
      const int64_t width = CeilDiv(panel.columns, kLane) * kLane;
      const int64_t numbers = planes * panel.depth * width, stage = StageNumbers<S>(panel.depth);
      A* result = static_cast<A*>(parts ? args.partial : args.taps) + chunk * taps;
      Arena arena(pool, DeskBytes(numbers, stage));
      const Desk desk = TakeDesk(&arena, numbers, stage);
      const Part part(args, split, chunk);
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        const int64_t at_x = Frequency(0, u1) * args.in + group * in + k;
        const int64_t at_y = Frequency(0, u1) * args.out + group * out + column0;
        GradientColumn(u1, part.u0_first, part.u0_last, panel,
                       Factor<S>{x_re + at_x, x_im + at_x, args.in, next * args.in},
                       Factor<T>{y_re + at_y, y_im + at_y, args.out, next * args.out},
                       u1 > part.u1_first, result, desk);
      }
    });
    if (parts) this->SumChunks(pool, chunks, taps);
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_NARROW_MULTIPLY_H_
