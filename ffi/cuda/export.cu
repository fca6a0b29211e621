// The handlers as module.cpp takes them.

#include <vector>

#include "../handlers.h"
#include "cuda/handlers.h"

namespace bandjax {

std::vector<Handler> CudaHandlers() {
  std::vector<Handler> handlers;
  for (const cuda::Entry& entry : cuda::Handlers()) {
    handlers.push_back({entry.name, reinterpret_cast<XLA_FFI_Handler*>(entry.handler)});
  }
  return handlers;
}

}  // namespace bandjax
