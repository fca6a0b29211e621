// Exact convolution as it is defined, sums over taps and input channels, in registers.
//
// A tile of outputs, some points by a panel of channels, is held in registers from the first tap to
// the last. The points are consecutive outputs, over the ends of lines and of examples; of each tap
// and point a pointer tells the input that it reads, or zeros where that is outside of the map, so
// that strides, dilation and padding cost the sums nothing.
#ifndef BANDJAX_FFI_CPU_DIRECT_H_
#define BANDJAX_FFI_CPU_DIRECT_H_

#include "direct_reads.h"
#include "epilogue.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A>
struct Direct : DirectReads<A> {
  using Base = DirectReads<A>;
  using Base::args, Base::in, Base::kLane, Base::kPoints, Base::LookUp, Base::out, Base::panels;
  using Base::PlaceOf, Base::ReadsBytes, Base::rows, Base::TakeReads, Base::taps, Base::vectors;
  using Base::width;
  using typename Base::Reads;

  explicit Direct(const DirectArgs& all) : Base(all) {}

  const Finish<A, A> finish{args.epilogue, args.y};

  // Calls body with the vectors of a panel, as a constant.
  template <int kNumber>
  struct Constant {
    static constexpr int value = kNumber;
  };
  template <typename Body>
  BANDJAX_INLINE void ForVectors(Body body) const {
    if constexpr (BANDJAX_REGISTERS >= 24) {
      if (vectors == 4) return body(Constant<4>());
    }
    if (vectors == 2) return body(Constant<2>());
    body(Constant<1>());
  }

  // The taps in panels, (group, panel, tap, input channel, column), so that what a panel needs lies
  // together.
  int64_t CopyNumbers() const { return args.groups * panels * taps * in * width; }
  void CopyFilter(Pool* pool, A* to) const {
    const A* from = static_cast<const A*>(args.taps);
    ParallelFor(pool, args.groups * panels * taps, [&](int64_t task) {
      const int64_t t = task % taps, panel = task / taps % panels, g = task / taps / panels;
      A* rows_of = to + task * in * width;
      const int64_t columns = Min(width, out - panel * width);
      for (int64_t c = 0; c < in; ++c) {
        for (int64_t o = columns; o < width; ++o) rows_of[c * width + o] = 0;
      }
      if (!args.transposed) {
        for (int64_t c = 0; c < in; ++c) {
          const A* row = from + (t * in + c) * args.out + g * out + panel * width;
          for (int64_t o = 0; o < columns; ++o) rows_of[c * width + o] = row[o];
        }
        return;
      }
      constexpr int64_t kTogether = 16;  // columns, so that the lines written to stay cached
      for (int64_t begin = 0; begin < columns; begin += kTogether) {
        const int64_t end = Min(columns, begin + kTogether);
        for (int64_t c = 0; c < in; ++c) {
          for (int64_t o = begin; o < end; ++o) {
            const int64_t row = (taps - 1 - t) * out + panel * width + o;
            rows_of[c * width + o] = from[row * args.in + g * in + c];
          }
        }
      }
    });
  }

