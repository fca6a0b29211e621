// XLA FFI handlers: they check shapes and types and launch on the stream of the call.
//
// No handler allocates, waits or chooses by anything but shapes: every call with the same shapes
// launches the same kernels, so that all may be recorded in command buffers.

#include "checks.h"
#include "handlers.h"

#ifndef __CUDACC__
// The emulation runs on the CPU, where a call has no stream.
namespace bandjax::cuda {
struct NoStream {};
}  // namespace bandjax::cuda

template <>
struct xla::ffi::CtxDecoding<bandjax::cuda::NoStream> {
  using Type = bandjax::cuda::Stream;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return nullptr;
  }
};
#endif

namespace bandjax::cuda {
namespace {

#ifdef __CUDACC__
using StreamContext = ffi::PlatformStream<Stream>;
#else
using StreamContext = NoStream;
#endif

using ffi::AnyBuffer;

float* Floats(const AnyBuffer& buffer) { return static_cast<float*>(buffer.untyped_data()); }

// The shape of a transform from the arrays of both ends and its tables.
TransformShape CheckTransform(Checks& checks, const AnyBuffer& samples, const AnyBuffer& re,
                              const AnyBuffer& im, const AnyBuffer& table0,
                              const AnyBuffer& table1) {
  checks.Rank("samples", samples, 4);
  checks.Rank("re", re, 4);
  checks.Rank("table0", table0, 2);
  checks.Rank("table1", table1, 2);
  if (!checks.ok()) return {};
  const auto x = samples.dimensions(), box = re.dimensions();
  TransformShape s{};
  s.N = x[0], s.H = x[1], s.W = x[2], s.C = x[3], s.K0 = box[0], s.K1 = box[1];
  const int64_t rows0 = table0.dimensions()[0], rows1 = table1.dimensions()[0];
  s.U0 = rows0 / 2, s.U1 = rows1 / 2;
  checks.Require(rows0 % 2 == 1 && rows1 % 2 == 1,
                 "table0 and table1 must have 2 U + 1 rows, got " + std::to_string(rows0) +
                     " and " + std::to_string(rows1));
  checks.Shape("table0", table0, {rows0, (s.H + 1) / 2});
  checks.Shape("table1", table1, {rows1, (s.W + 1) / 2});
  checks.Require(s.K0 == 2 * s.U0 + 1 || (s.U0 > 0 && s.K0 == 2 * s.U0),
                 "re must have 2 U0 + 1 rows of frequencies, or 2 U0 when Nyquist is stored once, "
                 "for U0 = " +
                     std::to_string(s.U0) + ", got " + std::to_string(s.K0));
  checks.Shape("re", re, {s.K0, s.U1 + 1, s.N, s.C});
  checks.Shape("im", im, {s.K0, s.U1 + 1, s.N, s.C});
  checks.Float32("table0", table0);
  checks.Float32("table1", table1);
  checks.Same("im", im, checks.StorageOf("re", re));
  checks.StorageOf("samples", samples);
  return s;
}

ffi::Error Analysis(Stream stream, AnyBuffer x, AnyBuffer table0, AnyBuffer table1, Result re,
                    Result im) {
  Checks checks;
  const TransformShape shape = CheckTransform(checks, x, *re, *im, table0, table1);
  if (!checks.ok()) return checks.Error();
  return Launched("bandjax_analysis",
                  LaunchAnalysis(shape, checks.StorageOf("x", x), checks.StorageOf("re", *re),
                                 x.untyped_data(), Floats(table0), Floats(table1),
                                 re->untyped_data(), im->untyped_data(), stream));
}

ffi::Error Synthesis(Stream stream, AnyBuffer re, AnyBuffer im, AnyBuffer table0, AnyBuffer table1,
                     Result y) {
  Checks checks;
  const TransformShape shape = CheckTransform(checks, *y, re, im, table0, table1);
  if (!checks.ok()) return checks.Error();
  return Launched("bandjax_synthesis",
                  LaunchSynthesis(shape, checks.StorageOf("y", *y), checks.StorageOf("re", re),
                                  re.untyped_data(), im.untyped_data(), Floats(table0),
                                  Floats(table1), y->untyped_data(), stream));
}

// Two spectra, X with C channels and Y with O.
struct Spectra {
  const AnyBuffer &xre, &xim, &yre, &yim;
};

// The shape of a contraction. X may be stored in bfloat16 where `narrow_x`.
ProductShape CheckProduct(Checks& checks, const Spectra& spectra, const AnyBuffer& taps,
                          const AnyBuffer& outer, const AnyBuffer& inner, int64_t groups,
                          std::string_view variant, bool narrow_x) {
  checks.Rank("xre", spectra.xre, 4);
  checks.Rank("yre", spectra.yre, 4);
  checks.Rank("taps", taps, 4);
  checks.Require(groups >= 1, "groups must be >= 1, got " + std::to_string(groups));
  if (!checks.ok()) return {};
  const auto x = spectra.xre.dimensions(), w = taps.dimensions();
  const int64_t O = w[3];
  const ProductShape s{x[0], x[1], x[2], x[3], O, groups, w[0], w[1]};
  checks.Require(s.C % groups == 0 && O % groups == 0,
                 "groups must divide the channels, got " + std::to_string(groups) + " for " +
                     std::to_string(s.C) + " and " + std::to_string(O));
  checks.Shape("xim", spectra.xim, {s.K0, s.K1, s.N, s.C});
  checks.Shape("yre", spectra.yre, {s.K0, s.K1, s.N, O});
  checks.Shape("yim", spectra.yim, {s.K0, s.K1, s.N, O});
  checks.Shape("taps", taps, {s.k0, s.k1, s.C / groups, O});
  checks.Shape("outer", outer, {2, s.K0, s.k0});
  checks.Shape("inner", inner, {2, s.K1, s.k1});
  checks.Count("frequencies", s.K0, s.K1);
  checks.Count("taps", s.k0, s.k1);
  const Storage storage = checks.StorageOf("xre", spectra.xre);
  checks.Require(narrow_x || storage == Storage::kF32, "xre must be float32");
  checks.Same("xim", spectra.xim, storage);
  checks.Float32("yre", spectra.yre);
  checks.Float32("yim", spectra.yim);
  checks.Float32("taps", taps);
  checks.Float32("outer", outer);
  checks.Float32("inner", inner);
  checks.Require(variant != "paper",
                 "variant \"paper\" reads a filter spectrum from memory: call "
                 "bandjax_paper_multiply_sum");
  checks.Require(variant == "tiled" || variant == "paper",
                 "variant must be \"tiled\", got \"" + std::string(variant) + "\"");
  return s;
}

ffi::Error MultiplySum(Stream stream, AnyBuffer xre, AnyBuffer xim, AnyBuffer taps, AnyBuffer outer,
                       AnyBuffer inner, Result yre, Result yim, int64_t groups,
                       std::string_view variant, std::string_view precision) {
  Checks checks;
  const ProductShape shape =
      CheckProduct(checks, {xre, xim, *yre, *yim}, taps, outer, inner, groups, variant, true);
  const Precision arithmetic = checks.PrecisionOf(precision);
  if (!checks.ok()) return checks.Error();
  return Launched(
      "bandjax_multiply_sum",
      LaunchMultiplySum(shape, checks.StorageOf("xre", xre), arithmetic, xre.untyped_data(),
                        xim.untyped_data(), Floats(taps), Floats(outer), Floats(inner),
                        Floats(*yre), Floats(*yim), stream));
}

ffi::Error InputProduct(Stream stream, AnyBuffer yre, AnyBuffer yim, AnyBuffer taps,
                        AnyBuffer outer, AnyBuffer inner, Result xre, Result xim, int64_t groups,
                        std::string_view variant, std::string_view precision) {
  Checks checks;
  const ProductShape shape =
      CheckProduct(checks, {*xre, *xim, yre, yim}, taps, outer, inner, groups, variant, false);
  const Precision arithmetic = checks.PrecisionOf(precision);
  if (!checks.ok()) return checks.Error();
  return Launched(
      "bandjax_input_product",
      LaunchInputProduct(shape, arithmetic, Floats(yre), Floats(yim), Floats(taps), Floats(outer),
                         Floats(inner), Floats(*xre), Floats(*xim), stream));
}

ffi::Error FilterProduct(Stream stream, AnyBuffer xre, AnyBuffer xim, AnyBuffer yre, AnyBuffer yim,
                         AnyBuffer outer, AnyBuffer inner, Result taps, Result workspace,
                         int64_t groups, std::string_view variant, std::string_view precision) {
  Checks checks;
  const ProductShape shape =
      CheckProduct(checks, {xre, xim, yre, yim}, *taps, outer, inner, groups, variant, true);
  const Precision arithmetic = checks.PrecisionOf(precision);
  if (!checks.ok()) return checks.Error();
  const int64_t bytes =
      FilterWorkspaceBytes(shape.K0 * shape.K1, shape.C, shape.O, groups, shape.k0 * shape.k1);
  checks.Require(static_cast<int64_t>(workspace->size_bytes()) >= bytes,
                 "the workspace must have " + std::to_string(bytes) + " bytes, got " +
                     std::to_string(workspace->size_bytes()));
  if (!checks.ok()) return checks.Error();
  return Launched(
      "bandjax_filter_product",
      LaunchFilterProduct(shape, checks.StorageOf("xre", xre), arithmetic, xre.untyped_data(),
                          xim.untyped_data(), Floats(yre), Floats(yim), Floats(outer),
                          Floats(inner), Floats(*taps), Floats(*workspace), stream));
}

// Where the dimensions of the paper kernel's arrays are: this library's layouts, or the paper's.
template <bool kPlanar>
ffi::Error PaperMultiplySum(Stream stream, AnyBuffer xre, AnyBuffer xim, AnyBuffer wre,
                            AnyBuffer wim, Result yre, Result yim) {
  Checks checks;
  checks.Rank("xre", xre, 4);
  checks.Rank("wre", wre, 4);
  if (!checks.ok()) return checks.Error();
  const auto x = xre.dimensions(), w = wre.dimensions();
  ProductShape s{};
  s.groups = s.k0 = s.k1 = 1;
  if (kPlanar) {
    s.N = x[0], s.C = x[1], s.K0 = x[2], s.K1 = x[3], s.O = w[0];
    checks.Shape("wre", wre, {s.O, s.C, s.K0, s.K1});
    checks.Shape("yre", *yre, {s.N, s.O, s.K0, s.K1});
  } else {
    s.K0 = x[0], s.K1 = x[1], s.N = x[2], s.C = x[3], s.O = w[3];
    checks.Shape("wre", wre, {s.K0, s.K1, s.C, s.O});
    checks.Shape("yre", *yre, {s.K0, s.K1, s.N, s.O});
  }
  checks.Shape("xim", xim, {x[0], x[1], x[2], x[3]});
  checks.Shape("wim", wim, {w[0], w[1], w[2], w[3]});
  if (!checks.ok()) return checks.Error();
  const auto y = yre->dimensions();
  checks.Shape("yim", *yim, {y[0], y[1], y[2], y[3]});
  const Storage storage = checks.StorageOf("xre", xre);
  checks.Same("xim", xim, storage);
  checks.Float32("wre", wre);
  checks.Float32("wim", wim);
  checks.Float32("yre", *yre);
  checks.Float32("yim", *yim);
  if (!checks.ok()) return checks.Error();
  return Launched(
      "bandjax_paper_multiply_sum",
      LaunchPaperMultiplySum(s, storage, kPlanar, xre.untyped_data(), xim.untyped_data(),
                             Floats(wre), Floats(wim), Floats(*yre), Floats(*yim), stream));
}

auto Bind() { return ffi::Ffi::Bind().Ctx<StreamContext>(); }

template <class Binding>
auto ProductAttributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("groups")
      .template Attr<std::string_view>("variant")
      .template Attr<std::string_view>("precision");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bandjax_cuda_analysis, Analysis,
    Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>(),
    {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bandjax_cuda_synthesis, Synthesis,
    Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>(),
    {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bandjax_cuda_multiply_sum, MultiplySum,
                              ProductAttributes(Bind()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Ret<AnyBuffer>()
                                                    .Ret<AnyBuffer>()),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bandjax_cuda_input_product, InputProduct,
                              ProductAttributes(Bind()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Ret<AnyBuffer>()
                                                    .Ret<AnyBuffer>()),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bandjax_cuda_filter_product, FilterProduct,
                              ProductAttributes(Bind()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Arg<AnyBuffer>()
                                                    .Ret<AnyBuffer>()
                                                    .Ret<AnyBuffer>()),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bandjax_cuda_paper_multiply_sum, PaperMultiplySum<false>,
                              Bind()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(bandjax_cuda_paper_multiply_sum_planar, PaperMultiplySum<true>,
                              Bind()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>(),
                              {ffi::Traits::kCmdBufferCompatible});

extern "C" int64_t bandjax_cuda_filter_workspace_bytes(int64_t frequencies, int64_t C, int64_t O,
                                                       int64_t groups, int64_t taps) {
  return FilterWorkspaceBytes(frequencies, C, O, groups, taps);
}

const std::vector<Entry>& Handlers() {
  static const std::vector<Entry> entries = {
      {"bandjax_analysis", reinterpret_cast<void*>(bandjax_cuda_analysis)},
      {"bandjax_synthesis", reinterpret_cast<void*>(bandjax_cuda_synthesis)},
      {"bandjax_multiply_sum", reinterpret_cast<void*>(bandjax_cuda_multiply_sum)},
      {"bandjax_input_product", reinterpret_cast<void*>(bandjax_cuda_input_product)},
      {"bandjax_filter_product", reinterpret_cast<void*>(bandjax_cuda_filter_product)},
      {"bandjax_paper_multiply_sum", reinterpret_cast<void*>(bandjax_cuda_paper_multiply_sum)},
      {"bandjax_paper_multiply_sum_planar",
       reinterpret_cast<void*>(bandjax_cuda_paper_multiply_sum_planar)},
  };
  return entries;
}

}  // namespace bandjax::cuda
