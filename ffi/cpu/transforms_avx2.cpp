// A part of kernels_avx2.cpp, so that all parts are compiled at once.
#define BANDJAX_TRANSFORMS
#include "kernels_avx2.cpp"
