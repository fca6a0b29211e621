// Products of two tables, of cosines and of sines, with the even and the odd part of a signal: the
// transforms of window_transform.h along one axis.
#ifndef BANDJAX_FFI_CPU_PAIRS_H_
#define BANDJAX_FFI_CPU_PAIRS_H_

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

// a[r][v] = sum_k cosines[r, k] even[k][v], and b of sines and odd[k], which load(k, even, odd)
// gives. Element (r, k) of a table is at r * step_row + k * step_k.
template <typename A, int kRows, typename LoadPair>
BANDJAX_INLINE void PairTile(int64_t depth, const A* cosines, const A* sines, int64_t step_row,
                             int64_t step_k, const LoadPair& load, Vec<A> (&a)[kRows][2],
                             Vec<A> (&b)[kRows][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) a[r][0] = a[r][1] = b[r][0] = b[r][1] = Vec<A>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> even[2], odd[2];
    load(k, even, odd);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const A cosine = cosines[r * step_row + k * step_k], sine = sines[r * step_row + k * step_k];
      a[r][0] += cosine * even[0];
      a[r][1] += cosine * even[1];
      b[r][0] += sine * odd[0];
      b[r][1] += sine * odd[1];
    }
  }
}

constexpr int kPairRows = BANDJAX_REGISTERS / 4;

// Calls put(r, a[r], b[r]) for all rows: for the last ones by a tile of just so many.
template <typename A, int kRows = kPairRows, typename LoadPair, typename Put>
BANDJAX_INLINE void Pairs(int64_t rows, int64_t depth, const A* cosines, const A* sines,
                          int64_t step_row, int64_t step_k, const LoadPair& load, const Put& put,
                          int64_t row = 0) {
  while (kRows == kPairRows ? rows - row >= kRows : rows - row == kRows) {
    Vec<A> a[kRows][2], b[kRows][2];
    PairTile<A, kRows>(depth, cosines + row * step_row, sines + row * step_row, step_row, step_k,
                       load, a, b);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) put(row + r, a[r], b[r]);
    row += kRows;
  }
  if constexpr (kRows > 1) {
    if (row < rows) {
      Pairs<A, kRows - 1>(rows, depth, cosines, sines, step_row, step_k, load, put, row);
    }
  }
}

// The same of what is folded to even and odd parts on the way: once, into memory for `depth` times
// four vectors, where a tile does not have all rows.
template <typename A, typename LoadPair, typename Put>
BANDJAX_INLINE void FoldedPairs(int64_t rows, int64_t depth, const A* cosines, const A* sines,
                                int64_t step_row, int64_t step_k, A* folded, const LoadPair& load,
                                const Put& put) {
  if (rows <= kPairRows) {
    Pairs<A>(rows, depth, cosines, sines, step_row, step_k, load, put);
    return;
  }
  constexpr int64_t kStep = 4 * kLanes<A>;
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> even[2], odd[2];
    load(k, even, odd);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      Store<A>(folded + k * kStep + v * kLanes<A>, even[v]);
      Store<A>(folded + k * kStep + (2 + v) * kLanes<A>, odd[v]);
    }
  }
  const auto stored = [&](int64_t k, Vec<A>(&even)[2], Vec<A>(&odd)[2])
                          __attribute__((always_inline)) {
#pragma GCC unroll 2
                            for (int v = 0; v < 2; ++v) {
                              even[v] = Load<A>(folded + k * kStep + v * kLanes<A>);
                              odd[v] = Load<A>(folded + k * kStep + (2 + v) * kLanes<A>);
                            }
                          };
  Pairs<A>(rows, depth, cosines, sines, step_row, step_k, stored, put);
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_PAIRS_H_
