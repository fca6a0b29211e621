// What a fast Fourier transform of one axis needs besides its data, and when it pays.
//
// Sample j of an axis lies at point step (j - (n - 1) / 2) of a circle of `grid` points. With d the
// greatest common divisor of step and grid, the samples lie on `length = grid / d` points alone:
// the transform has that length, and frequencies which are equal modulo it fall into one slot.
// Sample j is laid on slot (step / d) j, modulo length, so that the rest is a phase for each
// frequency.
#ifndef BANDJAX_FFI_CPU_FOURIER_PLAN_H_
#define BANDJAX_FFI_CPU_FOURIER_PLAN_H_

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace bandjax {

// All that is static about one axis.
struct AxisShape {
  int64_t grid;       // points on the circle; 0 where nothing but the table tells the positions
  int64_t step;       // from one sample to the next
  int64_t samples;    // n
  int64_t limit;      // U, the largest kept frequency
  bool half;          // whether frequencies 0 .. U are kept, and not -U .. U
  bool inverse;       // whether they carry the weights c_u / grid
  bool bare = false;  // whether there is no table, so that the fast transform must be taken
};

// The smallest number of passes of the radices that the kernels have; empty where other primes are
// among the factors of `length`.
std::vector<int> Radices(int64_t length);

// The transform of an axis, from a cache that holds every plan for good. `fast` chooses between the
// fast transform, for which Radices(grid / gcd(grid, step)) must not be empty, and the table.
// `alone` tells that there is no other axis, whose lines would be transformed in pairs.
const FourierPlan* PlanOf(const AxisShape& shape, bool fast, bool analysis, bool alone);

// Whether it pays to transform these axes (1 to 3 of them, that of half the frequencies last) by
// the fast kernels; of each axis, whether by the fast transform. What the rule compares was
// measured.
bool ChooseFourier(const AxisShape* axes, int rank, bool* fast);

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FOURIER_PLAN_H_
