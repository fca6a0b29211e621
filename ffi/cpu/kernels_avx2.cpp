// Compiled with AVX2 and FMA instructions: 16 registers, of which 12 hold sums.
#define BANDJAX_ISA avx2
#define BANDJAX_BYTES 32
#define BANDJAX_REGISTERS 12
#define BANDJAX_TABLE kKernelsAvx2
#define BANDJAX_NAME "avx2"
#include "kernels_all.h"
