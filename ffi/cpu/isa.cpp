#include "cpu/isa.h"

#ifdef BANDJAX_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bandjax {
namespace {

constexpr Isa kAll[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2,
                        Isa::kPortable};  // best first

#ifdef BANDJAX_AMX
// Tiles are a state of 8 KiB that Linux saves for those processes alone that have asked for it.
bool MayUseTiles() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTile) == 0) {
    return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool may = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return may;
}
#endif

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
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx512) return avx512;
#endif
#ifdef BANDJAX_AVX512BF16
  if (isa == Isa::kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef BANDJAX_AMX
  if (isa == Isa::kAmx) {
    return avx512 && __builtin_cpu_supports("avx512bf16") && MayUseTiles();
  }
#endif
#ifdef BANDJAX_PORTABLE
  if (isa == Isa::kPortable) return true;
#endif
  return false;
}

const char* Name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
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
