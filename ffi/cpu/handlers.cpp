// The CPU kernels as handlers of XLA's foreign function interface.

#include "handlers.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/axes.h"
#include "cpu/call.h"
#include "cpu/kernels.h"
#include "cpu/read_epilogue.h"
#include "xla/ffi/api/ffi.h"

namespace bandjax {
namespace {

namespace ffi = xla::ffi;

// The attributes `grid`, `steps` and `inverse`, which are there together or not at all.
ffi::Error ReadCircle(ffi::Dictionary attributes, int axis, Circle* circle) {
  if (!attributes.contains("grid")) return ffi::Error::Success();
  const auto grid = attributes.get<ffi::Span<const int64_t>>("grid");
  const auto steps = attributes.get<ffi::Span<const int64_t>>("steps");
  const auto inverse = attributes.get<bool>("inverse");
  if (!grid.has_value() || !steps.has_value() || !inverse.has_value() ||
      grid->size() <= static_cast<size_t>(axis) || steps->size() != grid->size()) {
    return Invalid("grid and steps must have an integer for each axis, and inverse be a bool");
  }
  if ((*grid)[axis] < 1) return UnfitCircle();  // Circle has 0 where there is none.
  *circle = {(*grid)[axis], (*steps)[axis], *inverse};
  return ffi::Error::Success();
}

// The attribute `tiles`: (rows, columns, h, w, first_h, first_w, step_h, step_w), of which h and w
// are the size of a window. Without it there is no tiling.
ffi::Error ReadTiling(ffi::Dictionary attributes, int64_t map_h, int64_t map_w, Tiling* tiling,
                      int64_t* h, int64_t* w) {
  if (!attributes.contains("tiles")) return ffi::Error::Success();
  const auto tiles = attributes.get<ffi::Span<const int64_t>>("tiles");
  if (!tiles.has_value() || tiles->size() != 8) return Invalid("tiles must have 8 integers");
  const int64_t* at = tiles->begin();
  constexpr int64_t kMost = INT32_MAX;
  for (int i = 0; i < 8; ++i) {
    const bool first = i == 4 || i == 5;
    if (at[i] > kMost || at[i] < (first ? -kMost : 1)) return Invalid("tiles must be positive");
  }
  *h = at[2], *w = at[3];
  *tiling = {at[0], at[1], map_h, map_w, at[4], at[5], at[6], at[7]};
  return ffi::Error::Success();
}

// Samples (n, 2 or 3 axes, c), their spectrum (2 or 3 axes, n, c) and a table for each axis. The
// windows of a map have an axis for themselves in the spectrum, behind n.
ffi::Error Transform(ffi::ThreadPool threads, bool analysis, ffi::AnyBuffer samples,
                     ffi::AnyBuffer re, ffi::AnyBuffer im, const ffi::AnyBuffer* tables, int rank,
                     ffi::Dictionary attributes, const Epilogue& epilogue) {
  const auto size = samples.dimensions(), box = re.dimensions();
  const size_t all = static_cast<size_t>(rank) + 2;
  const bool tiled = attributes.contains("tiles");
  if (rank < 2 || rank > 3 || size.size() != all || box.size() != all + tiled ||
      (tiled && rank != 2)) {
    return Invalid("samples and spectrum must have 4 axes with two tables, 5 with three");
  }
  const int64_t n = size[0], c = size[rank + 1];
  int64_t sizes[3] = {size[1], size[2], size[rank]};
  Tiling tiling;
  const ffi::Error unread = ReadTiling(attributes, size[1], size[2], &tiling, &sizes[0], &sizes[1]);
  if (unread.failure()) return unread;
  AxisShape axes[3];
  for (int axis = 0; axis < rank; ++axis) {
    Circle circle;
    const ffi::Error unknown = ReadCircle(attributes, axis, &circle);
    if (unknown.failure()) return unknown;
    const ffi::Error error =
        ReadAxis(sizes[axis], box[axis], tables[axis], axis == rank - 1, circle, &axes[axis]);
    if (error.failure()) return error;
    if (tiled && axes[axis].bare) return Invalid("windows need their tables");
  }
  const auto parts = im.dimensions();
  const int64_t windows = tiled ? tiling.rows * tiling.columns : 1;
  if (box[rank] != n || box[rank + 1 + tiled] != c || (tiled && box[rank + 1] != windows) ||
      !std::equal(parts.begin(), parts.end(), box.begin(), box.end())) {
    return Invalid("the spectrum must be (kept..., n, c), twice");
  }
  Type sample_type, spectrum_type;
  if (!KnownType(samples.element_type(), &sample_type) ||
      !KnownType(re.element_type(), &spectrum_type) || im.element_type() != re.element_type()) {
    return Invalid("the types must be float32, float64 or bfloat16");
  }
  const bool wide = sample_type == Type::kFloat64;
  for (int axis = 0; axis < rank; ++axis) {
    if (wide != (spectrum_type == Type::kFloat64) ||
        tables[axis].element_type() != (wide ? ffi::F64 : ffi::F32)) {
      return Invalid("float64 is for samples, spectrum and tables together");
    }
  }
  const Kernels& kernels = ChosenKernels();
  bool fast[3];
  if (!tiled && ChooseFourier(axes, rank, fast)) {
    FourierArgs args{};
    args.n = n, args.c = c;
    args.samples = samples.untyped_data();
    args.re = re.untyped_data(), args.im = im.untyped_data();
    args.sample_type = sample_type, args.spectrum_type = spectrum_type;
    args.epilogue = epilogue;
    SetPlans(axes, fast, tables, box.begin(), rank, analysis, &args);
    return Call(analysis ? kernels.fourier_analysis : kernels.fourier_synthesis, args, threads);
  }
  TransformArgs args{};
  args.tiling = tiling;
  args.epilogue = epilogue;
  args.n = n * windows, args.h = axes[0].samples, args.w = axes[1].samples, args.c = c;
  args.k0 = box[0], args.k1 = box[1];
  args.u0 = axes[0].limit, args.u1 = axes[1].limit;
  args.sample_type = sample_type, args.spectrum_type = spectrum_type;
  args.samples = samples.untyped_data();
  args.re = re.untyped_data(), args.im = im.untyped_data();
  args.table0 = tables[0].untyped_data(), args.table1 = tables[1].untyped_data();
  return Call(analysis ? kernels.analysis : kernels.synthesis, args, threads);
}

// The tables behind a transform's other operands.
ffi::Error ReadTables(ffi::RemainingArgs rest, size_t count, ffi::AnyBuffer (&tables)[3]) {
  if (count < 2 || count > 3) return Invalid("there must be 2 or 3 tables");
  for (size_t axis = 0; axis < count; ++axis) {
    const auto table = rest.get<ffi::AnyBuffer>(axis);
    if (!table.has_value()) return table.error();
    tables[axis] = *table;
  }
  return ffi::Error::Success();
}

ffi::Error Analysis(ffi::ThreadPool threads, ffi::AnyBuffer samples, ffi::RemainingArgs rest,
                    ffi::Result<ffi::AnyBuffer> re, ffi::Result<ffi::AnyBuffer> im,
                    ffi::Dictionary attributes) {
  ffi::AnyBuffer tables[3] = {samples, samples, samples};
  const ffi::Error error = ReadTables(rest, rest.size(), tables);
  if (error.failure()) return error;
  PreferHugePages(re->untyped_data(), re->size_bytes());
  PreferHugePages(im->untyped_data(), im->size_bytes());
  return Transform(threads, true, samples, *re, *im, tables, static_cast<int>(rest.size()),
                   attributes, Epilogue{});
}

ffi::Error Synthesis(ffi::ThreadPool threads, ffi::AnyBuffer re, ffi::AnyBuffer im,
                     ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> samples,
                     ffi::Dictionary attributes) {
  ffi::AnyBuffer tables[3] = {re, re, re};
  Epilogue epilogue;
  size_t count;
  ffi::Error error = ReadEpilogue(attributes, rest, *samples, &count, &epilogue);
  if (error.success()) error = ReadTables(rest, count, tables);
  if (error.failure()) return error;
  PreferHugePages(samples->untyped_data(), samples->size_bytes());
  return Transform(threads, false, *samples, re, im, tables, static_cast<int>(count), attributes,
                   epilogue);
}

// Shapes and types of a product; `x` and `y` are the spectra of input and output.
ffi::Error ProductArgs(ffi::AnyBuffer x_re, ffi::AnyBuffer x_im, ffi::AnyBuffer y_re,
                       ffi::AnyBuffer y_im, ffi::AnyBuffer taps, ffi::AnyBuffer outer,
                       ffi::AnyBuffer inner, int64_t groups, bool hermitian, MultiplyArgs* args) {
  const auto x = x_re.dimensions(), y = y_re.dimensions(), w = taps.dimensions();
  if (x.size() != 4 || y.size() != 4 || w.size() != 4 || groups < 1) {
    return Invalid("spectra and taps must have 4 axes, and groups be positive");
  }
  for (int64_t size : {x[0], x[1], x[3], y[3], w[0], w[1]}) {
    if (size < 1) return Invalid("no axis but the batch may be empty");
  }
  // Tables without columns: in place of the taps stands the filter's spectrum, its real parts and
  // then its imaginary ones.
  const bool spectral = outer.element_count() == 0;
  if (spectral && (w[0] != 2 * x[0] || w[1] != x[1])) {
    return Invalid("without taps the filter must be (2 k0, k1, in / groups, out)");
  }
  args->k0 = x[0], args->k1 = x[1], args->n = x[2], args->in = x[3];
  args->out = y[3], args->groups = groups;
  args->t0 = spectral ? 0 : w[0], args->t1 = spectral ? 0 : w[1];
  args->hermitian = hermitian;
  if (!HasShape(x_im, {args->k0, args->k1, args->n, args->in}) ||
      !HasShape(y_re, {args->k0, args->k1, args->n, args->out}) ||
      !HasShape(y_im, {args->k0, args->k1, args->n, args->out}) || args->in % groups != 0 ||
      args->out % groups != 0 || w[2] != args->in / groups || w[3] != args->out ||
      !HasShape(outer, {2, args->k0, args->t0}) || !HasShape(inner, {2, args->k1, args->t1})) {
    return Invalid("spectra, taps and filter tables do not fit together");
  }
  const ffi::DataType type = outer.element_type();
  if (!KnownType(x_re.element_type(), &args->x_type) ||
      !KnownType(y_re.element_type(), &args->y_type) || !KnownType(type, &args->type) ||
      !KnownType(taps.element_type(), &args->w_type) ||
      x_im.element_type() != x_re.element_type() || y_im.element_type() != y_re.element_type() ||
      (args->w_type != args->type && !(spectral && args->w_type == Type::kBFloat16)) ||
      inner.element_type() != type || type == ffi::BF16 ||
      (type == ffi::F64) != (args->x_type == Type::kFloat64) ||
      (type == ffi::F64) != (args->y_type == Type::kFloat64) ||
      (args->y_type == Type::kBFloat16 && args->x_type != Type::kBFloat16)) {
    return Invalid(
        "all must be float32, or all float64; with float32 the input's spectrum may be bfloat16, "
        "or "
        "both spectra, and a given one of the filter");
  }
  const bool depthwise = w[2] == 1 && args->out == groups;
  if (args->w_type != args->type && (args->type != Type::kFloat32 || depthwise)) {
    return Invalid("a filter's spectrum in bfloat16 is for sums in float32, not depthwise");
  }
  args->x_re = x_re.untyped_data(), args->x_im = x_im.untyped_data();
  args->y_re = y_re.untyped_data(), args->y_im = y_im.untyped_data();
  args->taps = taps.untyped_data();
  args->outer = outer.untyped_data(), args->inner = inner.untyped_data();
  return ffi::Error::Success();
}

ffi::Error MultiplySum(ffi::ThreadPool threads, ffi::AnyBuffer x_re, ffi::AnyBuffer x_im,
                       ffi::AnyBuffer taps, ffi::AnyBuffer outer, ffi::AnyBuffer inner,
                       ffi::Result<ffi::AnyBuffer> y_re, ffi::Result<ffi::AnyBuffer> y_im,
                       int64_t groups, bool hermitian) {
  MultiplyArgs args{};
  const ffi::Error error =
      ProductArgs(x_re, x_im, *y_re, *y_im, taps, outer, inner, groups, hermitian, &args);
  if (error.failure()) return error;
  PreferHugePages(y_re->untyped_data(), y_re->size_bytes());
  PreferHugePages(y_im->untyped_data(), y_im->size_bytes());
  return Call(ChosenKernels().multiply_sum, args, threads);
}

ffi::Error InputProduct(ffi::ThreadPool threads, ffi::AnyBuffer y_re, ffi::AnyBuffer y_im,
                        ffi::AnyBuffer taps, ffi::AnyBuffer outer, ffi::AnyBuffer inner,
                        ffi::Result<ffi::AnyBuffer> x_re, ffi::Result<ffi::AnyBuffer> x_im,
                        int64_t groups, bool hermitian) {
  MultiplyArgs args{};
  const ffi::Error error =
      ProductArgs(*x_re, *x_im, y_re, y_im, taps, outer, inner, groups, hermitian, &args);
  if (error.failure()) return error;
  if (args.x_type != args.y_type || args.w_type != args.type) {
    return Invalid("the result must be of the spectrum's type");
  }
  PreferHugePages(x_re->untyped_data(), x_re->size_bytes());
  PreferHugePages(x_im->untyped_data(), x_im->size_bytes());
  return Call(ChosenKernels().input_product, args, threads);
}

ffi::Error FilterProduct(ffi::ThreadPool threads, ffi::AnyBuffer x_re, ffi::AnyBuffer x_im,
                         ffi::AnyBuffer y_re, ffi::AnyBuffer y_im, ffi::AnyBuffer outer,
                         ffi::AnyBuffer inner, ffi::Result<ffi::AnyBuffer> taps,
                         ffi::Result<ffi::AnyBuffer> partial, int64_t groups, bool hermitian) {
  MultiplyArgs args{};
  const ffi::Error error =
      ProductArgs(x_re, x_im, y_re, y_im, *taps, outer, inner, groups, hermitian, &args);
  if (error.failure()) return error;
  if (args.w_type != args.type) return Invalid("the result must be of the type of the sums");
  if (args.spectral() && hermitian) {
    return Invalid("the gradient of a spectrum is of all numbers, not hermitian");
  }
  const int64_t parts = args.spectral() ? 1 : SplitFilter(args).parts();
  if (parts > 1 && partial->size_bytes() < parts * taps->size_bytes()) {
    return Invalid("the workspace must hold " + std::to_string(parts) + " filter gradients");
  }
  args.partial = partial->untyped_data();
  PreferHugePages(taps->untyped_data(), taps->size_bytes());
  PreferHugePages(partial->untyped_data(), partial->size_bytes());
  return Call(ChosenKernels().filter_product, args, threads);
}

// Hands `x` on once `after` is there. XLA cannot look inside: it neither merges what is computed of
// the result with the same of `x`, nor begins it early. Where XLA honours the alias, both are one
// buffer.
ffi::Error Hold(ffi::AnyBuffer x, ffi::AnyBuffer, ffi::Result<ffi::AnyBuffer> held) {
  if (held->element_type() != x.element_type() || held->size_bytes() != x.size_bytes()) {
    return Invalid("what is held must keep its type and size");
  }
  if (held->untyped_data() != x.untyped_data()) {
    std::memcpy(held->untyped_data(), x.untyped_data(), x.size_bytes());
  }
  return ffi::Error::Success();
}

using Buffer = ffi::AnyBuffer;

XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuAnalysis, Analysis,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuSynthesis, Synthesis,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Buffer>()
                                  .Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuMultiplySum, MultiplySum,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("hermitian"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuInputProduct, InputProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("hermitian"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuFilterProduct, FilterProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("hermitian"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuHold, Hold,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>());

}  // namespace

std::vector<Handler> CpuHandlers() {
  std::vector<Handler> all = PackHandlers();
  for (const Handler& handler : WindowHandlers()) all.push_back(handler);
  for (const Handler& handler : ColumnHandlers()) all.push_back(handler);
  const std::vector<Handler> others = {{"bandjax_analysis", BandjaxCpuAnalysis},
                                       {"bandjax_synthesis", BandjaxCpuSynthesis},
                                       {"bandjax_multiply_sum", BandjaxCpuMultiplySum},
                                       {"bandjax_input_product", BandjaxCpuInputProduct},
                                       {"bandjax_filter_product", BandjaxCpuFilterProduct},
                                       {"bandjax_hold", BandjaxCpuHold}};
  all.insert(all.end(), others.begin(), others.end());
  return all;
}

}  // namespace bandjax
