// Which of the instruction sets that the kernels are compiled for runs here.

#ifndef BANDJAX_FFI_CPU_ISA_H_
#define BANDJAX_FFI_CPU_ISA_H_

namespace bandjax {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best that this processor has, or the one that the environment variable BANDJAX_CPU_ISA names.
// Decided by the first call. Throws std::runtime_error for a name of which there are no kernels, or
// that this processor does not have.
Isa ChosenIsa();

// Whether this processor has it, the system lets this process use it, and the kernels were compiled
// for it.
bool Has(Isa isa);

// "portable", "avx2", "avx512", "avx512bf16" or "amx".
const char* Name(Isa isa);

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_ISA_H_
