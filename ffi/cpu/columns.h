// The method "dft" of few examples on maps, a column of the spectrum at a time.
//
// The output's spectrum is made, and transformed back along the column, while it lies in the
// second-level cache: it is never in memory. So it is with the cotangent's spectrum, which meets
// the input's for the gradient of the taps, and the taps for that of the input.
#ifndef BANDJAX_FFI_CPU_COLUMNS_H_
#define BANDJAX_FFI_CPU_COLUMNS_H_

#include "fourier_lines.h"
#include "narrow_multiply.h"

namespace bandjax {
namespace BANDJAX_ISA {

// Computes in A; maps are stored in T, the input's spectrum in S.
template <typename A, typename T, typename S>
class Columns {
  using Product = NarrowMultiplier<A, S, A>;
  using Analysis = FourierLines<A, T, A, true>;
  using Synthesis = FourierLines<A, T, A, false>;
  using Panel = typename Product::Panel;
  template <typename L>
  using Factor = typename Product::template Factor<L>;

  // The spectrum at a column frequency: (row frequency, example, channel).
  struct Column {
    A *re, *im;
    int64_t channels, next;
    Factor<A> Left(int64_t channel) const { return {re + channel, im + channel, channels, next}; }
  };

 public:
  Columns(const ColumnArgs& args, Pool* pool) : args_(args), pool_(pool) {}

  void Convolve() const {
    const Synthesis to(args_.to);
    const Product product(args_.product);
    const auto z = WorkspaceOf(to, static_cast<A*>(pool_->shared(pool_, WorkspaceBytes(to))));
    constexpr int64_t kEach = 2;
    ParallelFor(pool_, CeilDiv(k1_, kEach), [&](int64_t task) {
      Arena arena(pool_, to.DeskBytes() + ColumnBytes(out_) + ProductBytes(product));
      const auto desk = to.TakeDesk(&arena);
      const Column y = TakeColumn(&arena, out_);
      const auto own = TakeProduct(&arena, product);
      for (int64_t at = task * kEach; at < Min(k1_, (task + 1) * kEach); ++at) {
        Spread<true>(product, at, InputAt(at, 0), y, own);
        Outer(to, at, y, z, desk);
      }
      EndStream(z.past);
    });
    Rows(to, z);
  }

  void Gradients() const {
    const Analysis from(args_.from);
    const Synthesis to(args_.to);
    const Product product(args_.product);
    MultiplyArgs reduced = args_.product;
    reduced.taps = args_.gradient;
    A* shared = static_cast<A*>(
        pool_->shared(pool_, WorkspaceBytes(from) + WorkspaceBytes(to) + PartialBytes()));
    const auto z_from = WorkspaceOf(from, shared);
    const auto z_to = WorkspaceOf(to, shared + WorkspaceBytes(from) / sizeof(A));
    A* partial = z_to.z + WorkspaceBytes(to) / sizeof(A);
    reduced.partial = partial;
    Rows(from, z_from);
    // The parts depend on the shapes alone, and so does the order of all additions.
    const int64_t parts = Parts();
    ParallelFor(pool_, parts, [&](int64_t part) {
      Arena arena(pool_, from.DeskBytes() + to.DeskBytes() + ColumnBytes(out_) + ColumnBytes(in_) +
                             ProductBytes(product));
      const auto from_desk = from.TakeDesk(&arena);
      const auto to_desk = to.TakeDesk(&arena);
      const Column ct = TakeColumn(&arena, out_), dx = TakeColumn(&arena, in_);
      const auto own = TakeProduct(&arena, product);
      const int64_t first = k1_ * part / parts, last = k1_ * (part + 1) / parts;
      for (int64_t at = first; at < last; ++at) {
        Outer(from, at, ct, z_from, from_desk);
        Gradient(product, at, ct, at > first, partial + part * taps_, own);
        Spread<false>(product, at, ct.Left(0), dx, own);
        Outer(to, at, dx, z_to, to_desk);
      }
      EndStream(z_to.past);
    });
    Product(reduced).SumChunks(pool_, parts, taps_);
    Rows(to, z_to);
  }

 private:
  static constexpr int64_t kPanel = Product::kPanel;

  int64_t Parts() const { return Min(16, k1_); }
  size_t PartialBytes() const { return Arena::Bytes<A>(Parts() * taps_); }

  template <typename Lines>
  static int64_t PlaneNumbers(const Lines& lines) {
    return lines.last_kept_ * Lines::Pitch(lines.height_);
  }
  template <typename Lines>
  size_t WorkspaceBytes(const Lines& lines) const {
    return Arena::Bytes<A>(n_ * lines.chunks_ * PlaneNumbers(lines));
  }

  template <typename Lines>
  typename Lines::Workspace WorkspaceOf(const Lines& lines, A* z) const {
    return Lines::SharedWorkspace(z, Lines::Pitch(lines.height_), WorkspaceBytes(lines));
  }

  size_t ColumnBytes(int64_t channels) const { return 2 * Arena::Bytes<A>(k0_ * n_ * channels); }
  Column TakeColumn(Arena* arena, int64_t channels) const {
    A* re = arena->template Take<A>(k0_ * n_ * channels);
    return {re, arena->template Take<A>(k0_ * n_ * channels), channels, n_ * channels};
  }

