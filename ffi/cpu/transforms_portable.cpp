// The other half of kernels_portable.cpp, so that both are compiled at once.
#define BANDJAX_TRANSFORMS
#include "kernels_portable.cpp"
