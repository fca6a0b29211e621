// What handlers of transforms read: types, shapes, and the axes of a transform.
#ifndef BANDJAX_FFI_CPU_AXES_H_
#define BANDJAX_FFI_CPU_AXES_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <numeric>

#include "cpu/call.h"
#include "cpu/fourier_plan.h"
#include "cpu/kernels.h"
#include "xla/ffi/api/ffi.h"

namespace bandjax {

inline bool KnownType(xla::ffi::DataType type, Type* known) {
  switch (type) {
    case xla::ffi::F32:
      *known = Type::kFloat32;
      return true;
    case xla::ffi::F64:
      *known = Type::kFloat64;
      return true;
    case xla::ffi::BF16:
      *known = Type::kBFloat16;
      return true;
    default:
      return false;
  }
}

inline bool HasShape(xla::ffi::AnyBuffer buffer, std::initializer_list<int64_t> shape) {
  const auto dimensions = buffer.dimensions();
  return dimensions.size() == shape.size() &&
         std::equal(shape.begin(), shape.end(), dimensions.begin());
}

inline bool HasFast(const AxisShape& axis) {
  const int64_t length = axis.grid / std::gcd(axis.grid, axis.step);
  return length > 1 && !Radices(length).empty();
}

// What the table of an axis was made of; grid 0: not told.
struct Circle {
  int64_t grid = 0, step = 0;
  bool inverse = false;
};

inline xla::ffi::Error UnfitCircle() {
  return Invalid("grid and steps do not fit the kept frequencies");
}

// One axis of a transform, from the sizes of samples, spectrum and table. A table without columns
// is left out: the axis has a fast transform.
inline xla::ffi::Error ReadAxis(int64_t samples, int64_t kept, xla::ffi::AnyBuffer table, bool half,
                                Circle circle, AxisShape* shape) {
  const auto rows = table.dimensions();
  if (rows.size() != 2) return Invalid("a table must have 2 axes");
  const int64_t limit = rows[0] / 2;
  const bool bare = rows[1] == 0;
  if (samples < 1 || !HasShape(table, {2 * limit + 1, bare ? 0 : (samples + 1) / 2}) ||
      (half ? kept != limit + 1 : kept > 2 * limit + 1 || kept < std::max<int64_t>(1, 2 * limit))) {
    return Invalid("the tables do not fit the samples and the spectrum");
  }
  *shape = {circle.grid, circle.step, samples, limit, half, circle.inverse, bare};
  if (circle.grid == 0) {
    return bare ? Invalid("a table is needed without grid and steps") : xla::ffi::Error::Success();
  }
  if (shape->grid < 1 || shape->grid > INT32_MAX / 2 || 2 * limit > shape->grid ||
      shape->step < 1 || shape->step > INT32_MAX ||
      (!half && kept != std::min(2 * limit + 1, shape->grid))) {
    return UnfitCircle();
  }
  if (bare && (limit == 0 || !HasFast(*shape))) {
    return Invalid("a table is needed where there is no fast transform");
  }
  return xla::ffi::Error::Success();
}

// The fast kernels want three axes, with axes of one sample and one frequency in front.
inline void SetPlans(const AxisShape* axes, const bool* fast, const xla::ffi::AnyBuffer* tables,
                     const int64_t* kept, int rank, bool analysis, FourierArgs* args) {
  const auto nothing = [&](int axis) {
    return axes[axis].samples == 1 && kept[axis] == 1 && axes[axis].grid == 1;
  };
  bool alone = true;
  for (int axis = 0; axis < rank - 1; ++axis) alone = alone && nothing(axis);
  int to = 2;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (axis < rank - 1 && nothing(axis)) continue;
    args->plans[to] = PlanOf(axes[axis], fast[axis], analysis, alone);
    args->tables[to] = tables[axis].untyped_data();
    args->kept[to--] = kept[axis];
  }
  for (; to >= 0; --to) {
    args->plans[to] = PlanOf({1, 1, 1, 0, false, false}, false, analysis, false);
    args->kept[to] = 1;
  }
}

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_AXES_H_
