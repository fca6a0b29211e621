// What each output of a direct convolution reads.
#ifndef BANDJAX_FFI_CPU_DIRECT_READS_H_
#define BANDJAX_FFI_CPU_DIRECT_READS_H_

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A>
struct DirectReads {
  static constexpr int64_t kLane = kLanes<A>;
  // Points whose inputs are looked up at once, and of which a task has one or more.
  static constexpr int64_t kPoints = 12;

  explicit DirectReads(const DirectArgs& all) : args(all) {
    taps = args.axes[0].taps * args.axes[1].taps * args.axes[2].taps;
    in = args.in / args.groups, out = args.out / args.groups;
    vectors = out > 2 * kLane && BANDJAX_REGISTERS >= 24 ? 4 : out > kLane ? 2 : 1;
    width = vectors * kLane, panels = CeilDiv(out, width);
    rows = args.n * args.axes[0].out * args.axes[1].out * args.axes[2].out;
  }

  // Where a point is: its example and place, counted on without divisions.
  struct Place {
    int64_t n, at[3];
  };
  Place PlaceOf(int64_t row) const {
    Place place;
    for (int axis = 2; axis >= 0; --axis) {
      place.at[axis] = row % args.axes[axis].out, row /= args.axes[axis].out;
    }
    place.n = row;
    return place;
  }
  void Next(Place* place) const {
    for (int axis = 2; axis >= 0; --axis) {
      if (++place->at[axis] < args.axes[axis].out) return;
      place->at[axis] = 0;
    }
    ++place->n;
  }

  // Of every tap, the inputs of `count` points (the last one's, beyond them): (tap, point).
  struct Reads {
    const A** at;
    uintptr_t* inside;  // scratch
  };
  void LookUp(const A* x, Place place, int64_t count, const A* zeros, const Reads& to) const {
    const A** reads = to.at;
    uintptr_t begin[kPoints], *mask = to.inside;
    int64_t first[3][kPoints];
    for (int64_t m = 0; m < kPoints; ++m) {
      int64_t at = place.n;
      for (int axis = 0; axis < 3; ++axis) {
        const DirectAxis& a = args.axes[axis];
        first[axis][m] = a.first + place.at[axis] * a.stride;
        at = at * a.in + first[axis][m];
      }
      begin[m] = reinterpret_cast<uintptr_t>(x) + static_cast<uintptr_t>(at * args.in) * sizeof(A);
      if (m + 1 < count) Next(&place);
    }
    const uintptr_t* masks[3];
    for (int axis = 0; axis < 3; ++axis) {
      const DirectAxis& a = args.axes[axis];
      masks[axis] = mask;
      for (int64_t t = 0; t < a.taps; ++t, mask += kPoints) {
        for (int64_t m = 0; m < kPoints; ++m) {
          const int64_t i = first[axis][m] + t * a.dilation;
          mask[m] = ~static_cast<uintptr_t>((i | (a.in - 1 - i)) >> 63);  // neither is negative
        }
      }
    }
    const DirectAxis *a0 = args.axes, *a1 = a0 + 1, *a2 = a0 + 2;
    const auto zero = reinterpret_cast<uintptr_t>(zeros);
    for (int64_t t0 = 0; t0 < a0->taps; ++t0) {
      for (int64_t t1 = 0; t1 < a1->taps; ++t1) {
        for (int64_t t2 = 0; t2 < a2->taps; ++t2, reads += kPoints) {
          const uintptr_t *m0 = masks[0] + t0 * kPoints, *m1 = masks[1] + t1 * kPoints;
          const uintptr_t* m2 = masks[2] + t2 * kPoints;
          const int64_t far =
              (t0 * a0->dilation * a1->in + t1 * a1->dilation) * a2->in + t2 * a2->dilation;
          const auto offset = static_cast<uintptr_t>(far * args.in) * sizeof(A);
          uintptr_t found[kPoints];
          for (int64_t m = 0; m < kPoints; ++m) {
            const uintptr_t there = m0[m] & m1[m] & m2[m];
            found[m] = ((begin[m] + offset) & there) | (zero & ~there);
          }
          __builtin_memcpy(reads, found, sizeof found);
        }
      }
    }
  }
  int64_t AxisTaps() const { return args.axes[0].taps + args.axes[1].taps + args.axes[2].taps; }
  size_t ReadsBytes() const {
    return Arena::Bytes<const A*>(taps * kPoints) + Arena::Bytes<uintptr_t>(AxisTaps() * kPoints);
  }
  Reads TakeReads(Arena* arena) const {
    const A** at = arena->template Take<const A*>(taps * kPoints);
    return {at, arena->template Take<uintptr_t>(AxisTaps() * kPoints)};
  }

  const DirectArgs& args;
  int64_t taps, in, out, vectors, width, panels, rows;
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_DIRECT_READS_H_
