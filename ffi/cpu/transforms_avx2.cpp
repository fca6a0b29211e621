// The other half of kernels_avx2.cpp, so that both are compiled at once.
#define BANDJAX_TRANSFORMS
#include "kernels_avx2.cpp"
