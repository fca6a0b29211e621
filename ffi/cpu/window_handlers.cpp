// The kernels of windows.h and direct.h as handlers of XLA's foreign function interface.

#include <cstdint>
#include <vector>

#include "cpu/call.h"
#include "cpu/read_epilogue.h"
#include "handlers.h"

namespace bandjax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Integers = ffi::Span<const int64_t>;

constexpr int64_t kMost = INT32_MAX;

bool IsTable(Buffer table, ffi::DataType type, int64_t rows, int64_t columns) {
  const auto size = table.dimensions();
  return table.element_type() == type && size.size() == 3 && size[0] == 2 && size[1] == rows &&
         size[2] == columns;
}

// Maps x (n, axes, in) and y (n, axes, out), taps (axes, in / groups, out), or transposed (axes,
// out / groups, in): what is common to the arguments of both kernels.
template <typename Args>
ffi::Error ReadMaps(Buffer x, Buffer y, Buffer taps, size_t rank, int64_t groups, bool transposed,
                    Args* args) {
  const auto from = x.dimensions(), to = y.dimensions(), filter = taps.dimensions();
  const size_t all = rank + 2;
  if (rank < 1 || rank > 3 || from.size() != all || to.size() != all || filter.size() != all) {
    return Invalid("maps and taps must have one to three axes");
  }
  args->n = from[0], args->in = from[rank + 1], args->out = to[rank + 1], args->groups = groups;
  args->transposed = transposed;
  const int64_t each = transposed ? args->out : args->in, other = transposed ? args->in : args->out;
  if (to[0] != args->n || groups < 1 || args->in < 1 || args->out < 1 || args->in % groups != 0 ||
      args->out % groups != 0 || filter[rank] != each / groups || filter[rank + 1] != other) {
    return Invalid("channels of maps and taps do not fit together");
  }
  for (size_t axis = 1; axis <= rank; ++axis) {
    if (from[axis] < 1 || to[axis] < 1 || filter[axis - 1] < 1 || from[axis] > kMost ||
        to[axis] > kMost || filter[axis - 1] > kMost) {
      return Invalid("sizes must be positive");
    }
  }
  const ffi::DataType type = taps.element_type();
  if (x.element_type() != y.element_type() || (type != ffi::F32 && type != ffi::F64)) {
    return Invalid("all must be float32, or all float64");
  }
  args->type = type == ffi::F64 ? Type::kFloat64 : Type::kFloat32;
  args->x = x.untyped_data(), args->y = y.untyped_data(), args->taps = taps.untyped_data();
  return ffi::Error::Success();
}

// Whether there is one for each axis, none of them above kMost, nor below `least`.
bool AreFor(Integers values, size_t rank, int64_t least) {
  bool good = values.size() == rank;
  for (const int64_t value : values) good = good && value >= least && value <= kMost;
  return good;
}

// Of each axis three tables. The attributes `lengths`, `dilation` and `first` have an integer for
// each axis.
ffi::Error ReadWindows(Buffer x, Buffer y, Buffer taps, ffi::RemainingArgs tables, size_t count,
                       int64_t groups, bool transposed, Integers lengths, Integers dilation,
                       Integers first, WindowArgs* args) {
  const size_t rank = lengths.size();
  const ffi::Error error = ReadMaps(x, y, taps, rank, groups, transposed, args);
  if (error.failure()) return error;
  if (count != 3 * rank) return Invalid("there must be three tables for each axis");
  const ffi::DataType type = taps.element_type(), map_type = x.element_type();
  const bool wide = type == ffi::F64;
  if (map_type != type && (wide || map_type != ffi::BF16)) {
    return Invalid("all must be float32, or all float64; with float32 the maps may be bfloat16");
  }
  args->map_type = map_type == type ? args->type : Type::kBFloat16;
  if (!AreFor(lengths, rank, 1) || !AreFor(dilation, rank, 1) || !AreFor(first, rank, -kMost)) {
    return Invalid("lengths and dilation must be positive, and one for each axis");
  }
  const auto from = x.dimensions(), to = y.dimensions(), filter = taps.dimensions();
  for (size_t axis = 0; axis < 3; ++axis) {
    WindowAxis& a = args->axes[axis];
    if (axis >= rank) {  // of one sample, which is multiplied by one
      static constexpr float kOne32[3] = {1, 0, 0};
      static constexpr double kOne64[3] = {1, 0, 0};
      const void* one = wide ? static_cast<const void*>(kOne64) : kOne32;
      a = {1, 1, 1, 1, 1, 0, 1, 1, one, one, one};
      continue;
    }
    a.in = from[axis + 1], a.out = to[axis + 1], a.taps = filter[axis];
    a.length = lengths[axis], a.first = first[axis];
    a.span = a.grid = a.length + (a.taps - 1) * dilation[axis];
    a.windows = (a.out + a.length - 1) / a.length;
    const void* read[3];
    const int64_t half = a.grid / 2 + 1, kept = axis == 0 ? half : a.grid;
    const int64_t rows[3] = {half, half, kept};
    const int64_t columns[3] = {(a.span + 1) / 2, (a.length + 1) / 2, a.taps};
    for (int i = 0; i < 3; ++i) {
      const auto table = tables.get<Buffer>(3 * axis + i);
      if (!table.has_value()) return table.error();
      if (!IsTable(*table, type, rows[i], columns[i])) return Invalid("the tables do not fit");
      read[i] = table->untyped_data();
    }
    a.span_table = read[0], a.length_table = read[1], a.turns = read[2];
  }
  return ffi::Error::Success();
}

