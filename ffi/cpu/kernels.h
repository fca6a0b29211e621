// What the CPU kernels take, the same for every instruction set.
//
// The mathematics and the layouts are those of ffi/README.md.
#ifndef BANDJAX_FFI_CPU_KERNELS_H_
#define BANDJAX_FFI_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace bandjax {

struct BFloat16 {
  uint16_t bits;
};

enum class Type { kFloat32, kFloat64, kBFloat16 };

// Runs tasks on several threads. Plain functions and pointers: nothing of the standard library is
// instantiated in files that are compiled for an instruction set that the machine may lack.
struct Pool {
  // Calls body(data, task) once for every task in [0, tasks), in any order, on any threads.
  void (*run)(Pool* pool, int64_t tasks, void (*body)(void* data, int64_t task), void* data);
  // Memory of the calling thread, aligned to a cache line, valid until the thread asks again.
  void* (*scratch)(size_t bytes);
  // Memory that all tasks of a call see, aligned likewise, valid until the call asks again or ends.
  void* (*shared)(Pool* pool, size_t bytes);
  int64_t threads;  // how many may be at work
};

// What results become before they are stored: clip(y + bias + residual, low, high).
struct Epilogue {
  bool there = false;
  const void* bias = nullptr;      // (channels), in the type of the sums; none if null
  const void* residual = nullptr;  // like the results; none if null
  double low = -__builtin_inf(), high = __builtin_inf();
};

// Equal windows of a larger map, side by side or overlapping: sample (i, j) of window (a, b) is
// (first_h + a step_h + i, first_w + b step_w + j) of the map. Outside of it there are zeros to be
// read, and nothing is written.
struct Tiling {
  int64_t rows = 0, columns = 0;  // windows along each axis; none where the samples are no map
  int64_t map_h, map_w, first_h, first_w, step_h, step_w;
};

// Samples (n, h, w, c) and their spectrum (k0, k1, n, c), of which `re` and `im` are the parts. Of
// a map's windows the samples are (n / windows, map_h, map_w, c).
struct TransformArgs {
  int64_t n, h, w, c;
  int64_t u0, u1;  // the largest kept frequencies
  int64_t k0, k1;  // how many are kept
  void* samples;
  void* re;
  void* im;
  const void* table0;  // (2 u0 + 1, ceil(h / 2))
  const void* table1;  // (2 u1 + 1, ceil(w / 2))
  Type sample_type, spectrum_type;
  Tiling tiling;
  Epilogue epilogue = {};  // of a synthesis
};

// One axis of a fast transform; fourier_plan.h tells more. A line of the axis is worked on in a
// buffer of `room` complex numbers. `load_at` tells where in it each input goes, ~i meaning that it
// is added to what is at i already; `empty` what no input reaches; `read_at` where each output is.
// Of frequencies there are two entries, for u = 0 .. U: that of u, and that of -u.
struct FourierPlan {
  int64_t samples, limit, length, room;
  bool fast;  // by the fast transform, else by the table
  // Whether a real line alone is one complex line of half the length: points 2 m of the circle are
  // the real parts, 2 m + 1 the imaginary ones. Places of samples, and empty ones of an analysis,
  // are then twice the point, plus one for the imaginary part.
  bool halved;
  const int32_t* load_at;
  const int32_t* read_at;
  const int32_t* empty;
  int64_t empties;
  const int32_t* radices;  // of the passes, first to last
  int64_t passes;
  // The factors of the passes but the first, and of each frequency u >= 0 the phase (for an
  // analysis) and weight: cosine and sine, or real and imaginary part, side by side.
  const float *twiddles32, *factors32;
  const double *twiddles64, *factors64;
  // Of a halved line exp(-2 pi i u / (2 length)), for u = 0 .. U, as cosine and sine.
  const float* turns32;
  const double* turns64;
};

// Samples (n, size of axes 0 .. 2, c) and their spectrum (kept of axes 0 .. 2, n, c).
struct FourierArgs {
  int64_t n, c;
  const FourierPlan* plans[3];
  int64_t kept[3];
  const void* tables[3];  // as of TransformArgs
  void* samples;
  void* re;
  void* im;
  Type sample_type, spectrum_type;
  Epilogue epilogue = {};  // of a synthesis
};

// Spectra (k0, k1, n, in) and (k0, k1, n, out); taps (t0, t1, in / groups, out).
struct MultiplyArgs {
  int64_t k0, k1, n, in, out, groups, t0, t1;
  void *x_re, *x_im;  // the input's spectrum
  void *y_re, *y_im;  // the output's spectrum
  void* taps;         // the filter, or its gradient: (t0, t1, in / groups, out)
  const void* outer;  // (2, k0, t0)
  const void* inner;  // (2, k1, t1)
  // Without taps (t0 = 0) its spectrum: real parts (k0, k1, in / groups, out), then imaginary ones.
  bool spectral() const { return t0 == 0; }
  void* partial;  // as many filter gradients as SplitFilter() has parts, if more than one
  // Storage of the spectra, and of everything else. With the output's in bfloat16, as the input's
  // then is, products may round their factors to that, but sums are of float32.
  Type x_type, y_type, type;
  Type w_type = type;  // of a given spectrum, where an output is made of it; elsewhere `type`
  // Whether spectra and tables are those of real signals in two axes or more: at column frequency
  // 0, row k0 - u is the conjugate of row u, row 0 is real, and so is the inner table.
  bool hermitian = false;
};

