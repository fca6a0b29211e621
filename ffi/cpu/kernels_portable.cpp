// Compiled for the compiler's default processor: what every machine of the architecture has.
#define BANDJAX_ISA portable
#define BANDJAX_BYTES 16
#define BANDJAX_REGISTERS 12
#define BANDJAX_TABLE kKernelsPortable
#define BANDJAX_NAME "portable"
#include "kernels_all.h"
