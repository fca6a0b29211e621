// The XLA FFI handlers of the CUDA kernels, for whoever exports them to Python.

#ifndef BANDJAX_FFI_CUDA_HANDLERS_H_
#define BANDJAX_FFI_CUDA_HANDLERS_H_

#include <cstdint>
#include <vector>

namespace bandjax::cuda {

struct Entry {
  const char* name;  // The target's name: the same as that of the CPU's handler.
  void* handler;     // An XLA_FFI_Handler*.
};

// Every handler, to register with platform="CUDA". ffi/cuda/README.md has their interface.
const std::vector<Entry>& Handlers();

// The least size of the filter product's workspace, for K0 * K1 frequencies and k0 * k1 taps.
extern "C" int64_t bandjax_cuda_filter_workspace_bytes(int64_t frequencies, int64_t C, int64_t O,
                                                       int64_t groups, int64_t taps);

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_HANDLERS_H_