  int64_t ProductNumbers(const Product& product) const {
    const int64_t depth =
        Max(product.template DepthBlock<true, A>(),
            Max(product.template DepthBlock<false, A>(), product.GradientBlock()));
    return product.planes * depth * kPanel;
  }
  int64_t StageNumbers(const Product& product) const {
    return product.template StageNumbers<S>(in_ / args_.product.groups);
  }
  size_t ProductBytes(const Product& product) const {
    return product.DeskBytes(ProductNumbers(product), StageNumbers(product));
  }
  auto TakeProduct(Arena* arena, const Product& product) const {
    return product.TakeDesk(arena, ProductNumbers(product), StageNumbers(product));
  }

  // The input's spectrum at a column frequency, from a channel on.
  Factor<S> InputAt(int64_t at, int64_t channel) const {
    const int64_t first = at * n_ * in_ + channel;
    return {static_cast<const S*>(args_.product.x_re) + first,
            static_cast<const S*>(args_.product.x_im) + first, in_, k1_ * n_ * in_};
  }

  // Of all rows of the sum and all columns the panels.
  template <typename Body>
  void ForPanels(int64_t depth_all, int64_t depth_block, int64_t columns_all, Body body) const {
    for (int64_t group = 0; group < args_.product.groups; ++group) {
      for (int64_t column0 = 0; column0 < columns_all; column0 += kPanel) {
        for (int64_t k = 0; k < depth_all; k += depth_block) {
          body(Panel{group, k, Min(depth_block, depth_all - k), column0,
                     Min(kPanel, columns_all - column0)});
        }
      }
    }
  }

  template <bool kForward, typename L, typename Desk>
  void Spread(const Product& product, int64_t at, Factor<L> left, const Column& to,
              const Desk& desk) const {
    const int64_t depth_all = kForward ? product.in : product.out;
    const int64_t columns_all = kForward ? product.out : product.in;
    const auto body = [&](const Panel& panel) {
      const int64_t channel = panel.group * columns_all + panel.column0;
      product.template SpreadColumn<kForward>(
          at, 0, k0_, panel, left.At(0, 0, panel.group * depth_all + panel.k), to.re + channel,
          to.im + channel, to.channels, to.next, desk);
    };
    ForPanels(depth_all, product.template DepthBlock<kForward, A>(), columns_all, body);
  }

  template <typename Desk>
  void Gradient(const Product& product, int64_t at, const Column& ct, bool add, A* result,
                const Desk& desk) const {
    ForPanels(product.in, product.GradientBlock(), product.out, [&](const Panel& panel) {
      product.GradientColumn(at, 0, k0_, panel, InputAt(at, panel.group * product.in + panel.k),
                             ct.Left(panel.group * product.out + panel.column0), add, result, desk);
    });
  }

  // The lines of a column frequency, of all examples and channels.
  template <typename Lines>
  void Outer(const Lines& lines, int64_t at, const Column& column,
             const typename Lines::Workspace& z, const typename Lines::Desk& desk) const {
    const int64_t plane = PlaneNumbers(lines);
    lines.SetFactors(at, desk.factors);
    for (int64_t index = 0; index < n_ * lines.chunks_; ++index) {
      const auto item = lines.ItemAt(index);
      for (int64_t v = 0; v < item.vectors; ++v) {
        const int64_t c = item.c + v * Lines::kLane, first = item.n * column.channels + c;
        lines.template OuterLine<A>(column.channels - c, column.re + first, column.im + first,
                                    column.next, false,
                                    z.At(index * plane + at * z.pitch + v * Lines::kWide), desk);
      }
    }
  }

  // All rows of the maps. Channels that lie side by side in memory are taken together: a processor
  // fetches more than a vector of them.
  template <typename Lines>
  void Rows(const Lines& lines, const typename Lines::Workspace& z) const {
    constexpr int64_t kEach = 8;
    const int64_t blocks = CeilDiv(lines.height_, kEach);
    ParallelFor(pool_, n_ * blocks, [&](int64_t task) {
      Arena arena(pool_, lines.DeskBytes());
      const auto desk = lines.TakeDesk(&arena);
      const int64_t first = task / blocks * lines.chunks_, begin = task % blocks * kEach;
      for (int64_t i = begin; i < Min(lines.height_, begin + kEach); i += 2) {
        for (int64_t index = first; index < first + lines.chunks_; ++index) {
          const auto item = lines.ItemAt(index);
          for (int64_t v = 0; v < item.vectors; ++v) {
            lines.Rows(item, v, 0, i, Min(i + 2, lines.height_), z.At(index * PlaneNumbers(lines)),
                       desk);
          }
        }
      }
      EndStream(lines.stream_ || z.past);
    });
  }

  const ColumnArgs& args_;
  Pool* pool_;
  const int64_t n_ = args_.product.n, in_ = args_.product.in, out_ = args_.product.out;
  const int64_t k0_ = args_.product.k0, k1_ = args_.product.k1;
  const int64_t taps_ = args_.product.t0 * args_.product.t1 * in_ / args_.product.groups * out_;
};

template <bool kGradient>
void ColumnsTyped(const ColumnArgs& args, Pool* pool) {
  const auto run = [&](const auto& columns) {
    if constexpr (kGradient) {
      columns.Gradients();
    } else {
      columns.Convolve();
    }
  };
  if (args.product.type == Type::kFloat64) {
    run(Columns<double, double, double>(args, pool));
  } else {
    run(Columns<float, float, float>(args, pool));
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_COLUMNS_H_