  template <int kRows, int kVectors>
  BANDJAX_INLINE void Tile(const A* const* reads, int64_t offset, const A* w, A* y, int64_t channel,
                           int64_t valid) const {
    Vec<A> sum[kRows][kVectors] = {};
    for (int64_t t = 0; t < taps; ++t, reads += kPoints) {
      const A* x[kRows];
#pragma GCC unroll 12
      for (int m = 0; m < kRows; ++m) x[m] = reads[m] + offset;
      for (int64_t c = 0; c < in; ++c, w += kVectors * kLane) {
        Vec<A> factors[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) factors[v] = Load<A>(w + v * kLane);
#pragma GCC unroll 12
        for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[m][v] += x[m][c] * factors[v];
        }
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        A* to = y + m * args.out + v * kLane;
        StoreUpTo<A>(to, finish(sum[m][v], to, channel + v * kLane, valid - v * kLane),
                     valid - v * kLane);
      }
    }
  }

  template <int kVectors, int kRows = TileRows(kVectors)>
  BANDJAX_INLINE void Tiles(int64_t count, const A* const* reads, int64_t offset, const A* w, A* y,
                            int64_t channel, int64_t valid) const {
    for (; count >= kRows; count -= kRows, reads += kRows, y += kRows * args.out) {
      Tile<kRows, kVectors>(reads, offset, w, y, channel, valid);
    }
    if constexpr (kRows > 1) {
      Tiles<kVectors, NextTileRows(kRows)>(count, reads, offset, w, y, channel, valid);
    }
  }

  // Columns are panels of groups: those of a task share what is looked up, and their part of the
  // filter stays in a cache.
  int64_t Together() const {
    constexpr int64_t kBytes = 1 << 19;
    return Max(1, kBytes / Max(1, taps * in * width * static_cast<int64_t>(sizeof(A))));
  }

  template <int kVectors>
  void Block(const A* x, A* y, const A* zeros, const Reads& reads, const A* filter, int64_t first,
             int64_t last, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; row += kPoints) {
      const int64_t count = Min(kPoints, end - row);
      LookUp(x, PlaceOf(row), count, zeros, reads);
      for (int64_t column = first; column < last; ++column) {
        const int64_t g = column / panels, panel = column % panels;
        const int64_t channel = g * out + panel * width;
        Tiles<kVectors>(count, reads.at, g * in, filter + column * taps * in * width,
                        y + row * args.out + channel, channel, out - panel * width);
      }
    }
  }

  // Of few points it is the taps that take the time. They are read once, where they lie: a few rows
  // of a panel at a time, which the first tile puts together for the others, while the next rows
  // are fetched. The sums of the task's points stay in a cache meanwhile.
  static constexpr int64_t kDepth = 64;  // rows of taps
  bool ReadsTapsOnce() const {
    constexpr int64_t kFewest = 512, kLeast = 32;  // points, and input channels
    return !args.transposed && args.groups == 1 && out % width == 0 && rows <= kFewest &&
           in >= kLeast;
  }

  template <int kVectors, int kRows, bool kFirst>
  BANDJAX_INLINE void AddTile(int64_t count, const A* const* reads, int64_t first, const A* w,
                              A* packed, A* sums) const {
    constexpr int64_t kWidth = kVectors * kLane;
    Vec<A> sum[kRows][kVectors];
    const A* x[kRows];
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
      x[m] = reads[m] + first;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = Load<A>(sums + m * kWidth + v * kLane);
    }
    for (int64_t c = 0; c < count; ++c, packed += kWidth) {
      Vec<A> factors[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kFirst) {
          factors[v] = Load<A>(w + v * kLane);
          Store<A>(packed + v * kLane, factors[v]);
          __builtin_prefetch(w + kDepth * out + v * kLane, 0, 2);
        } else {
          factors[v] = Load<A>(packed + v * kLane);
        }
      }
      if constexpr (kFirst) w += out;
