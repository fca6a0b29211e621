// Checks of a handler's arguments, with messages that name the argument, the rule and the value.

#ifndef BANDJAX_FFI_CUDA_CHECKS_H_
#define BANDJAX_FFI_CUDA_CHECKS_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "launchers.h"
#include "xla/ffi/api/ffi.h"

namespace bandjax::cuda {

namespace ffi = ::xla::ffi;
using Result = ffi::Result<ffi::AnyBuffer>;

inline std::string Text(const int64_t* begin, const int64_t* end) {
  std::string text = "[";
  for (const int64_t* size = begin; size != end; ++size) {
    text += (size == begin ? "" : ", ") + std::to_string(*size);
  }
  return text + "]";
}

// Collects the first thing that is wrong.
class Checks {
 public:
  bool ok() const { return message_.empty(); }
  ffi::Error Error() const { return ffi::Error::InvalidArgument(message_); }

  void Require(bool good, const std::string& message) {
    if (ok() && !good) message_ = message;
  }

  void Rank(const char* name, const ffi::AnyBuffer& buffer, size_t rank) {
    const auto sizes = buffer.dimensions();
    Require(sizes.size() == rank, std::string(name) + " must have " + std::to_string(rank) +
                                      " dimensions, got " + Text(sizes.begin(), sizes.end()));
    for (int64_t size : sizes) {
      Require(size <= INT32_MAX, std::string(name) + " has a dimension above 2^31 - 1");
    }
  }

  void Shape(const char* name, const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> sizes) {
    const auto got = buffer.dimensions();
    bool same = got.size() == sizes.size();
    for (size_t i = 0; same && i < got.size(); ++i) same = got[i] == sizes.begin()[i];
    Require(same, std::string(name) + " must have the shape " + Text(sizes.begin(), sizes.end()) +
                      ", got " + Text(got.begin(), got.end()));
  }

  void Float32(const char* name, const ffi::AnyBuffer& buffer) {
    Require(buffer.element_type() == ffi::DataType::F32,
            std::string(name) + " must be float32, got type " +
                std::to_string(static_cast<int>(buffer.element_type())));
  }

  // float32 or bfloat16.
  Storage StorageOf(const char* name, const ffi::AnyBuffer& buffer) {
    const ffi::DataType type = buffer.element_type();
    Require(type == ffi::DataType::F32 || type == ffi::DataType::BF16,
            std::string(name) + " must be float32 or bfloat16 on CUDA, got type " +
                std::to_string(static_cast<int>(type)));
    return type == ffi::DataType::BF16 ? Storage::kBf16 : Storage::kF32;
  }

  void Same(const char* name, const ffi::AnyBuffer& buffer, Storage storage) {
    Require(StorageOf(name, buffer) == storage,
            std::string(name) + " must have the type of the other part of its spectrum");
  }

  // A product of sizes that the kernels count in 32 bits.
  void Count(const char* what, int64_t a, int64_t b) {
    Require(a == 0 || b <= INT32_MAX / a,
            std::string("too many ") + what + ": " + std::to_string(a) + " x " + std::to_string(b));
  }

  Precision PrecisionOf(std::string_view name) {
    if (name == "tf32") return Precision::kTf32;
    if (name == "tf32x3") return Precision::kTf32x3;
    Require(name == "bf16", "precision must be \"tf32\", \"tf32x3\" or \"bf16\", got \"" +
                                std::string(name) + "\"");
    return Precision::kBf16;
  }

 private:
  std::string message_;
};

inline ffi::Error Launched(const char* what, const char* error) {
  if (error == nullptr) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(what) + ": " + error);
}

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_CHECKS_H_
