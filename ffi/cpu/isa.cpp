#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bandjax {
namespace {

constexpr Isa kAll[] = {Isa::kAvx512, Isa::kAvx2, Isa::kPortable};  // best first

Isa Choose() {
  const char* asked = std::getenv("BANDJAX_CPU_ISA");
  std::string here;
  for (Isa isa : kAll) {
    if (!Has(isa)) continue;
    if (asked == nullptr || *asked == '\0' || asked == std::string(Name(isa))) return isa;
    here += std::string(here.empty() ? "" : ", ") + Name(isa);
  }
  throw std::runtime_error("BANDJAX_CPU_ISA must be one of " + here +
                           ", which were compiled and run on this processor, got " + asked);
}

}  // namespace

// Asks for all that CMakeLists.txt compiles the kernels of `isa` with.
bool Has([[maybe_unused]] Isa isa) {
#if defined(BANDJAX_AVX2) || defined(BANDJAX_AVX512)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef BANDJAX_AVX2
  if (isa == Isa::kAvx2) return avx2;
#endif
#ifdef BANDJAX_AVX512
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
#ifdef BANDJAX_PORTABLE
  if (isa == Isa::kPortable) return true;
#endif
  return false;
}

const char* Name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kPortable:
      break;
  }
  return "portable";
}

Isa ChosenIsa() {
  static const Isa isa = Choose();
  return isa;
}

}  // namespace bandjax
