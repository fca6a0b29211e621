// The spectral multiply-sum: for each frequency a complex product over channels.
//
//   multiply_sum    Y[n, o]  = sum_c X[n, c] conj(W[c, o])
//   input_product   X[n, c]  = sum_o Y[n, o] W[c, o]
//   filter_product  dw       = the transpose of w -> W, at D[c, o] = sum_n X[n, c] conj(Y[n, o])
//
// The filter's spectrum W is built from the taps block by block, in two steps: a column frequency
// sums the inner taps into p[t0], a row frequency sums those. It is never in memory as a whole,
// unless it is what is given.
//
// Spectra of real signals (`hermitian`) hold at column frequency 0 each row frequency twice, once
// conjugate: the product of one of them will do. At frequency 0 they are real.
#ifndef BANDJAX_FFI_CPU_MULTIPLY_H_
#define BANDJAX_FFI_CPU_MULTIPLY_H_

#include "filter.h"

namespace bandjax {
namespace BANDJAX_ISA {

// Computes in A; the spectra of input and output are stored in S and T.
template <typename A, typename S, typename T>
struct Multiplier : Filter<A> {
  using Base = Filter<A>;
  using Base::args, Base::in, Base::out, Base::kLane, Base::kPanel, Base::kDepth, Base::kBlockBytes;
  using Base::Given, Base::GivenPlane, Base::GivenTransposed, Base::StoreGiven;
  using Base::inner_re, Base::inner_im, Base::InnerForward, Base::InnerTransposed, Base::Outer;
  using Base::outer_re, Base::outer_im, Base::Computed, Base::Twin, Base::Tap;
  using Base::SpreadInner, Base::SpreadOuter, Base::Frequency, Base::SplitSpread, Base::SumChunks;

  explicit Multiplier(const MultiplyArgs& all) : Base{all} {}

  // Y from X (kForward) or X from Y: left factor L, numbers in storage type L, and results in R.
  template <bool kForward, typename L, typename R>
  void Spread(Pool* pool, const L* a, const L* b, R* re, R* im) const {
    constexpr bool kRounds = sizeof(R) != sizeof(A);  // sums then stay out of memory
    const int64_t depth_all = kForward ? in : out, columns_all = kForward ? out : in;
    const int64_t ld_left = kForward ? args.in : args.out;
    const int64_t ld_out = kForward ? args.out : args.in;
    const int64_t panels = CeilDiv(columns_all, kPanel);
    const int64_t depth_fits = kBlockBytes / (2 * Max(args.t0, 1) * kPanel * sizeof(A));
    const int64_t depth_most =
        kRounds ? depth_all : Min(Min(kDepth, depth_all), Max(depth_fits, kLane));
    const int64_t blocks = CeilDiv(depth_all, depth_most), depth_block = CeilDiv(depth_all, blocks);
    const FilterSplit split = SplitSpread(pool, args.groups * panels);
    ParallelFor(pool, args.groups * panels * split.parts(), [&](int64_t task) {
      const Part part(args, split, task % split.parts());
      const int64_t panel_index = task / split.parts() % panels;
      const int64_t group = task / split.parts() / panels;
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, columns_all - column0);
      const int64_t width = PanelWidth<A>(columns);
      const int64_t padded = CeilDiv(depth_block, kLane) * kLane;
      Arena arena(pool, Arena::Bytes<A>(2 * args.t0 * padded * width) +
                            Arena::Bytes<A>(3 * padded * width) +
                            Arena::Bytes<A>(3 * args.n * padded) +
                            Arena::Bytes<A>(kRounds ? 2 * args.n * width : 0));
      A* p = arena.Take<A>(2 * args.t0 * padded * width);
      A* panel = arena.Take<A>(3 * padded * width);
      A* left_scratch = arena.Take<A>(3 * args.n * padded);
      A* sums = arena.Take<A>(kRounds ? 2 * args.n * width : 0);
      for (int64_t k = 0; k < depth_all; k += depth_block) {
        const int64_t depth = Min(depth_block, depth_all - k);
        for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
          if (!args.spectral()) {
            if constexpr (kForward) {
              InnerForward(u1, k, depth, group * out + column0, columns, p, width);
            } else {
              InnerTransposed(u1, group * out + k, depth, column0, columns, p, width);
            }
          }
          const int64_t u0_end = Computed(u1, part.u0_last);
          for (int64_t u0 = part.u0_first; u0 < u0_end; ++u0) {
            if (!args.spectral()) {
              this->template Outer<kForward>(u0, depth, p, width, panel);
            } else if constexpr (kForward) {
              const int64_t column = group * out + column0;
              if (sizeof(A) == 4 && args.w_type == Type::kBFloat16) {
                this->template GivenForward<BFloat16>(u0, u1, k, depth, column, columns, panel,
                                                      width);
              } else {
                this->template GivenForward<A>(u0, u1, k, depth, column, columns, panel, width);
              }
            } else {
              GivenTransposed(u0, u1, group * out + k, depth, column0, columns, panel, width);
            }
            const int64_t from = Frequency(u0, u1) * ld_left + group * depth_all + k;
            const int64_t to = Frequency(u0, u1) * ld_out + group * columns_all + column0;
            Left<A> left = PrepareLeft<A>(a + from, b + from, args.n, depth, ld_left, left_scratch);
            left.real = args.hermitian && u0 == 0 && u1 == 0;
            Ahead ahead;
            if (u0 + 1 < u0_end) {
              const int64_t next = from + args.k1 * args.n * ld_left;
              ahead.Add(a + next, depth * sizeof(L), args.n, ld_left * sizeof(L));
              ahead.Add(b + next, depth * sizeof(L), args.n, ld_left * sizeof(L));
            }
            if constexpr (kRounds) {
              A* sums_im = sums + args.n * width;
              Product<A, false>(args.n, depth, left, panel, depth * width, sums, sums_im, width,
                                width, false, ahead);
              CopyRows(args.n, columns, width, sums, re + to, ld_out);
              CopyRows(args.n, columns, width, sums_im, im + to, ld_out);
            } else {
              Product<A, false>(args.n, depth, left, panel, depth * width, re + to, im + to, ld_out,
                                columns, k > 0, ahead);
            }
            if (Twin(u0, u1) != u0 && k + depth == depth_all) {
              const int64_t twin = to + (Frequency(Twin(u0, u1), u1) - Frequency(u0, u1)) * ld_out;
              CopyConjugate<A>(args.n, columns, ld_out, re + to, im + to, re + twin, im + twin);
            }
          }
        }
      }
    });
  }

