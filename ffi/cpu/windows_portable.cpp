// A part of kernels_portable.cpp, so that all parts are compiled at once.
#define BANDJAX_WINDOWS
#include "kernels_portable.cpp"
