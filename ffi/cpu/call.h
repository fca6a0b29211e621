// What every handler of the CPU does: it chooses the kernels, and runs them on XLA's threads.
#ifndef BANDJAX_FFI_CPU_CALL_H_
#define BANDJAX_FFI_CPU_CALL_H_

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "xla/ffi/api/ffi.h"

namespace bandjax {

inline const Kernels& ChosenKernels() {
  switch (ChosenIsa()) {
#ifdef BANDJAX_PORTABLE
    case Isa::kPortable:
      return kKernelsPortable;
#endif
#ifdef BANDJAX_AMX
    case Isa::kAmx:
      return kKernelsAmx;
#endif
#ifdef BANDJAX_AVX512BF16
    case Isa::kAvx512Bf16:
      return kKernelsAvx512Bf16;
#endif
#ifdef BANDJAX_AVX512
    case Isa::kAvx512:
      return kKernelsAvx512;
#endif
#ifdef BANDJAX_AVX2
    case Isa::kAvx2:
      return kKernelsAvx2;
#endif
    default:
      throw std::logic_error("no kernels");
  }
}

// Runs a kernel on XLA's threads.
template <typename Args>
inline xla::ffi::Error Call(void (*kernel)(const Args&, Pool*), const Args& args,
                            xla::ffi::ThreadPool threads) {
  ThreadedPool pool(threads.num_threads(),
                    [&threads](std::function<void()> work) { threads.Schedule(std::move(work)); });
  try {
    kernel(args, &pool);
  } catch (const std::bad_alloc&) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted,
                           "bandjax: no memory for scratch space");
  }
  return xla::ffi::Error::Success();
}

// XLA's large buffers are fresh pages of the system each time, and this kernel is the first to
// touch them: in pages of 2 MiB that costs a fraction. The advice is a hint, so that it may reach a
// little beyond the buffer.
inline void PreferHugePages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  if (bytes < kHuge) return;
  const auto begin = reinterpret_cast<uintptr_t>(data) / kHuge * kHuge;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes + kHuge - 1) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

inline xla::ffi::Error Invalid(const std::string& what) {
  return xla::ffi::Error::InvalidArgument("bandjax: " + what);
}

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_CALL_H_
