// bandjax._ffi: hands the handlers to bandjax/_native/extension.py, which registers them with XLA.

#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/isa.h"
#include "handlers.h"
#include "xla/ffi/api/c_api.h"

namespace py = pybind11;

namespace {

py::dict Capsules(const std::vector<bandjax::Handler>& handlers) {
  py::dict capsules;
  for (const bandjax::Handler& handler : handlers) {
    capsules[handler.target] =
        py::capsule(reinterpret_cast<void*>(handler.function), "xla._CUSTOM_CALL_TARGET");
  }
  return capsules;
}

}  // namespace

// It only hands out addresses: a Python without a global lock may load it.
PYBIND11_MODULE(_ffi, module, py::mod_gil_not_used()) {
  module.doc() = "The native kernels of bandjax, as handlers of XLA's foreign function interface.";
  // Of the headers that this was built with. A runtime takes handlers of its own version or older.
  module.attr("FFI_API_VERSION") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  module.attr("CPU_ISA") = bandjax::Name(bandjax::ChosenIsa());
  module.def("cpu_handlers", [] { return Capsules(bandjax::CpuHandlers()); });
#ifdef BANDJAX_CUDA
  module.attr("BUILT_WITH_CUDA") = true;
  module.attr("CUDA_ARCHITECTURES") = BANDJAX_CUDA;
  module.def("cuda_handlers", [] { return Capsules(bandjax::CudaHandlers()); });
#else
  module.attr("BUILT_WITH_CUDA") = false;
  module.attr("CUDA_ARCHITECTURES") = "";
  module.def("cuda_handlers", [] { return py::dict(); });
#endif
}
