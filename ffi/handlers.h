// What the sources of each platform give to module.cpp.

#ifndef BANDJAX_FFI_HANDLERS_H_
#define BANDJAX_FFI_HANDLERS_H_

#include <vector>

#include "xla/ffi/api/c_api.h"

namespace bandjax {

// An XLA FFI handler and the name of the target under which XLA calls it. A target has the same
// name, operands, results and attributes on every platform.
struct Handler {
  const char* target;
  XLA_FFI_Handler* function;
};

std::vector<Handler> CpuHandlers();  // cpu/handlers.cpp
// Among those of the CPU:
std::vector<Handler> ColumnHandlers();  // cpu/column_handlers.cpp
std::vector<Handler> PackHandlers();    // cpu/pack_handlers.cpp
std::vector<Handler> WindowHandlers();  // cpu/window_handlers.cpp
std::vector<Handler> CudaHandlers();    // cuda/*.cu, linked only with BANDJAX_CUDA=ON

}  // namespace bandjax

#endif  // BANDJAX_FFI_HANDLERS_H_
