// What becomes of a convolution's results on their way to memory: clip(y + bias + residual).
//
// A layer's bias, the sum with another branch of a network and a rectifier each read and write the
// whole map. Done where a result is stored anyway, they cost the reading of the residual alone.
#ifndef BANDJAX_FFI_CPU_EPILOGUE_H_
#define BANDJAX_FFI_CPU_EPILOGUE_H_

#include "simd.h"

namespace bandjax {
namespace BANDJAX_ISA {

// Sums are of A; results and residuals are stored in T, residuals as the results are.
template <typename A, typename T>
class Finish {
 public:
  Finish(const Epilogue& epilogue, const void* results)
      : there_(epilogue.there),
        bias_(static_cast<const A*>(epilogue.bias)),
        residual_(static_cast<const T*>(epilogue.residual)),
        results_(static_cast<const T*>(results)),
        low_(static_cast<A>(epilogue.low)),
        high_(static_cast<A>(epilogue.high)) {}

  // Of a vector of results from channel c on, of which `valid` are there, what is to be stored
  // at `to`.
  BANDJAX_INLINE Vec<A> operator()(Vec<A> y, const T* to, int64_t c, int64_t valid) const {
    if (__builtin_expect(!there_, 1)) return y;
    if (bias_ != nullptr) y += LoadUpTo<A>(bias_ + c, valid);
    if (residual_ != nullptr) y += LoadUpTo<A>(residual_ + (to - results_), valid);
    // What is no number is neither below nor above, and stays.
    const Vec<A> low = low_ - Vec<A>{}, high = high_ - Vec<A>{};
    y = y < low ? low : y;
    return y > high ? high : y;
  }

 private:
  bool there_;
  const A* bias_;
  const T *residual_, *results_;
  A low_, high_;
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_EPILOGUE_H_
