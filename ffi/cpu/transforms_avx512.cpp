// A part of kernels_avx512.cpp, so that all parts are compiled at once.
#define BANDJAX_TRANSFORMS
#include "kernels_avx512.cpp"