  template <typename R>
  static void CopyRows(int64_t rows, int64_t columns, int64_t width, const A* from, R* to,
                       int64_t step) {
    for (int64_t m = 0; m < rows; ++m, from += width, to += step) {
      for (int64_t v = 0; v < columns; v += kLane) {
        StoreUpTo<A>(to + v, Load<A>(from + v), columns - v);
      }
    }
  }

  void FilterProduct(Pool* pool) const {
    constexpr int64_t kRowsMost = 64, kDepthMost = 256;
    const S* x_re = static_cast<const S*>(args.x_re);
    const S* x_im = static_cast<const S*>(args.x_im);
    const T* y_re = static_cast<const T*>(args.y_re);
    const T* y_im = static_cast<const T*>(args.y_im);
    const FilterSplit split = SplitFilter(args);
    const int64_t chunks = split.parts();
    const int64_t row_blocks = CeilDiv(in, kRowsMost), rows_block = CeilDiv(in, row_blocks);
    const int64_t panels = CeilDiv(out, kPanel);
    const int64_t n_blocks = CeilDiv(args.n, kDepthMost);
    const int64_t n_block = n_blocks > 0 ? CeilDiv(args.n, n_blocks) : 0;
    const int64_t taps = args.t0 * args.t1 * in * args.out;
    const bool parts = chunks > 1 && !args.spectral();
    ParallelFor(pool, args.groups * row_blocks * panels * chunks, [&](int64_t task) {
      const int64_t chunk = task % chunks, panel_index = task / chunks % panels;
      const int64_t row_index = task / chunks / panels % row_blocks;
      const int64_t group = task / chunks / panels / row_blocks;
      const int64_t row0 = row_index * rows_block, rows = Min(rows_block, in - row0);
      const int64_t column0 = panel_index * kPanel, columns = Min(kPanel, out - column0);
      const int64_t width = PanelWidth<A>(columns), plane = rows * width;
      const int64_t padded = CeilDiv(rows, kLane) * kLane;
      A* result = static_cast<A*>(parts ? args.partial : args.taps) + chunk * taps;
      Arena arena(pool, Arena::Bytes<A>(2 * args.t0 * plane) + Arena::Bytes<A>(2 * plane) +
                            Arena::Bytes<A>(3 * n_block * width) +
                            Arena::Bytes<A>(3 * n_block * padded));
      A* p = arena.Take<A>(2 * args.t0 * plane);
      A* d = arena.Take<A>(2 * plane);
      A* panel = arena.Take<A>(3 * n_block * width);
      A* left_scratch = arena.Take<A>(3 * n_block * padded);
      // An empty batch leaves the sums as they are.
      for (int64_t at = 0; at < 2 * plane; at += kLane) Store<A>(d + at, Vec<A>{});
      const Part part(args, split, chunk);
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        for (int64_t at = 0; at < 2 * args.t0 * plane; at += kLane) Store<A>(p + at, Vec<A>{});
        const int64_t u0_end = Computed(u1, part.u0_last);
        for (int64_t u0 = part.u0_first; u0 < u0_end; ++u0) {
          for (int64_t n = 0; n < args.n; n += n_block) {
            const int64_t depth = Min(n_block, args.n - n);
            const int64_t x = (Frequency(u0, u1) + n) * args.in + group * in + row0;
            const int64_t y = (Frequency(u0, u1) + n) * args.out + group * out + column0;
            for (int64_t k = 0; k < depth; ++k) {
              for (int64_t v = 0; v < width; v += kLane) {
                const int64_t from = y + k * args.out + v;
                StorePanel<A, true>(panel + k * width + v, depth * width,
                                    LoadUpTo<A>(y_re + from, columns - v),
                                    LoadUpTo<A>(y_im + from, columns - v));
              }
            }
            Left<A> left = PrepareLeft<A>(x_re + x, x_im + x, depth, rows, args.in, left_scratch);
            left.real = args.hermitian && u0 == 0 && u1 == 0;
            Ahead ahead;
            if (n_blocks == 1 && u0 + 1 < u0_end) {
              const int64_t next_x = x + args.k1 * args.n * args.in;
              const int64_t next_y = y + args.k1 * args.n * args.out;
              ahead.Add(x_re + next_x, rows * sizeof(S), depth, args.in * sizeof(S));
              ahead.Add(x_im + next_x, rows * sizeof(S), depth, args.in * sizeof(S));
              ahead.Add(y_re + next_y, columns * sizeof(T), depth, args.out * sizeof(T));
              ahead.Add(y_im + next_y, columns * sizeof(T), depth, args.out * sizeof(T));
            }
            Product<A, true>(rows, depth, left, panel, depth * width, d, d + plane, width, width,
                             n > 0, ahead);
          }
          if (args.spectral()) {
            StoreGiven(u0, u1, row0, rows, group * out + column0, columns, width, plane, d);
          } else {
            SpreadOuter(u0, u1, plane, d, p);
          }
        }
        if (args.spectral()) continue;
        SpreadInner(u1, u1 > part.u1_first, rows, columns, width, plane, p,
                    result + row0 * args.out + group * out + column0);
      }
    });
    if (parts) SumChunks(pool, chunks, taps);
  }

  // One input and one output channel a group: products of vectors along the channels.

  // p[t0][re, im] of the channels from c on, up to kPanel of them.
  void InnerDepthwise(int64_t u1, int64_t c, int64_t columns, A* p) const {
    for (int64_t t0 = 0; t0 < args.t0; ++t0) {
      for (int64_t v = 0; v < kPanel; v += kLane) {
        Vec<A> re = {}, im = {};
        for (int64_t t1 = 0; t1 < args.t1; ++t1) {
          const Vec<A> w = LoadUpTo<A>(Tap(t0, t1, 0, c + v), columns - v);
          re += inner_re[u1 * args.t1 + t1] * w;
          im += inner_im[u1 * args.t1 + t1] * w;
        }
        Store<A>(p + 2 * t0 * kPanel + v, re);
        Store<A>(p + (2 * t0 + 1) * kPanel + v, im);
      }
    }
  }

  template <bool kForward, typename L, typename R>
  void SpreadDepthwise(Pool* pool, const L* a, const L* b, R* re, R* im) const {
    const int64_t panels = CeilDiv(args.out, kPanel);
    ParallelFor(pool, args.k1 * panels, [&](int64_t task) {
      const int64_t u1 = task / panels, c = task % panels * kPanel;
      const int64_t columns = Min(kPanel, args.out - c);
      Arena arena(pool, Arena::Bytes<A>(2 * args.t0 * kPanel));
      A* p = arena.Take<A>(2 * args.t0 * kPanel);
      InnerDepthwise(u1, c, columns, p);
      for (int64_t u0 = 0; u0 < Computed(u1, args.k0); ++u0) {
        const int64_t twin = (Frequency(Twin(u0, u1), u1) - Frequency(u0, u1)) * args.out;
        for (int64_t v = 0; v < columns; v += kLane) {
          Vec<A> w_re = {}, w_im = {};
          if (args.spectral()) {
            w_re = LoadUpTo<A>(Given(u0, u1, 0, c + v), columns - v);
            w_im = LoadUpTo<A>(Given(u0, u1, 0, c + v) + GivenPlane(), columns - v);
          }
          for (int64_t t0 = 0; t0 < args.t0; ++t0) {
            const A re0 = outer_re[u0 * args.t0 + t0], im0 = outer_im[u0 * args.t0 + t0];
            const Vec<A> p_re = Load<A>(p + 2 * t0 * kPanel + v);
            const Vec<A> p_im = Load<A>(p + (2 * t0 + 1) * kPanel + v);
            w_re += re0 * p_re - im0 * p_im;
            w_im += re0 * p_im + im0 * p_re;
          }
          if (kForward) w_im = -w_im;
          for (int64_t n = 0; n < args.n; ++n) {
            const int64_t at = (Frequency(u0, u1) + n) * args.out + c + v;
            const Vec<A> va = LoadUpTo<A>(a + at, columns - v);
            const Vec<A> vb = LoadUpTo<A>(b + at, columns - v);
            const Vec<A> to_re = va * w_re - vb * w_im, to_im = va * w_im + vb * w_re;
            StoreUpTo<A>(re + at, to_re, columns - v);
            StoreUpTo<A>(im + at, to_im, columns - v);
            if (twin == 0) continue;
            StoreUpTo<A>(re + at + twin, to_re, columns - v);
            StoreUpTo<A>(im + at + twin, -to_im, columns - v);
          }
        }
      }
    });
  }

  void FilterProductDepthwise(Pool* pool) const {
    const S* x_re = static_cast<const S*>(args.x_re);
    const S* x_im = static_cast<const S*>(args.x_im);
    const T* y_re = static_cast<const T*>(args.y_re);
    const T* y_im = static_cast<const T*>(args.y_im);
    const FilterSplit split = SplitFilter(args);
    const int64_t chunks = split.parts(), panels = CeilDiv(args.out, kPanel);
    const int64_t taps = args.t0 * args.t1 * args.out;
    const bool parts = chunks > 1 && !args.spectral();
    ParallelFor(pool, panels * chunks, [&](int64_t task) {
      const int64_t chunk = task % chunks, c = task / chunks * kPanel;
      const int64_t columns = Min(kPanel, args.out - c);
      A* result = static_cast<A*>(parts ? args.partial : args.taps) + chunk * taps;
      Arena arena(pool, Arena::Bytes<A>(2 * args.t0 * kPanel) + Arena::Bytes<A>(2 * kPanel));
      A* p = arena.Take<A>(2 * args.t0 * kPanel);
      A* d = arena.Take<A>(2 * kPanel);
      const Part part(args, split, chunk);
      for (int64_t u1 = part.u1_first; u1 < part.u1_last; ++u1) {
        for (int64_t at = 0; at < 2 * args.t0 * kPanel; at += kLane) Store<A>(p + at, Vec<A>{});
        for (int64_t u0 = part.u0_first; u0 < Computed(u1, part.u0_last); ++u0) {
          for (int64_t v = 0; v < kPanel; v += kLane) {
            Vec<A> re = {}, im = {};
            for (int64_t n = 0; v < columns && n < args.n; ++n) {
              const int64_t at = (Frequency(u0, u1) + n) * args.out + c + v;
              const Vec<A> xr = LoadUpTo<A>(x_re + at, columns - v);
              const Vec<A> xi = LoadUpTo<A>(x_im + at, columns - v);
              const Vec<A> yr = LoadUpTo<A>(y_re + at, columns - v);
              const Vec<A> yi = LoadUpTo<A>(y_im + at, columns - v);
              re += xr * yr + xi * yi;
              im += xi * yr - xr * yi;
            }
            Store<A>(d + v, re);
            Store<A>(d + kPanel + v, im);
          }
          if (args.spectral()) {
            StoreGiven(u0, u1, 0, 1, c, columns, kPanel, kPanel, d);
          } else {
            SpreadOuter(u0, u1, kPanel, d, p);
          }
        }
        if (args.spectral()) continue;
        SpreadInner(u1, u1 > part.u1_first, 1, columns, kPanel, kPanel, p, result + c);
      }
    });
    if (parts) SumChunks(pool, chunks, taps);
  }

  bool depthwise() const { return in == 1 && out == 1; }
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax
#endif  // BANDJAX_FFI_CPU_MULTIPLY_H_
