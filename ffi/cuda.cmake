# Adds the CUDA kernels, cuda/*.cu, to the module: for sm_80, for sm_90a, for the first architecture
# of each newer generation that nvcc knows (its code runs on the whole generation), and as PTX of the
# newest, from which a driver compiles for what comes later.

if(NOT CMAKE_CUDA_COMPILER)
  if(DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
  else()
    find_program(CMAKE_CUDA_COMPILER nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
                 PATH_SUFFIXES bin)
  endif()
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "BANDJAX_CUDA=ON needs nvcc, and there is none. "
                      "Put it on PATH, or name it: CUDACXX=/path/to/nvcc")
endif()

execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch
                OUTPUT_VARIABLE known ERROR_VARIABLE error RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "`${CMAKE_CUDA_COMPILER} --list-gpu-arch` failed: ${failed} ${error}")
endif()
string(REGEX MATCHALL "[0-9]+" known "${known}")
list(SORT known COMPARE NATURAL)

set(architectures ${BANDJAX_CUDA_ARCHITECTURES})
if(NOT architectures)
  set(generations "")
  foreach(arch IN LISTS known)
    math(EXPR generation "${arch} / 10")
    if(arch EQUAL 80)
      list(APPEND architectures 80)
    elseif(arch EQUAL 90)
      list(APPEND architectures 90a)
    elseif(arch GREATER_EQUAL 100 AND NOT generation IN_LIST generations)
      list(APPEND generations ${generation})
      list(APPEND architectures ${arch})
    endif()
  endforeach()
endif()
if(NOT architectures)
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} knows neither sm_80 nor anything newer: ${known}")
endif()

set(gencode "")
set(names "")
foreach(arch IN LISTS architectures)
  list(APPEND gencode "-gencode=arch=compute_${arch},code=sm_${arch}")
  list(APPEND names "sm_${arch}")
endforeach()
list(GET architectures -1 newest)
if(newest MATCHES "^[0-9]+$")  # Code for sm_90a, say, runs on nothing newer.
  list(APPEND gencode "-gencode=arch=compute_${newest},code=compute_${newest}")
endif()
list(JOIN names ", " names)
message(STATUS "CUDA kernels for ${names}")

set(CMAKE_CUDA_ARCHITECTURES OFF)  # `gencode` has them.
enable_language(CUDA)
file(GLOB cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu")
if(NOT cuda_sources)
  message(FATAL_ERROR "No CUDA sources in ${CMAKE_CURRENT_SOURCE_DIR}/cuda")
endif()

add_library(bandjax_cuda OBJECT ${cuda_sources})
set_target_properties(bandjax_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF CUDA_VISIBILITY_PRESET hidden)
target_include_directories(bandjax_cuda PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_include_directories(bandjax_cuda SYSTEM PRIVATE "${ffi_headers}")
target_compile_options(bandjax_cuda PRIVATE ${gencode} --expt-relaxed-constexpr)

target_link_libraries(_ffi PRIVATE bandjax_cuda)
target_compile_definitions(_ffi PRIVATE "BANDJAX_CUDA=\"${names}\"")
# Linked statically, so that the module loads where there is no CUDA.
set_target_properties(_ffi bandjax_cuda PROPERTIES
  CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Static)
