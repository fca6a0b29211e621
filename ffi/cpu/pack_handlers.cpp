// The kernels of pack.h as handlers of XLA's foreign function interface.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/call.h"
#include "handlers.h"

namespace bandjax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;

// Shapes and types of a packing: samples (n, s0, s1, s2, c), words (n, places, words, lanes), keys
// (n), one cosine matrix an axis, and the layout (values, 3): word, shift and width.
ffi::Error ReadPacking(Buffer samples, Buffer words, Buffer keys, const Buffer (&matrices)[3],
                       Buffer layout, std::vector<PackMember>* members, PackArgs* args) {
  const auto x = samples.dimensions(), w = words.dimensions(), rows = layout.dimensions();
  if (x.size() != 5 || w.size() != 4 || rows.size() != 2 || rows[1] != 3 ||
      keys.dimensions().size() != 1 || w[0] != x[0] || keys.dimensions()[0] != x[0]) {
    return Invalid("samples must have 5 axes, words 4, keys 1 and the layout 2");
  }
  if (samples.element_type() != ffi::F32 || words.element_type() != ffi::U32 ||
      keys.element_type() != ffi::U32 || layout.element_type() != ffi::S32) {
    return Invalid("samples must be float32, words and keys uint32, the layout int32");
  }
  args->n = x[0], args->c = x[4], args->n_words = w[2], args->lanes = w[3];
  int64_t points = 1, places = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const auto size = matrices[axis].dimensions();
    if (size.size() != 2 || size[0] != size[1] || size[0] < 1 || size[0] > kPackValues ||
        matrices[axis].element_type() != ffi::F32) {
      return Invalid("a cosine matrix must be square, of 1 to 64 points, float32");
    }
    args->shape[axis] = x[axis + 1], args->sizes[axis] = size[0];
    args->counts[axis] = (x[axis + 1] + size[0] - 1) / size[0];
    args->matrices[axis] = static_cast<const float*>(matrices[axis].untyped_data());
    points *= size[0], places *= args->counts[axis];
    if (args->shape[axis] < 1) return Invalid("no axis but the batch may be empty");
  }
  if (args->lanes < 1 || args->c < 1) return Invalid("there must be channels");
  args->merged = (args->c + args->lanes - 1) / args->lanes;
  const int64_t values = points * args->merged;
  if (values > kPackValues || values != rows[0] || places != w[1]) {
    return Invalid(
        "blocks must have 64 values at most, each in the layout, and words of their own");
  }
  const int32_t* row = static_cast<const int32_t*>(layout.untyped_data());
  for (int64_t k = 0; k < values; ++k, row += 3) {
    if (row[2] == 0) continue;
    if (row[0] < 0 || row[0] >= args->n_words || row[1] < 0 || row[2] < 1 || row[2] > 16 ||
        row[1] + row[2] > 32) {
      return Invalid("the layout must have a place for each value");
    }
    members->push_back({static_cast<int32_t>(k), row[0], row[1], row[2]});
  }
  std::stable_sort(members->begin(), members->end(),
                   [](const PackMember& a, const PackMember& b) { return a.word < b.word; });
  args->members = static_cast<int64_t>(members->size());
  args->layout = members->data();
  args->samples = samples.untyped_data();
  args->words = words.untyped_data();
  args->keys = keys.untyped_data();
  return ffi::Error::Success();
}

ffi::Error Pack(ffi::ThreadPool threads, Buffer samples, Buffer m0, Buffer m1, Buffer m2,
                Buffer layout, ffi::Result<Buffer> words, ffi::Result<Buffer> keys) {
  PackArgs args{};
  std::vector<PackMember> members;
  const ffi::Error error =
      ReadPacking(samples, *words, *keys, {m0, m1, m2}, layout, &members, &args);
  if (error.failure()) return error;
  std::vector<float> limits;
  for (int64_t m = 0; m < args.members; ++m) {
    limits.push_back(1.0f / (static_cast<float>(1u << args.layout[m].width >> 1) - 0.5f));
  }
  args.limits = limits.data();
  PreferHugePages(words->untyped_data(), words->size_bytes());
  return Call(ChosenKernels().pack, args, threads);
}

ffi::Error Unpack(ffi::ThreadPool threads, Buffer words, Buffer keys, Buffer m0, Buffer m1,
                  Buffer m2, Buffer layout, ffi::Result<Buffer> samples) {
  PackArgs args{};
  std::vector<PackMember> members;
  const ffi::Error error =
      ReadPacking(*samples, words, keys, {m0, m1, m2}, layout, &members, &args);
  if (error.failure()) return error;
  PreferHugePages(samples->untyped_data(), samples->size_bytes());
  return Call(ChosenKernels().unpack, args, threads);
}

// Flags (n, m) and their words (n, ceil(m / 32)).
ffi::Error ReadBits(Buffer flags, Buffer words, bool packs, BitsArgs* args) {
  const auto f = flags.dimensions(), w = words.dimensions();
  args->above_zero = packs && flags.element_type() == ffi::F32;
  if (f.size() != 2 || w.size() != 2 || f[0] != w[0] || w[1] != (f[1] + 31) / 32 ||
      (flags.element_type() != ffi::PRED && !args->above_zero) ||
      words.element_type() != ffi::U32) {
    return Invalid(
        "flags must be (n, m) booleans (or float32, to be packed), words (n, ceil(m / 32)) of "
        "uint32");
  }
  args->n = f[0], args->m = f[1];
  args->flags = flags.untyped_data(), args->words = words.untyped_data();
  return ffi::Error::Success();
}

ffi::Error PackBits(ffi::ThreadPool threads, Buffer flags, ffi::Result<Buffer> words) {
  BitsArgs args{};
  const ffi::Error error = ReadBits(flags, *words, true, &args);
  if (error.failure()) return error;
  return Call(ChosenKernels().pack_bits, args, threads);
}

ffi::Error UnpackBits(ffi::ThreadPool threads, Buffer words, ffi::Result<Buffer> flags) {
  BitsArgs args{};
  const ffi::Error error = ReadBits(*flags, words, false, &args);
  if (error.failure()) return error;
  PreferHugePages(flags->untyped_data(), flags->size_bytes());
  return Call(ChosenKernels().unpack_bits, args, threads);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuPack, Pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuUnpack, Unpack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuPackBits, PackBits,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Buffer>().Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(BandjaxCpuUnpackBits, UnpackBits,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Buffer>().Ret<Buffer>());

}  // namespace

std::vector<Handler> PackHandlers() {
  return {{"bandjax_pack", BandjaxCpuPack},
          {"bandjax_unpack", BandjaxCpuUnpack},
          {"bandjax_pack_bits", BandjaxCpuPackBits},
          {"bandjax_unpack_bits", BandjaxCpuUnpackBits}};
}

}  // namespace bandjax
