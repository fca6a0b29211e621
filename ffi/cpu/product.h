// A complex product of matrices as three real ones (Gauss): (a + ib)(c + id) is
//
//   k1 = (a + b) c,   real = k1 - b (c + d),   imaginary = k1 + a (d - c).
//
// The three factors on the right are the `panel` of a block: three planes, rows along the sum.
#ifndef BANDJAX_FFI_CPU_PRODUCT_H_
#define BANDJAX_FFI_CPU_PRODUCT_H_

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

constexpr int kPanelVectors = 4;  // columns of a panel, in vectors

// The panel of c + id.
template <typename A, bool kConjugate>
BANDJAX_INLINE void StorePanel(A* panel, int64_t plane, Vec<A> c, Vec<A> d) {
  Store<A>(panel, c);
  if constexpr (kConjugate) {
    Store<A>(panel + plane, -(c + d));
    Store<A>(panel + 2 * plane, d - c);
  } else {
    Store<A>(panel + plane, d - c);
    Store<A>(panel + 2 * plane, -(c + d));
  }
}

// The left factor: element (row m, position k along the sum) of a, b and their sum. `step_m` or
// `step_k` is 1, whichever kAcross says.
template <typename A>
struct Left {
  const A *a, *b, *sum;
  int64_t step, sum_step;  // of the axis that is not contiguous; a and b have the same
  bool real = false;       // b, d and so the imaginary part are zero
};

// What the next product will read, fetched into the second-level cache a little at a time while
// this one computes: its rows are too far apart for the processor to see them coming.
class Ahead {
 public:
  void Add(const void* begin, int64_t row_bytes, int64_t rows, int64_t stride_bytes) {
    regions_[count_++] = {static_cast<const char*>(begin), CeilDiv(row_bytes, kLine), rows,
                          stride_bytes};
    lines_ += CeilDiv(row_bytes, kLine) * rows;
  }
  // To be done within so many calls of Some().
  void Within(int64_t calls) { each_ = CeilDiv(lines_, Max(calls, 1)); }

  BANDJAX_INLINE void Some() {
    for (int64_t i = 0; i < each_ && lines_ > 0; ++i, --lines_) {
      Region& region = regions_[at_];
      __builtin_prefetch(region.begin + line_ * kLine, 0, 2);
      if (++line_ < region.lines) continue;
      line_ = 0;
      region.begin += region.stride;
      if (--region.rows == 0) ++at_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Region {
    const char* begin;
    int64_t lines, rows, stride;
  };
  Region regions_[4];
  int count_ = 0, at_ = 0;
  int64_t line_ = 0, lines_ = 0, each_ = 0;
};
constexpr int64_t kStretch = 16;  // steps along the sum between two looks ahead

// A tile of rows times a panel. Writes to, or with `add` adds to, re and im.
template <typename A, int kRows, int kVectors, bool kAcross>
BANDJAX_INLINE void ProductTile(int64_t depth, const Left<A>& left, const A* panel, int64_t plane,
                                A* re, A* im, int64_t ldo, int64_t columns, bool add,
                                Ahead* ahead) {
  constexpr int64_t kWidth = kVectors * kLanes<A>;
  Vec<A> sums[kRows][kVectors] = {};
  Vec<A> shared[kRows][kVectors];
  const auto accumulate = [&](const A* factor, int64_t step, const A* rows) {
    for (int64_t begin = 0; begin < depth; begin += kStretch) {
      ahead->Some();
      const int64_t end = Min(begin + kStretch, depth);
      for (int64_t k = begin; k < end; ++k) {
        Vec<A> row[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) row[v] = Load<A>(rows + k * kWidth + v * kLanes<A>);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const A f = kAcross ? factor[k * step + m] : factor[m * step + k];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sums[m][v] += f * row[v];
        }
      }
    }
  };
  const auto write = [&](A* out) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        A* at = out + m * ldo + v * kLanes<A>;
        const int64_t valid = columns - v * kLanes<A>;
        StoreUpTo<A>(at, add ? sums[m][v] + LoadUpTo<A>(at, valid) : sums[m][v], valid);
      }
    }
  };
  accumulate(left.sum, left.sum_step, panel);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) shared[m][v] = sums[m][v];
  }
  accumulate(left.a, left.step, panel + plane);
  write(im);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[m][v] = shared[m][v];
  }
  accumulate(left.b, left.step, panel + 2 * plane);
  write(re);
}

// The same of real factors, plane 0 of the panel: the imaginary part is zero.
template <typename A, int kRows, int kVectors, bool kAcross>
BANDJAX_INLINE void RealTile(int64_t depth, const Left<A>& left, const A* panel, A* re, A* im,
                             int64_t ldo, int64_t columns, bool add) {
  constexpr int64_t kWidth = kVectors * kLanes<A>;
  Vec<A> sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = Load<A>(panel + k * kWidth + v * kLanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const A f = kAcross ? left.a[k * left.step + m] : left.a[m * left.step + k];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[m][v] += f * row[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = m * ldo + v * kLanes<A>, valid = columns - v * kLanes<A>;
      StoreUpTo<A>(re + at, add ? sums[m][v] + LoadUpTo<A>(re + at, valid) : sums[m][v], valid);
      if (!add) StoreUpTo<A>(im + at, Vec<A>{}, valid);
    }
  }
}

