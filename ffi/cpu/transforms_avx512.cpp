// The other half of kernels_avx512.cpp, so that both are compiled at once.
#define BANDJAX_TRANSFORMS
#include "kernels_avx512.cpp"