// The method "dft" of few examples on maps, a column of the spectrum at a time. Of `product` the
// input's spectrum is read, and the taps; the output's is never in memory. There are two columns or
// more.
struct ColumnArgs {
  MultiplyArgs product;
  FourierArgs from;  // of the gradients, the analysis of the cotangent
  FourierArgs to;    // the synthesis of the output, or of the input's gradient
  void* gradient;    // of the taps
};

// How the frequencies are split into sums for the filter's gradient: parts of axis 1, and of axis 0
// in each. It depends on the shapes alone, and so does the order of all additions: results do not
// depend on the number of threads.
struct FilterSplit {
  int64_t parts1, parts0;
  int64_t parts() const { return parts1 * parts0; }
};

inline FilterSplit SplitFilter(const MultiplyArgs& args) {
  constexpr int64_t kTile = 64, kTasks = 16;
  const int64_t in = args.in / args.groups, out = args.out / args.groups;
  const bool depthwise = in == 1 && out == 1;
  const int64_t tiles =
      depthwise ? (args.out + kTile - 1) / kTile
                : args.groups * ((in + kTile - 1) / kTile) * ((out + kTile - 1) / kTile);
  if (tiles == 0 || args.k0 == 0 || args.k1 == 0) return {1, 1};
  const int64_t wanted = (kTasks + tiles - 1) / tiles;
  const int64_t parts1 = wanted < args.k1 ? wanted : args.k1;
  const int64_t rest = (wanted + parts1 - 1) / parts1;
  return {parts1, rest < args.k0 ? rest : args.k0};
}

// The code of a value in a block's words.
struct PackMember {
  int32_t value, word, shift, width;
};

constexpr int64_t kPackValues = 64;  // the most of a block

// Samples (n, shape, c) and the words (n, counts, n_words, lanes) of their blocks. A block has
// sizes[0] x sizes[1] x sizes[2] points of `merged` channels each.
struct PackArgs {
  int64_t n, c, shape[3], counts[3], sizes[3], merged, lanes, n_words, members;
  const float* matrices[3];  // (size, size): orthonormal cosine transforms
  const PackMember* layout;  // sorted by word
  const float* limits;       // of each member: 1 / the largest magnitude in steps
  void* samples;             // float32
  void* words;               // uint32
  void* keys;                // uint32 (n)
};

// Flags (n, m), a byte each, and words (n, ceil(m / 32)).
struct BitsArgs {
  int64_t n, m;
  bool above_zero;  // in place of flags there are float32 numbers: whether they are above zero
  void* flags;
  void* words;
};

// One axis of a convolution by windows: window i has the outputs from i * length on, and needs the
// inputs from first + i * length on. Outside of the maps there are zeros, and nothing is written.
struct WindowAxis {
  int64_t in, out;  // samples of the maps
  int64_t windows;
  int64_t length, span;  // samples of a window: outputs, and inputs
  int64_t first;         // input of the first window
  int64_t grid, taps;    // points of the circle, and of the filter
  // Cosines, then sines, of frequencies u = 0 .. grid / 2 and samples from a window's first to its
  // middle: (2, grid / 2 + 1, ceil(span / 2)), and the same of `length`.
  const void *span_table, *length_table;
  // exp(2 pi i u t / grid) of frequency and tap, this from the filter's middle, weighted: (2, kept
  // frequencies, taps).
  const void* turns;
};

// Maps x (n, in of the axes, in) and y (n, out of the axes, out), both in `map_type`; taps (taps of
// the axes, in / groups, out), in `type`. Transposed, the taps are those of the convolution whose
// outputs x are: (taps, out / groups, in), and turned about.
struct WindowArgs {
  int64_t n, in, out, groups;
  WindowAxis axes[3];
  void *x, *y, *taps;
  bool transposed;
  Type map_type, type;
  Epilogue epilogue = {};  // of y, where that is the result
};

// One axis of a direct convolution: output i reads the inputs first + i * stride + t * dilation of
// the taps t. Outside of the maps there are zeros.
struct DirectAxis {
  int64_t in, out, taps, first, stride, dilation;
};

// Maps and taps as of WindowArgs, all in `type`.
struct DirectArgs {
  int64_t n, in, out, groups;
  DirectAxis axes[3];
  void *x, *y, *taps;
  bool transposed;
  Type type;
  Epilogue epilogue = {};  // of y, where that is the result
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  void (*analysis)(const TransformArgs&, Pool*);
  void (*synthesis)(const TransformArgs&, Pool*);
  void (*fourier_analysis)(const FourierArgs&, Pool*);
  void (*fourier_synthesis)(const FourierArgs&, Pool*);
  void (*multiply_sum)(const MultiplyArgs&, Pool*);
  void (*input_product)(const MultiplyArgs&, Pool*);
  void (*filter_product)(const MultiplyArgs&, Pool*);
  void (*columns)(const ColumnArgs&, Pool*);
  void (*columns_gradients)(const ColumnArgs&, Pool*);
  void (*direct)(const DirectArgs&, Pool*);
  void (*direct_filter)(const DirectArgs&, Pool*);
  void (*windows)(const WindowArgs&, Pool*);
  void (*windows_filter)(const WindowArgs&, Pool*);
  void (*pack)(const PackArgs&, Pool*);
  void (*unpack)(const PackArgs&, Pool*);
  void (*pack_bits)(const BitsArgs&, Pool*);
  void (*unpack_bits)(const BitsArgs&, Pool*);
};

#if defined(__x86_64__)
extern const Kernels kKernelsAmx;
extern const Kernels kKernelsAvx512Bf16;
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx2;
#endif
extern const Kernels kKernelsPortable;

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_KERNELS_H_