#pragma GCC unroll 12
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] += x[m][c] * factors[v];
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) Store<A>(sums + m * kWidth + v * kLane, sum[m][v]);
    }
  }
  template <int kVectors, int kRows = TileRows(kVectors)>
  BANDJAX_INLINE void AddTiles(int64_t points, bool first_tile, int64_t count,
                               const A* const* reads, int64_t first, const A* w, A* packed,
                               A* sums) const {
    for (; points >= kRows; points -= kRows, reads += kRows, sums += kRows * kVectors * kLane) {
      if (first_tile) {
        AddTile<kVectors, kRows, true>(count, reads, first, w, packed, sums);
        first_tile = false;
      } else {
        AddTile<kVectors, kRows, false>(count, reads, first, w, packed, sums);
      }
    }
    if constexpr (kRows > 1) {
      AddTiles<kVectors, NextTileRows(kRows)>(points, first_tile, count, reads, first, w, packed,
                                              sums);
    }
  }

  // Scratch memory of a task.
  size_t FewBytes(int64_t points, int64_t columns) const {
    return Arena::Bytes<const A*>(CeilDiv(points, kPoints) * taps * kPoints) + ReadsBytes() +
           Arena::Bytes<A>(points * columns * width) + Arena::Bytes<A>(kDepth * width);
  }
  // Points [begin, end) of panels [first, last).
  template <int kVectors>
  void ConvolvePanels(const A* x, const A* zeros, Arena* arena, int64_t first, int64_t last,
                      int64_t begin, int64_t end) const {
    constexpr int64_t kWidth = kVectors * kLane;
    const int64_t points = end - begin, look_ups = CeilDiv(points, kPoints);
    const A** reads = arena->template Take<const A*>(look_ups * taps * kPoints);
    Reads scratch = TakeReads(arena);
    A* sums = arena->template Take<A>(points * (last - first) * kWidth);  // (panel, point, column)
    A* packed = arena->template Take<A>(kDepth * kWidth);
    for (int64_t block = 0; block < look_ups; ++block) {
      const int64_t row = begin + block * kPoints;
      scratch.at = reads + block * taps * kPoints;
      LookUp(x, PlaceOf(row), Min(kPoints, end - row), zeros, scratch);
    }
    for (int64_t i = 0; i < points * (last - first) * kWidth; i += kLane) {
      Store<A>(sums + i, Vec<A>{});
    }
    const A* w = static_cast<const A*>(args.taps);
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < in; c += kDepth, w += kDepth * out) {
        for (int64_t panel = first; panel < last; ++panel) {
          for (int64_t block = 0; block < look_ups; ++block) {
            AddTiles<kVectors>(Min(kPoints, points - block * kPoints), block == 0,
                               Min(kDepth, in - c), reads + (block * taps + t) * kPoints, c,
                               w + panel * width, packed,
                               sums + ((panel - first) * points + block * kPoints) * kWidth);
          }
        }
      }
      w += (in - CeilDiv(in, kDepth) * kDepth) * out;
    }
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t m = begin; m < end; ++m, sums += kWidth) {
        A* y = static_cast<A*>(args.y) + m * out + panel * width;
        for (int64_t v = 0; v < kWidth; v += kLane) {
          Store<A>(y + v, finish(Load<A>(sums + v), y + v, panel * width + v, kLane));
        }
      }
    }
  }

  void ConvolveFew(Pool* pool) const {
    if (rows == 0) return;
    const A* x = static_cast<const A*>(args.x);
    A* zeros = static_cast<A*>(pool->shared(pool, Arena::Bytes<A>(in)));
    for (int64_t c = 0; c < in; ++c) zeros[c] = 0;
    // As many tasks as keep all threads busy, and sums that stay in a cache: of several panels, so
    // that more of what lies together in memory is read, or of a part of the points.
    constexpr int64_t kMost = 8 * kPoints;
    const int64_t tasks = pool->threads;
    const int64_t together = rows <= kMost ? Max(1, Min(panels / tasks, kMost / rows)) : 1;
    const int64_t chunks = CeilDiv(panels, together);
    const int64_t parts = Max(CeilDiv(rows, kMost), CeilDiv(tasks, chunks));
    const int64_t each = CeilDiv(CeilDiv(rows, parts), kPoints) * kPoints;
    const int64_t blocks = CeilDiv(rows, each);
    ParallelFor(pool, chunks * blocks, [&](int64_t task) {
      const int64_t first = task / blocks * together, last = Min(panels, first + together);
      const int64_t begin = task % blocks * each, end = Min(rows, begin + each);
      Arena arena(pool, FewBytes(end - begin, last - first));
      ForVectors([&](auto number) {
        ConvolvePanels<decltype(number)::value>(x, zeros, &arena, first, last, begin, end);
      });
    });
  }

  void Convolve(Pool* pool) const {
    if (ReadsTapsOnce()) return ConvolveFew(pool);
    const A* x = static_cast<const A*>(args.x);
    A* y = static_cast<A*>(args.y);
    const int64_t copied = CopyNumbers();
    A* filter = static_cast<A*>(pool->shared(pool, Arena::Bytes<A>(copied + args.in)));
    A* zeros = filter + copied;
    for (int64_t c = 0; c < args.in; ++c) zeros[c] = 0;
    CopyFilter(pool, filter);
    // Of few points there are as many blocks as threads; else what a block reads stays in a cache.
    constexpr int64_t kMost = 16 * kPoints;
    const int64_t columns = args.groups * panels, together = Min(columns, Together());
    const int64_t chunks = CeilDiv(columns, together);
    int64_t block = kMost;
    if (chunks * CeilDiv(rows, kMost) < 4 * pool->threads) {
      block = CeilDiv(CeilDiv(rows, CeilDiv(4 * pool->threads, chunks)), kPoints) * kPoints;
    }
    block = Max(block, kPoints);
    const int64_t blocks = CeilDiv(rows, block);
    ParallelFor(pool, chunks * blocks, [&](int64_t task) {
      Arena arena(pool, ReadsBytes());
      const Reads reads = TakeReads(&arena);
      const int64_t first = task / blocks * together, last = Min(columns, first + together);
      const int64_t begin = task % blocks * block, end = Min(rows, begin + block);
      ForVectors([&](auto number) {
        constexpr int kVectors = decltype(number)::value;
        Block<kVectors>(x, y, zeros, reads, filter, first, last, begin, end);
      });
    });
  }

  // Of the filter's gradient: points whose products are added before sums go back to memory.
  static constexpr int64_t kLookUps = 4, kTogether = kLookUps * kPoints;

  // d += x of the points, transposed, times y: a tile of input channels by a panel of outputs.
  template <int kRows, int kVectors>
  BANDJAX_INLINE void GradientTile(const A* const* reads, int64_t offset, const A* y, A* d) const {
    constexpr int64_t kWidth = kVectors * kLane;
    Vec<A> sum[kRows][kVectors];
#pragma GCC unroll 12
    for (int c = 0; c < kRows; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[c][v] = Load<A>(d + c * kWidth + v * kLane);
    }
    for (int64_t block = 0; block < kLookUps; ++block, reads += taps * kPoints) {
      for (int64_t m = 0; m < kPoints; ++m, y += kWidth) {
        const A* x = reads[m] + offset;
        Vec<A> factors[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) factors[v] = Load<A>(y + v * kLane);
#pragma GCC unroll 12
        for (int c = 0; c < kRows; ++c) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[c][v] += x[c] * factors[v];
        }
      }
    }
