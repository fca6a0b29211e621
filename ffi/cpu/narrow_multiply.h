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
  using Base::outer_re, Base::outer_im;

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

  // Y from X (kForward) or X from Y.
  template <bool kForward, typename L, typename R>
  void Spread(Pool* pool, const L* a, const L* b, R* re, R* im) const {
    constexpr bool kRounds = sizeof(R) != sizeof(A);  // sums then stay out of memory
    const int64_t depth_all = kForward ? in : out, columns_all = kForward ? out : in;
    const int64_t ld_left = kForward ? args.in : args.out;
    const int64_t ld_out = kForward ? args.out : args.in;
    const int64_t panels = CeilDiv(columns_all, kPanel);
    const int64_t depth_fits = kBlockBytes / (planes * kPanel * sizeof(A));
    const int64_t depth_most =
        kRounds ? depth_all : Min(Min(kDepth, depth_all), Max(depth_fits, kLane));
    const int64_t blocks = CeilDiv(depth_all, depth_most), depth_block = CeilDiv(depth_all, blocks);
    const FilterSplit split = this->SplitSpread(pool, args.groups * panels);
    ParallelFor(pool, args.groups * panels * split.parts(), [&](int64_t task) {
      const Part part(args, split, task % split.parts());
      const int64_t panel_index = task / split.parts() % panels;
      const int64_t group = task / split.parts() / panels;
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, columns_all - column0);
      const int64_t width = CeilDiv(columns, kLane) * kLane;
      const int64_t numbers = planes * depth_block * width,
                    stage_numbers = StageNumbers<L>(depth_block);
      Arena arena(pool, 2 * Arena::Bytes<A>(numbers) + Arena::Bytes<A>(stage_numbers) +
                            Arena::Bytes<A>(kStage * args.t0));
      A* p = arena.Take<A>(numbers);
      A* q = arena.Take<A>(numbers);
      A* stage = arena.Take<A>(stage_numbers);
      A* sines = arena.Take<A>(kStage * args.t0);
      for (int64_t k = 0; k < depth_all; k += depth_block) {
        const int64_t depth = Min(depth_block, depth_all - k);
        for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
          if constexpr (kForward) {
            this->InnerForward(u1, k, depth, group * out + column0, columns, p, width);
          } else {
            this->InnerTransposed(u1, group * out + k, depth, column0, columns, p, width);
          }
          this->template Gather<kForward>(depth, width, p, q);
          const int64_t u0_end = Computed(u1, part.u0_last), next = args.k1 * args.n;
          for (int64_t u0 = part.u0_first; u0 < u0_end; u0 += kStage) {
            const int64_t count = Min(kStage, u0_end - u0);
            const int64_t from = Frequency(u0, u1) * ld_left + group * depth_all + k;
            const int64_t to = Frequency(u0, u1) * ld_out + group * columns_all + column0;
            const Factor<L> left = {a + from, b + from, ld_left, next * ld_left};
            const int64_t rest = Min(kStage, u0_end - u0 - count);
            Fetch<0>(left.At(count, 0), rest, depth);
            const Factor<R> ahead = {re + to, im + to, ld_out, next * ld_out};
            Fetch<1>(ahead.At(count, 0), rest, columns);
            const Factor<A> staged = Staged(left, count, args.n, depth, stage);
            const A* phases = outer_im + u0 * args.t0;
            for (int64_t i = 0; i < count * args.t0; ++i) {
              sines[i] = kForward ? -phases[i] : phases[i];
            }
            for (int64_t v = 0; v < columns; v += kLane) {
              const auto rows = three ? &NarrowMultiplier::template Rows<true, R>
                                      : &NarrowMultiplier::template Rows<false, R>;
              (this->*rows)(args.n, count, depth, staged, q + v * planes * depth,
                            {outer_re + u0 * args.t0, sines}, re + to + v, im + to + v, ld_out,
                            next * ld_out, columns - v, k > 0);
            }
            if (k + depth < depth_all) continue;
            for (int64_t u = u0; u < u0 + count; ++u) {
              const int64_t twin = Twin(u, u1);
              if (twin == u) continue;
              CopyConjugate<A>(args.n, columns, ld_out, re + to + (u - u0) * next * ld_out,
                               im + to + (u - u0) * next * ld_out,
                               re + to + (twin - u0) * next * ld_out,
                               im + to + (twin - u0) * next * ld_out);
            }
          }
        }
      }
    });
  }

  void FilterProduct(Pool* pool) const {
    constexpr int64_t kDepthMost = 64;
    const S* x_re = static_cast<const S*>(args.x_re);
    const S* x_im = static_cast<const S*>(args.x_im);
    const T* y_re = static_cast<const T*>(args.y_re);
    const T* y_im = static_cast<const T*>(args.y_im);
    const FilterSplit split = SplitFilter(args);
    const int64_t chunks = split.parts(), panels = CeilDiv(out, kPanel);
    const int64_t blocks = CeilDiv(in, kDepthMost), depth_block = CeilDiv(in, blocks);
    const int64_t taps = args.t0 * args.t1 * in * args.out;
    const bool parts = chunks > 1;
    ParallelFor(pool, args.groups * blocks * panels * chunks, [&](int64_t task) {
      const int64_t chunk = task % chunks, panel_index = task / chunks % panels;
      const int64_t block = task / chunks / panels % blocks;
      const int64_t group = task / chunks / panels / blocks;
      const int64_t k = block * depth_block, depth = Min(depth_block, in - k);
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, out - column0);
      const int64_t width = CeilDiv(columns, kLane) * kLane, numbers = planes * depth * width;
      A* result = static_cast<A*>(parts ? args.partial : args.taps) + chunk * taps;
      Arena arena(pool, 2 * Arena::Bytes<A>(numbers) + Arena::Bytes<A>(StageNumbers<S>(depth)));
      A* p = arena.Take<A>(numbers);
      A* q = arena.Take<A>(numbers);
      A* stage = arena.Take<A>(StageNumbers<S>(depth));
      const Part part(args, split, chunk);
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        for (int64_t at = 0; at < numbers; at += kLane) Store<A>(q + at, Vec<A>{});
        const int64_t u0_end = Computed(u1, part.u0_last), next = args.k1 * args.n;
        for (int64_t u0 = part.u0_first; u0 < u0_end; u0 += kStage) {
          const int64_t count = Min(kStage, u0_end - u0), rest = Min(kStage, u0_end - u0 - count);
          const int64_t at_x = Frequency(u0, u1) * args.in + group * in + k;
          const int64_t at_y = Frequency(u0, u1) * args.out + group * out + column0;
          const Factor<S> x = {x_re + at_x, x_im + at_x, args.in, next * args.in};
          const Factor<T> y = {y_re + at_y, y_im + at_y, args.out, next * args.out};
          Fetch<0>(x.At(count, 0), rest, depth);
          Fetch<0>(y.At(count, 0), rest, columns);
          const Factor<A> staged = Staged(x, count, args.n, depth, stage);
          A weights[kStage];
          for (int64_t u = 0; u < count; ++u) weights[u] = Twin(u0 + u, u1) == u0 + u ? 1 : 2;
          for (int64_t v = 0; v < columns; v += kLane) {
            const auto gradient = three ? &NarrowMultiplier::template Gradient<true, T>
                                        : &NarrowMultiplier::template Gradient<false, T>;
            (this->*gradient)(args.n, count, depth, staged, y.At(0, 0, v), columns - v, weights,
                              {outer_re + u0 * args.t0, outer_im + u0 * args.t0},
                              q + v * planes * depth);
          }
        }
        this->Scatter(depth, width, q, p);
        this->SpreadInner(u1, u1 > part.u1_first, depth, columns, width, depth * width, p,
                          result + k * args.out + group * out + column0);
      }
    });
    if (parts) this->SumChunks(pool, chunks, taps);
  }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_NARROW_MULTIPLY_H_
