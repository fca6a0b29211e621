// Compiled with AVX-512 instructions: 32 registers, of which 24 hold sums.
#define BANDJAX_ISA avx512
#define BANDJAX_BYTES 64
#define BANDJAX_REGISTERS 24
#define BANDJAX_TABLE kKernelsAvx512
#define BANDJAX_NAME "avx512"
#include "kernels_all.h"