// The attributes `strides`, `dilation` and `first` have an integer for each axis.
ffi::Error ReadDirect(Buffer x, Buffer y, Buffer taps, int64_t groups, bool transposed,
                      Integers strides, Integers dilation, Integers first, DirectArgs* args) {
  const size_t rank = strides.size();
  const ffi::Error error = ReadMaps(x, y, taps, rank, groups, transposed, args);
  if (error.failure()) return error;
  if (x.element_type() != taps.element_type()) {
    return Invalid("all must be float32, or all float64");
  }
  if (!AreFor(strides, rank, 1) || !AreFor(dilation, rank, 1) || !AreFor(first, rank, -kMost)) {
    return Invalid("strides and dilation must be positive, and one for each axis");
  }
  const auto from = x.dimensions(), to = y.dimensions(), filter = taps.dimensions();
  for (size_t axis = 0; axis < 3; ++axis) {
    DirectAxis& a = args->axes[axis];
    a = {1, 1, 1, 0, 1, 1};
    if (axis + rank < 3) continue;  // The last ones are there.
    const size_t i = axis + rank - 3;
    a = {from[i + 1], to[i + 1], filter[i], first[i], strides[i], dilation[i]};
  }
  return ffi::Error::Success();
}

ffi::Error Convolve(ffi::ThreadPool threads, Buffer x, Buffer taps, ffi::RemainingArgs tables,
                    ffi::Result<Buffer> y, int64_t groups, bool transposed, Integers lengths,
                    Integers dilation, Integers first, bool bias, bool residual, double low,
                    double high) {
  WindowArgs args{};
  size_t count;
  ffi::Error error = ReadEpilogue(bias, residual, low, high, tables, *y, &count, &args.epilogue);
  if (error.success()) {
    error = ReadWindows(x, *y, taps, tables, count, groups, transposed, lengths, dilation, first,
                        &args);
  }
  if (error.failure()) return error;
  PreferHugePages(y->untyped_data(), y->size_bytes());
  return Call(ChosenKernels().windows, args, threads);
}

ffi::Error FilterGradient(ffi::ThreadPool threads, Buffer x, Buffer y, ffi::RemainingArgs tables,
                          ffi::Result<Buffer> taps, int64_t groups, Integers lengths,
                          Integers dilation, Integers first) {
  WindowArgs args{};
  const ffi::Error error = ReadWindows(x, y, *taps, tables, tables.size(), groups, false, lengths,
                                       dilation, first, &args);
  if (error.failure()) return error;
  return Call(ChosenKernels().windows_filter, args, threads);
}

ffi::Error ConvolveDirectly(ffi::ThreadPool threads, Buffer x, Buffer taps, ffi::RemainingArgs rest,
                            ffi::Result<Buffer> y, int64_t groups, bool transposed,
                            Integers strides, Integers dilation, Integers first, bool bias,
                            bool residual, double low, double high) {
  DirectArgs args{};
  size_t count;
  ffi::Error error = ReadEpilogue(bias, residual, low, high, rest, *y, &count, &args.epilogue);
  if (error.success() && count != 0) error = Invalid("there are operands too many");
  if (error.success()) {
    error = ReadDirect(x, *y, taps, groups, transposed, strides, dilation, first, &args);
  }
  if (error.failure()) return error;
  PreferHugePages(y->untyped_data(), y->size_bytes());
  return Call(ChosenKernels().direct, args, threads);
}

ffi::Error FilterGradientDirectly(ffi::ThreadPool threads, Buffer x, Buffer y,
                                  ffi::Result<Buffer> taps, int64_t groups, Integers strides,
                                  Integers dilation, Integers first) {
  DirectArgs args{};
  const ffi::Error error = ReadDirect(x, y, *taps, groups, false, strides, dilation, first, &args);
  if (error.failure()) return error;
  return Call(ChosenKernels().direct_filter, args, threads);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuDirect, ConvolveDirectly,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("transposed")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("dilation")
                                  .Attr<Integers>("first")
                                  .Attr<bool>("bias")
                                  .Attr<bool>("residual")
                                  .Attr<double>("low")
                                  .Attr<double>("high"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuDirectFilter, FilterGradientDirectly,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("dilation")
                                  .Attr<Integers>("first"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuWindows, Convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<bool>("transposed")
                                  .Attr<Integers>("lengths")
                                  .Attr<Integers>("dilation")
                                  .Attr<Integers>("first")
                                  .Attr<bool>("bias")
                                  .Attr<bool>("residual")
                                  .Attr<double>("low")
                                  .Attr<double>("high"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuWindowsFilter, FilterGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("groups")
                                  .Attr<Integers>("lengths")
                                  .Attr<Integers>("dilation")
                                  .Attr<Integers>("first"));

}  // namespace

std::vector<Handler> WindowHandlers() {
  return {{"bandjax_direct", BandjaxCpuDirect},
          {"bandjax_direct_filter", BandjaxCpuDirectFilter},
          {"bandjax_windows", BandjaxCpuWindows},
          {"bandjax_windows_filter", BandjaxCpuWindowsFilter}};
}

}  // namespace bandjax