template <typename A, int kVectors, bool kAcross, bool kReal, int kRows = TileRows(kVectors)>
BANDJAX_INLINE void ProductTiles(int64_t rows, int64_t depth, Left<A> left, const A* panel,
                                 int64_t plane, A* re, A* im, int64_t ldo, int64_t columns,
                                 bool add, Ahead* ahead) {
  for (; rows >= kRows; rows -= kRows, re += kRows * ldo, im += kRows * ldo) {
    if constexpr (kReal) {
      RealTile<A, kRows, kVectors, kAcross>(depth, left, panel, re, im, ldo, columns, add);
    } else {
      ProductTile<A, kRows, kVectors, kAcross>(depth, left, panel, plane, re, im, ldo, columns, add,
                                               ahead);
    }
    left.a += kAcross ? kRows : kRows * left.step;
    left.b += kAcross ? kRows : kRows * left.step;
    left.sum += kAcross ? kRows : kRows * left.sum_step;
  }
  if constexpr (kRows > 1) {
    ProductTiles<A, kVectors, kAcross, kReal, NextTileRows(kRows)>(
        rows, depth, left, panel, plane, re, im, ldo, columns, add, ahead);
  }
}

// Columns in memory of a panel of so many: 1, 2 or 4 vectors.
template <typename A>
BANDJAX_INLINE int64_t PanelWidth(int64_t columns) {
  constexpr int64_t kLane = kLanes<A>;
  return columns <= kLane ? kLane : columns <= 2 * kLane ? 2 * kLane : 4 * kLane;
}

template <typename A, bool kAcross, bool kReal>
BANDJAX_NOINLINE void ProductPanel(int64_t rows, int64_t depth, const Left<A>& left, const A* panel,
                                   int64_t plane, A* re, A* im, int64_t ldo, int64_t columns,
                                   bool add, Ahead ahead) {
  const int64_t tiles = CeilDiv(rows, TileRows(CeilDiv(columns, kLanes<A>) > 2 ? 4 : 2));
  ahead.Within(3 * tiles * CeilDiv(depth, kStretch));
  switch (PanelWidth<A>(columns) / kLanes<A>) {
    case 1:
      return ProductTiles<A, 1, kAcross, kReal>(rows, depth, left, panel, plane, re, im, ldo,
                                                columns, add, &ahead);
    case 2:
      return ProductTiles<A, 2, kAcross, kReal>(rows, depth, left, panel, plane, re, im, ldo,
                                                columns, add, &ahead);
    default:
      return ProductTiles<A, 4, kAcross, kReal>(rows, depth, left, panel, plane, re, im, ldo,
                                                columns, add, &ahead);
  }
}

// rows x columns (+)= left x panel, `columns` at most kPanelVectors vectors.
template <typename A, bool kAcross>
inline void Product(int64_t rows, int64_t depth, const Left<A>& left, const A* panel, int64_t plane,
                    A* re, A* im, int64_t ldo, int64_t columns, bool add, Ahead ahead) {
  const auto product =
      left.real ? &ProductPanel<A, kAcross, true> : &ProductPanel<A, kAcross, false>;
  product(rows, depth, left, panel, plane, re, im, ldo, columns, add, ahead);
}

// Prepares the left factor: the sum of its parts and, from a storage type, the parts themselves.
// `rows` rows of `length` contiguous numbers, `step` apart.
template <typename A, typename S>
inline Left<A> PrepareLeft(const S* a, const S* b, int64_t rows, int64_t length, int64_t step,
                           A* scratch) {
  // Not a multiple of 4 KiB apart, which would map all rows to the same few lines of the cache.
  const int64_t padded = CeilDiv(length, kLanes<A>) * kLanes<A>;
  const int64_t plane = rows * padded;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < length; k += kLanes<A>) {
      const Vec<A> va = LoadUpTo<A>(a + m * step + k, length - k);
      const Vec<A> vb = LoadUpTo<A>(b + m * step + k, length - k);
      A* to = scratch + m * padded + k;
      Store<A>(to, va + vb);
      if constexpr (sizeof(S) != sizeof(A)) {
        Store<A>(to + plane, va);
        Store<A>(to + 2 * plane, vb);
      }
    }
  }
  if constexpr (sizeof(S) != sizeof(A)) {
    return {scratch + plane, scratch + 2 * plane, scratch, padded, padded};
  } else {
    return {a, b, scratch, step, padded};
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_PRODUCT_H_
