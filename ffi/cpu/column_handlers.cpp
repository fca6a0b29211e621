// The kernels of columns.h as handlers of XLA's foreign function interface.

#include <cstdint>
#include <vector>

#include "cpu/axes.h"
#include "cpu/call.h"
#include "handlers.h"

namespace bandjax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Integers = ffi::Span<const int64_t>;

// What the kernels by columns share: spectra (k0, k1, n, in), taps (t0, t1, in / groups, out).
ffi::Error ReadColumns(Buffer x_re, Buffer x_im, Buffer taps, Buffer outer, Buffer inner,
                       int64_t groups, bool hermitian, MultiplyArgs* args) {
  const auto w = taps.dimensions(), x = x_re.dimensions();
  if (w.size() != 4 || x.size() != 4) return Invalid("spectra and taps must have 4 axes");
  for (int64_t size : {x[0], x[1], x[3], w[0], w[1], w[3]}) {
    if (size < 1) return Invalid("no axis but the batch may be empty");
  }
  if (x[1] < 2) return Invalid("there must be columns");
  args->k0 = x[0], args->k1 = x[1], args->n = x[2], args->in = x[3];
  args->out = w[3], args->groups = groups, args->hermitian = hermitian;
  args->t0 = w[0], args->t1 = w[1];
  const ffi::DataType type = outer.element_type();
  if (groups < 1 || args->in % groups != 0 || args->out % groups != 0 ||
      w[2] != args->in / groups || !HasShape(x_im, {x[0], x[1], x[2], x[3]}) ||
      !HasShape(outer, {2, args->k0, args->t0}) || !HasShape(inner, {2, args->k1, args->t1})) {
    return Invalid("spectra, taps and filter tables do not fit together");
  }
  if (!KnownType(type, &args->type) || type == ffi::BF16 || x_re.element_type() != type ||
      x_im.element_type() != type || taps.element_type() != type || inner.element_type() != type) {
    return Invalid("all must be float32, or all float64");
  }
  args->x_type = args->y_type = args->w_type = args->type;
  args->x_re = x_re.untyped_data(), args->x_im = x_im.untyped_data();
  args->taps = taps.untyped_data();
  args->outer = outer.untyped_data(), args->inner = inner.untyped_data();
  return ffi::Error::Success();
}

// Maps (n, h, w, c), and the tables of their transform.
ffi::Error ReadMaps(Buffer samples, int64_t channels, const Buffer (&tables)[2], Integers grid,
                    Integers steps, bool inverse, bool analysis, const MultiplyArgs& product,
                    FourierArgs* args) {
  const auto size = samples.dimensions();
  if (grid.size() != 2 || steps.size() != 2 || grid[0] < 1 || grid[1] < 1) {
    return Invalid("grid and steps must have two integers");
  }
  if (size.size() != 4 || size[0] != product.n || size[3] != channels || size[1] < 2) {
    return Invalid("maps must be (n, h, w, c), of two rows at least");
  }
  const int64_t kept[2] = {product.k0, product.k1};
  AxisShape axes[2];
  bool fast[2];
  for (int axis = 0; axis < 2; ++axis) {
    const ffi::Error error = ReadAxis(size[axis + 1], kept[axis], tables[axis], axis == 1,
                                      {grid[axis], steps[axis], inverse}, &axes[axis]);
    if (error.failure()) return error;
    fast[axis] = HasFast(axes[axis]);
    if (tables[axis].element_type() != samples.element_type()) {
      return Invalid("maps and tables must have one type");
    }
  }
  Type type;
  if (!KnownType(samples.element_type(), &type) || type != product.type) {
    return Invalid("all must be float32, or all float64");
  }
  args->n = product.n, args->c = channels;
  args->samples = samples.untyped_data();
  args->sample_type = args->spectrum_type = type;
  SetPlans(axes, fast, tables, kept, 2, analysis, args);
  return ffi::Error::Success();
}

ffi::Error Columns(ffi::ThreadPool threads, Buffer x_re, Buffer x_im, Buffer taps, Buffer outer,
                   Buffer inner, Buffer table0, Buffer table1, ffi::Result<Buffer> y,
                   int64_t groups, bool hermitian, Integers grid, Integers steps) {
  ColumnArgs args{};
  ffi::Error error = ReadColumns(x_re, x_im, taps, outer, inner, groups, hermitian, &args.product);
  if (error.success()) {
    error = ReadMaps(*y, args.product.out, {table0, table1}, grid, steps, true, false, args.product,
                     &args.to);
  }
  if (error.failure()) return error;
  PreferHugePages(y->untyped_data(), y->size_bytes());
  return Call(ChosenKernels().columns, args, threads);
}

ffi::Error ColumnsGradients(ffi::ThreadPool threads, Buffer x_re, Buffer x_im, Buffer ct,
                            Buffer taps, Buffer outer, Buffer inner, Buffer out_table0,
                            Buffer out_table1, Buffer in_table0, Buffer in_table1,
                            ffi::Result<Buffer> dx, ffi::Result<Buffer> gradient, int64_t groups,
                            bool hermitian, Integers grid, Integers out_steps, Integers in_steps) {
  ColumnArgs args{};
  ffi::Error error = ReadColumns(x_re, x_im, taps, outer, inner, groups, hermitian, &args.product);
  if (error.success()) {
    error = ReadMaps(ct, args.product.out, {out_table0, out_table1}, grid, out_steps, true, true,
                     args.product, &args.from);
  }
  if (error.success()) {
    error = ReadMaps(*dx, args.product.in, {in_table0, in_table1}, grid, in_steps, false, false,
                     args.product, &args.to);
  }
  if (error.failure()) return error;
  if (gradient->element_type() != taps.element_type() ||
      !HasShape(*gradient,
                {args.product.t0, args.product.t1, args.product.in / groups, args.product.out})) {
    return Invalid("the gradient must be like the taps");
  }
  args.gradient = gradient->untyped_data();
  PreferHugePages(dx->untyped_data(), dx->size_bytes());
  return Call(ChosenKernels().columns_gradients, args, threads);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuColumns, Columns,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("hermitian")
                                  .Attr<Integers>("grid")
                                  .Attr<Integers>("steps"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuColumnsGradients, ColumnsGradients,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("hermitian")
                                  .Attr<Integers>("grid")
                                  .Attr<Integers>("out_steps")
                                  .Attr<Integers>("in_steps"));

}  // namespace

std::vector<Handler> ColumnHandlers() {
  return {{"bandjax_columns", BandjaxCpuColumns},
          {"bandjax_columns_gradients", BandjaxCpuColumnsGradients}};
}

}  // namespace bandjax