#pragma GCC unroll 12
    for (int c = 0; c < kRows; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) Store<A>(d + c * kWidth + v * kLane, sum[c][v]);
    }
  }

  // With one vector of outputs eight sums are enough to keep the processor busy.
  template <int kVectors, int kRows = kVectors == 1 ? 8 : TileRows(kVectors)>
  BANDJAX_INLINE void GradientTiles(int64_t count, const A* const* reads, int64_t offset,
                                    const A* y, A* d) const {
    for (; count >= kRows; count -= kRows, offset += kRows, d += kRows * kVectors * kLane) {
      GradientTile<kRows, kVectors>(reads, offset, y, d);
    }
    if constexpr (kRows > 1) {
      GradientTiles<kVectors, NextTileRows(kRows)>(count, reads, offset, y, d);
    }
  }

  // The gradient of some columns, (column, tap, input channel, column of it), of a part's points.
  template <int kVectors>
  void GradientOf(const A* x, const A* y, const A* zeros, Arena* arena, int64_t first, int64_t last,
                  int64_t begin, int64_t end, A* d) const {
    const A** reads = arena->template Take<const A*>(kLookUps * taps * kPoints);
    Reads scratch = TakeReads(arena);
    A* outputs = arena->template Take<A>(kTogether * width);
    for (int64_t i = 0; i < (last - first) * taps * in * width; ++i) d[i] = 0;
    for (int64_t from = begin; from < end; from += kTogether) {
      for (int64_t block = 0; block < kLookUps; ++block) {
        const int64_t row = Min(from + block * kPoints, end - 1);
        scratch.at = reads + block * taps * kPoints;
        LookUp(x, PlaceOf(row), Min(kPoints, end - row), zeros, scratch);
      }
      for (int64_t column = first; column < last; ++column) {
        const int64_t g = column / panels, panel = column % panels;
        const int64_t columns = Min(width, out - panel * width);
        for (int64_t row = from; row < from + kTogether; ++row) {
          A* to = outputs + (row - from) * width;
          const A* of = y + row * args.out + g * out + panel * width;
          const int64_t there = row < end ? columns : 0;
          for (int64_t v = 0; v < width; v += kLane) {
            Store<A>(to + v, LoadUpTo<A>(of + v, there - v));
          }
        }
        A* own = d + (column - first) * taps * in * width;
        for (int64_t t = 0; t < taps; ++t) {
          GradientTiles<kVectors>(in, reads + t * kPoints, g * in, outputs, own + t * in * width);
        }
      }
    }
  }
  size_t GradientBytes() const {
    return Arena::Bytes<const A*>(kLookUps * taps * kPoints) + ReadsBytes() +
           Arena::Bytes<A>(kTogether * width);
  }

  // Of x and the cotangent y. The points are split into parts, each of which has a gradient of its
  // own; how, and so the order of all additions, depends on the shapes alone.
  void FilterGradient(Pool* pool) const {
    constexpr int64_t kTasks = 16;
    const A *x = static_cast<const A*>(args.x), *y = static_cast<const A*>(args.y);
    const int64_t columns = args.groups * panels, numbers = taps * in * width;
    const int64_t together = Min(columns, Together()), chunks = CeilDiv(columns, together);
    const int64_t parts = Max(1, Min(CeilDiv(kTasks, chunks), CeilDiv(rows, 4 * kTogether)));
    A* partial =
        static_cast<A*>(pool->shared(pool, Arena::Bytes<A>(parts * columns * numbers + args.in)));
    A* zeros = partial + parts * columns * numbers;
    for (int64_t c = 0; c < args.in; ++c) zeros[c] = 0;
    ParallelFor(pool, parts * chunks, [&](int64_t task) {
      Arena arena(pool, GradientBytes());
      const int64_t part = task / chunks, first = task % chunks * together;
      const int64_t last = Min(columns, first + together);
      const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
      A* d = partial + (part * columns + first) * numbers;
      ForVectors([&](auto number) {
        constexpr int kVectors = decltype(number)::value;
        GradientOf<kVectors>(x, y, zeros, &arena, first, last, begin, end, d);
      });
    });
    A* result = static_cast<A*>(args.taps);
    ParallelFor(pool, taps * columns, [&](int64_t task) {
      const int64_t t = task / columns, column = task % columns;
      const int64_t g = column / panels, panel = column % panels;
      for (int64_t c = 0; c < in; ++c) {
        const A* from = partial + column * numbers + (t * in + c) * width;
        A* to = result + (t * in + c) * args.out + g * out + panel * width;
        for (int64_t v = 0; v < width; v += kLane) {
          Vec<A> sum = {};
          for (int64_t part = 0; part < parts; ++part) {
            sum += Load<A>(from + part * columns * numbers + v);
          }
          StoreUpTo<A>(to + v, sum, out - panel * width - v);
        }
      }
    });
  }
};

template <bool kGradient>
void DirectTyped(const DirectArgs& args, Pool* pool) {
  const auto run = [&](const auto& direct) {
    if constexpr (kGradient) {
      direct.FilterGradient(pool);
    } else {
      direct.Convolve(pool);
    }
  };
  if (args.type == Type::kFloat64) {
    run(Direct<double>(args));
  } else {
    run(Direct<float>(args));
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_DIRECT_H_
