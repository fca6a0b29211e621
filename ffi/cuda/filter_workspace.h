// How the filter product is cut, and with it the size of its workspace: a function of shapes
// alone, in plain C++, so that Python can compute the same (ffi/cuda/README.md has it in Python).

#ifndef BANDJAX_FFI_CUDA_FILTER_WORKSPACE_H_
#define BANDJAX_FFI_CUDA_FILTER_WORKSPACE_H_

#include <cstdint>

namespace bandjax::cuda {

// A block makes a tile of input channels x output channels x taps of the result.
constexpr int64_t kFilterRows = 32;
constexpr int64_t kFilterColumns = 64;
constexpr int64_t kFewTaps = 3;
constexpr int64_t kManyTaps = 9;
// Two blocks for each multiprocessor of an H100.
constexpr int64_t kFilterBlocks = 264;

constexpr int64_t FilterTapsOfBlock(int64_t taps) {
  return taps <= kFewTaps ? kFewTaps : kManyTaps;
}

// Frequencies are shared out among so many blocks for each tile, whose sums are added at the end.
constexpr int64_t FilterSplits(int64_t frequencies, int64_t C, int64_t O, int64_t groups,
                               int64_t taps) {
  if (frequencies <= 0 || C <= 0 || O <= 0 || groups <= 0 || taps <= 0) return 1;
  const int64_t of_block = FilterTapsOfBlock(taps);
  const int64_t tiles = groups * ((C / groups + kFilterRows - 1) / kFilterRows) *
                        ((O / groups + kFilterColumns - 1) / kFilterColumns) *
                        ((taps + of_block - 1) / of_block);
  const int64_t wanted = (kFilterBlocks + tiles - 1) / tiles;
  const int64_t most = wanted < frequencies ? wanted : frequencies;
  const int64_t of_split = (frequencies + most - 1) / most;
  return (frequencies + of_split - 1) / of_split;
}

constexpr int64_t FilterWorkspaceBytes(int64_t frequencies, int64_t C, int64_t O, int64_t groups,
                                       int64_t taps) {
  const int64_t splits = FilterSplits(frequencies, C, O, groups, taps);
  return splits == 1 ? 0 : splits * taps * (C / groups) * O * int64_t{sizeof(float)};
}

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_FILTER_WORKSPACE_H_
