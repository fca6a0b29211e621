// The kernels as plain functions: checked arguments in, launches on a stream out.
//
// Every function returns nullptr, or what went wrong. Pointers are to device memory (to the host's
// in the emulation). Arguments have been checked by the caller (handlers.cu).

#ifndef BANDJAX_FFI_CUDA_LAUNCHERS_H_
#define BANDJAX_FFI_CUDA_LAUNCHERS_H_

#include <cstdint>

#include "block.h"
#include "filter_workspace.h"

namespace bandjax::cuda {

enum class Storage { kF32, kBf16 };

// Arithmetic of the tensor cores; sums are float32 in each.
//   kTf32:   inputs rounded to 11 significant bits
//   kTf32x3: inputs split in two such parts, three products: nearly float32
//   kBf16:   inputs rounded to 8 significant bits
enum class Precision { kTf32, kTf32x3, kBf16 };

struct TransformShape {
  int64_t N, H, W, C, U0, U1, K0, K1;
};

// How a transform is cut. The shared memory is below what three blocks of an H100's multiprocessor
// can have together, two of an A100's and one of any GPU; chosen by arithmetic, not by measurement.
// Tests pass less, so that small sizes are cut in many ways.
struct TransformBudget {
  int64_t middle = 60 << 10;  // Bytes for what lies between the passes, with the second table.
  int64_t table = 12 << 10;   // Bytes for the first table.
  int64_t blocks = 264;  // Make so many blocks if possible: two for a multiprocessor of an H100.
  int64_t far = 512;     // Of the second pass's results along an axis, a block makes so many.
};

const char* LaunchAnalysis(const TransformShape& shape, Storage samples, Storage spectra,
                           const void* x, const float* table0, const float* table1, void* re,
                           void* im, Stream stream, const TransformBudget& budget = {});
const char* LaunchSynthesis(const TransformShape& shape, Storage samples, Storage spectra,
                            const void* re, const void* im, const float* table0,
                            const float* table1, void* y, Stream stream,
                            const TransformBudget& budget = {});

struct ProductShape {
  int64_t K0, K1, N, C, O, groups, k0, k1;
};

const char* LaunchMultiplySum(const ProductShape& shape, Storage spectra, Precision precision,
                              const void* xre, const void* xim, const float* taps,
                              const float* outer, const float* inner, float* yre, float* yim,
                              Stream stream);
const char* LaunchInputProduct(const ProductShape& shape, Precision precision, const float* yre,
                               const float* yim, const float* taps, const float* outer,
                               const float* inner, float* xre, float* xim, Stream stream);
// `workspace` has FilterWorkspaceBytes(...) bytes (filter_workspace.h).
const char* LaunchFilterProduct(const ProductShape& shape, Storage spectra, Precision precision,
                                const void* xre, const void* xim, const float* yre,
                                const float* yim, const float* outer, const float* inner,
                                float* taps, float* workspace, Stream stream);

// The paper's own kernel on a filter spectrum in memory (paper.h), in this library's layouts or,
// `planar`, in the paper's.
const char* LaunchPaperMultiplySum(const ProductShape& shape, Storage spectra, bool planar,
                                   const void* xre, const void* xim, const float* wre,
                                   const float* wim, float* yre, float* yim, Stream stream);

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_LAUNCHERS_H_
