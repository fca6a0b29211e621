// The XLA FFI handlers of the CUDA kernels, for whoever exports them to Python.

#ifndef BANDJAX_FFI_CUDA_HANDLERS_H_
#define BANDJAX_FFI_CUDA_HANDLERS_H_

#include <vector>

namespace bandjax::cuda {

struct Entry {
  const char* name;  // The target's name: the same as that of the CPU's handler.
  void* handler;     // An XLA_FFI_Handler*.
};

// Every handler, to register with platform="CUDA". ffi/cuda/README.md has their interface.
const std::vector<Entry>& Handlers();

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_HANDLERS_H_
