// A block of threads as the kernels see it, and how kernels are launched.
//
// A kernel is a struct `Body` with `Params`, `kThreads`, `kBlocksPerProcessor` and
// `static void Run(const Params&, Block&)`. Under nvcc a Block is what the hardware offers; under
// any other compiler it is an emulation (block_emulated.h) in which the same bodies run.

#ifndef BANDJAX_FFI_CUDA_BLOCK_H_
#define BANDJAX_FFI_CUDA_BLOCK_H_

#include <cstddef>
#include <cstdint>

#include "numbers.h"

#ifndef __CUDACC__
#include "block_emulated.h"
#else

#include <cuda_runtime.h>

namespace bandjax::cuda {

using Stream = cudaStream_t;

class Block {
 public:
  BANDJAX_DEVICE int Thread() const { return static_cast<int>(threadIdx.x); }
  BANDJAX_DEVICE int Threads() const { return static_cast<int>(blockDim.x); }
  BANDJAX_DEVICE int64_t Index() const { return blockIdx.x; }

  BANDJAX_DEVICE unsigned char* Shared() const {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
  }

  BANDJAX_DEVICE void Sync() const { __syncthreads(); }

  // Copies 16 bytes to shared memory without waiting: `bytes` (0 or 16) from `source`, zeros for
  // the rest. `source` must be a valid address even if nothing is read from it.
  BANDJAX_DEVICE void CopyAsync16(void* target, const void* source, int bytes) const {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(target));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source),
                 "r"(bytes)
                 : "memory");
  }
  BANDJAX_DEVICE void CommitCopies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Waits until at most kPending of this thread's newest groups of copies are under way.
  template <int kPending>
  BANDJAX_DEVICE void WaitForCopies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  }

  // d += a b over a warp; d may be read after the next Sync. The fragments are those of the PTX
  // manual's mma.m16n8k8 (tf32) and mma.m16n8k16 (bf16).
  BANDJAX_DEVICE void MmaTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  BANDJAX_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, Body::kBlocksPerProcessor)
    Kernel(const typename Body::Params params) {
  Block block;
  Body::Run(params, block);
}

// Launches `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory.
// Returns nullptr, or what went wrong.
template <class Body>
const char* Launch(const typename Body::Params& params, int64_t blocks, int threads, size_t shared,
                   Stream stream) {
  if (blocks <= 0) return nullptr;
  if (blocks > INT32_MAX) return "more than 2^31 - 1 blocks in one launch";
  if (shared > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        Kernel<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t launched = cudaLaunchKernelEx(&config, Kernel<Body>, params);
  const cudaError_t error = cudaGetLastError();  // Also forgets a failed launch.
  if (launched != cudaSuccess) return cudaGetErrorString(launched);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Fills device memory with zeros.
inline const char* Zero(void* at, size_t bytes, Stream stream) {
  if (bytes == 0) return nullptr;
  const cudaError_t error = cudaMemsetAsync(at, 0, bytes, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace bandjax::cuda

#endif  // __CUDACC__
#endif  // BANDJAX_FFI_CUDA_BLOCK_H_
