// The epilogue of a handler: attributes `bias`, `residual`, `low` and `high`, and behind all other
// operands those that the first two say are there.
#ifndef BANDJAX_FFI_CPU_READ_EPILOGUE_H_
#define BANDJAX_FFI_CPU_READ_EPILOGUE_H_

#include <algorithm>

#include "cpu/call.h"

namespace bandjax {

// Tells in `count` how many of `rest` are not its operands.
inline xla::ffi::Error ReadEpilogue(bool bias, bool residual, double low, double high,
                                    xla::ffi::RemainingArgs rest,
                                    const xla::ffi::AnyBuffer& results, size_t* count,
                                    Epilogue* epilogue) {
  namespace ffi = xla::ffi;
  *count = rest.size();
  if (!(low <= high)) return Invalid("the lower limit must not be above the upper one");
  const size_t own = static_cast<size_t>(bias) + static_cast<size_t>(residual);
  if (*count < own) return Invalid("the epilogue's operands are not there");
  *count -= own;
  const auto size = results.dimensions();
  const ffi::DataType type = results.element_type();
  size_t next = *count;
  if (bias) {
    const auto given = rest.get<ffi::AnyBuffer>(next++);
    if (!given.has_value()) return given.error();
    const auto wanted = type == ffi::F64 ? ffi::F64 : ffi::F32;
    if (given->element_type() != wanted || given->dimensions().size() != 1 ||
        given->dimensions()[0] != size[size.size() - 1]) {
      return Invalid("the bias must have a number for each channel, in the type of the sums");
    }
    epilogue->bias = given->untyped_data();
  }
  if (residual) {
    const auto given = rest.get<ffi::AnyBuffer>(next++);
    if (!given.has_value()) return given.error();
    const auto own_size = given->dimensions();
    if (given->element_type() != type ||
        !std::equal(own_size.begin(), own_size.end(), size.begin(), size.end())) {
      return Invalid("the residual must be like the results");
    }
    epilogue->residual = given->untyped_data();
  }
  epilogue->low = low, epilogue->high = high;
  epilogue->there = own > 0 || low > -__builtin_inf() || high < __builtin_inf();
  return ffi::Error::Success();
}

// The same of attributes that are there together or not at all.
inline xla::ffi::Error ReadEpilogue(xla::ffi::Dictionary attributes, xla::ffi::RemainingArgs rest,
                                    const xla::ffi::AnyBuffer& results, size_t* count,
                                    Epilogue* epilogue) {
  *count = rest.size();
  if (!attributes.contains("low")) return xla::ffi::Error::Success();
  const auto bias = attributes.get<bool>("bias"), residual = attributes.get<bool>("residual");
  const auto low = attributes.get<double>("low"), high = attributes.get<double>("high");
  if (!bias.has_value() || !residual.has_value() || !low.has_value() || !high.has_value()) {
    return Invalid("an epilogue has bools, bias and residual, and float64 limits, low and high");
  }
  return ReadEpilogue(*bias, *residual, *low, *high, rest, results, count, epilogue);
}

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_READ_EPILOGUE_H_
