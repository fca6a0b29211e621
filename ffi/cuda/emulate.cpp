// Runs the CUDA kernels on a CPU, in the emulation of block_emulated.h, against literal sums in
// double precision. No GPU and no nvcc: any C++17 compiler builds this file together with the
// kernels' sources (see tests/native/test_cuda_emulation.py).
//
//   emulate transform | multiply | filter | paper
//
// Prints a line for each case. Exits with 1 when a result is off, or depends on the order in which
// the threads of a block run; with 2 when a kernel breaks a rule of the emulation.

#include <cmath>
#include <complex>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "launchers.h"

namespace bandjax::cuda {
namespace {

using Complex = std::complex<double>;

std::mt19937 generator(20240611);
int failures = 0;

// An array in guarded memory in the storage type that the kernel expects, and its values as the
// kernel reads them.
class Array {
 public:
  Array(int64_t size, Storage storage)
      : size_(size), storage_(storage), memory_(size * (storage == Storage::kF32 ? 4 : 2)) {}
  static Array Random(int64_t size, Storage storage = Storage::kF32) {
    Array a(size, storage);
    std::normal_distribution<float> normal(0.3f, 1.0f);
    for (int64_t i = 0; i < size; ++i) a.Set(i, normal(generator));
    return a;
  }
  static Array From(const std::vector<float>& values) {
    Array a(static_cast<int64_t>(values.size()), Storage::kF32);
    for (size_t i = 0; i < values.size(); ++i) a.Set(static_cast<int64_t>(i), values[i]);
    return a;
  }

  void Set(int64_t i, float x) {
    if (storage_ == Storage::kF32) {
      reinterpret_cast<float*>(memory_.data())[i] = x;
    } else {
      Store(reinterpret_cast<Bf16*>(memory_.data()) + i, x);
    }
  }
  double operator[](int64_t i) const {
    return storage_ == Storage::kF32 ? reinterpret_cast<const float*>(memory_.data())[i]
                                     : ToFloat(reinterpret_cast<const Bf16*>(memory_.data())[i]);
  }
  void* data() const { return memory_.data(); }
  float* floats() const { return reinterpret_cast<float*>(memory_.data()); }
  int64_t size() const { return size_; }
  Storage storage() const { return storage_; }

 private:
  int64_t size_;
  Storage storage_;
  GuardedMemory memory_;
};

// Runs `kernel` with every order of threads. Its results must be within `tolerance` times the root
// mean square of the expected ones (of the real parts), up to the rounding of their storage, and
// bit for bit the same each time.
void Check(const std::string& name, double tolerance, const std::vector<Array*>& results,
           const std::vector<std::vector<double>>& expected,
           const std::function<const char*()>& kernel) {
  double worst = 0.0;
  bool same = true;
  std::vector<std::vector<double>> first;
  const char* error = nullptr;
  for (Order order : {Order::kForward, Order::kBackward, Order::kShuffled}) {
    emulated_order = order;
    for (Array* result : results) {
      for (int64_t i = 0; i < result->size(); ++i) {
        result->Set(i, std::numeric_limits<float>::quiet_NaN());
      }
    }
    error = kernel();
    if (error != nullptr) break;
    double square = 0.0;
    for (double x : expected[0]) square += x * x;
    const double scale = std::sqrt(square / static_cast<double>(expected[0].size()));
    for (size_t r = 0; r < results.size(); ++r) {
      const Array& result = *results[r];
      std::vector<double> values;
      for (int64_t i = 0; i < result.size(); ++i) {
        const double rounding = result.storage() == Storage::kBf16 ? 1.0 / 256 : 0.0;
        const double off = std::abs(result[i] - expected[r][i]);
        const double share = (off - rounding * std::abs(expected[r][i])) / scale;
        if (!(share <= worst)) worst = share;  // A NaN stays.
        values.push_back(result[i]);
      }
      if (order == Order::kForward) {
        first.push_back(values);
      } else {
        same = same && std::memcmp(first[r].data(), values.data(), 8 * values.size()) == 0;
      }
    }
  }
  const bool good = error == nullptr && same && worst <= tolerance;
  failures += !good;
  std::printf("%s %s: off by %.2e of %.2e%s%s\n", good ? "ok  " : "FAIL", name.c_str(), worst,
              tolerance, same ? "" : ", depends on the order of threads",
              error == nullptr ? "" : error);
  std::fflush(stdout);
}

std::string Name(const char* what, std::initializer_list<int64_t> sizes) {
  std::string name = what;
  for (int64_t size : sizes) name += " " + std::to_string(size);
  return name;
}

const char* Text(Storage storage) { return storage == Storage::kF32 ? "f32" : "bf16"; }

// ------------------------------------------------------------------------------------ transforms

// One axis: n samples `step` apart, measured from their middle, on a circle of `grid` points;
// weights make the frequencies unlike each other.
struct Axis {
  int64_t n, modes;
  double grid, step;

  double Weight(int64_t u) const { return 1.0 + 0.25 * static_cast<double>(u % 3); }
  double Angle(int64_t u, int64_t j) const {
    const double position = step * (static_cast<double>(j) - static_cast<double>(n - 1) / 2);
    return 2 * M_PI * static_cast<double>(u) * position / grid;
  }
  Array Table() const {
    const int64_t pairs = (n + 1) / 2;
    std::vector<float> table;
    for (int64_t u = 0; u <= modes; ++u) {
      for (int64_t j = 0; j < pairs; ++j) {
        table.push_back(static_cast<float>(Weight(u) * std::cos(Angle(u, j))));
      }
    }
    for (int64_t u = 1; u <= modes; ++u) {
      for (int64_t j = 0; j < pairs; ++j) {
        table.push_back(static_cast<float>(Weight(u) * std::sin(Angle(u, j))));
      }
    }
    return Array::From(table);
  }
};

struct TransformCase {
  int64_t N, H, W, C, U0, U1;
  bool nyquist_once;
  TransformBudget budget;
};

void CheckTransform(const TransformCase& c, Storage samples, Storage spectra) {
  const int64_t K0 = 2 * c.U0 + (c.nyquist_once ? 0 : 1), K1 = c.U1 + 1;
  const Axis axis0{c.H, c.U0, c.nyquist_once ? 2.0 * c.U0 : 2.0 * c.U0 + 3, 1.0};
  const Axis axis1{c.W, c.U1, 2.0 * c.U1 + 5, 2.0};
  const TransformShape shape{c.N, c.H, c.W, c.C, c.U0, c.U1, K0, K1};
  const Array table0 = axis0.Table(), table1 = axis1.Table();
  const int64_t spectrum = K0 * K1 * c.N * c.C, image = c.N * c.H * c.W * c.C;
  const Array x = Array::Random(image, samples);
  const Array given_re = Array::Random(spectrum, spectra);
  const Array given_im = Array::Random(spectrum, spectra);
  std::vector<double> re(spectrum), im(spectrum), y(image);
  for (int64_t k0 = 0; k0 < K0; ++k0) {
    const int64_t u0 = k0 <= c.U0 ? k0 : k0 - K0;
    for (int64_t u1 = 0; u1 < K1; ++u1) {
      const double weight = axis0.Weight(std::abs(u0)) * axis1.Weight(u1);
      for (int64_t h = 0; h < c.H; ++h) {
        for (int64_t w = 0; w < c.W; ++w) {
          const Complex phase = std::polar(weight, -axis0.Angle(u0, h) - axis1.Angle(u1, w));
          for (int64_t i = 0; i < c.N * c.C; ++i) {
            const int64_t at = (k0 * K1 + u1) * c.N * c.C + i;
            const int64_t pixel = ((i / c.C * c.H + h) * c.W + w) * c.C + i % c.C;
            re[at] += phase.real() * x[pixel];
            im[at] += phase.imag() * x[pixel];
            y[pixel] += phase.real() * given_re[at] + phase.imag() * given_im[at];
          }
        }
      }
    }
  }
  std::string types = std::string(" ") + Text(samples) + " " + Text(spectra);
  const auto sizes = {c.N, c.H, c.W, c.C, c.U0, c.U1};
  Array got_re(spectrum, spectra), got_im(spectrum, spectra), got(image, samples);
  Check(Name("analysis", sizes) + types, 5e-6, {&got_re, &got_im}, {re, im}, [&] {
    return LaunchAnalysis(shape, samples, spectra, x.data(), table0.floats(), table1.floats(),
                          got_re.data(), got_im.data(), nullptr, c.budget);
  });
  Check(Name("synthesis", sizes) + types, 5e-6, {&got}, {y}, [&] {
    return LaunchSynthesis(shape, samples, spectra, given_re.data(), given_im.data(),
                           table0.floats(), table1.floats(), got.data(), nullptr, c.budget);
  });
}

void Transforms() {
  constexpr Storage kF32 = Storage::kF32, kBf16 = Storage::kBf16;
  // As on a GPU, where so small sizes are cut into many blocks; in few blocks; a few lines, steps
  // and far indices at a time.
  const TransformBudget usual, whole{60 << 10, 12 << 10, 1, 512};
  const TransformBudget small{3 << 10, 100, 1, 8}, few_steps{60 << 10, 200, 1, 16};
  const std::vector<TransformCase> cases = {
      {2, 16, 16, 5, 7, 7, false, whole},  // Tiles of 8 in the first pass,
      {1, 9, 11, 3, 4, 5, false, whole},   // of 4,
      {2, 6, 5, 3, 3, 2, true, whole},     // of 2,
      {2, 1, 5, 3, 0, 0, false, whole},    // of 1;
      {1, 18, 9, 33, 8, 6, false, small},  // lines in chunks.
      {2, 8, 8, 5, 4, 3, false, usual},        {3, 1, 37, 11, 0, 18, false, usual},
      {3, 1, 137, 11, 0, 68, false, whole},    {1, 1, 1, 1, 0, 0, false, usual},
      {1, 32, 32, 35, 10, 10, false, whole},   {1, 31, 33, 2, 15, 16, false, whole},
      {1, 24, 29, 3, 12, 13, true, few_steps}, {1, 12, 23, 2, 6, 11, true, small},
      {1, 3, 40, 1, 1, 17, false, small},      {1, 40, 3, 1, 19, 1, false, small},
      {1, 1, 30, 2, 0, 20, false, few_steps},  {1, 2, 2, 4000, 1, 1, false, usual},
      {1, 70, 1, 1, 33, 0, false, usual},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    CheckTransform(cases[i], kF32, kF32);
    if (i >= 5) continue;
    CheckTransform(cases[i], kF32, kBf16);
    CheckTransform(cases[i], kBf16, kF32);
    CheckTransform(cases[i], kBf16, kBf16);
  }
}

// ------------------------------------------------------------------------------------ products

struct ProductCase {
  ProductShape shape;
  Storage spectra;

  int64_t K() const { return shape.K0 * shape.K1; }
  int64_t Input() const { return shape.C / shape.groups; }
  int64_t Output() const { return shape.O / shape.groups; }
  int64_t Taps() const { return shape.k0 * shape.k1; }
  std::string Text(const char* what, const char* precision) const {
    const ProductShape& s = shape;
    return Name(what, {s.K0, s.K1, s.N, s.C, s.O, s.groups, s.k0, s.k1}) + " " +
           cuda::Text(spectra) + " " + precision;
  }
};

const std::vector<ProductCase>& ProductCases() {
  constexpr Storage kF32 = Storage::kF32, kBf16 = Storage::kBf16;
  static const std::vector<ProductCase> cases = {
      {{3, 2, 5, 7, 9, 1, 3, 3}, kF32},      // Nothing is aligned.
      {{2, 3, 33, 20, 72, 1, 3, 3}, kF32},   // Everything is; two frequencies in a block.
      {{5, 1, 101, 16, 65, 1, 1, 1}, kF32},  // One frequency in a block.
      {{3, 1, 40, 48, 32, 2, 2, 3}, kF32},   // Groups, aligned
      {{2, 2, 9, 6, 10, 2, 1, 5}, kF32},     // and not,
      {{1, 3, 3, 3, 3, 3, 3, 1}, kF32},      // one channel each.
      {{5, 1, 4, 3, 6, 1, 1, 300}, kF32},    // More taps than phases in shared memory.
      {{3, 2, 20, 40, 36, 1, 4, 5}, kBf16},  // bfloat16, aligned
      {{3, 1, 20, 9, 10, 1, 2, 2}, kBf16},   // and not,
      {{2, 1, 50, 9, 10, 1, 1, 2}, kBf16},   // two frequencies in a block,
      {{1, 2, 100, 8, 10, 1, 1, 1}, kBf16},  // and one.
  };
  return cases;
}

struct NamedPrecision {
  Precision precision;
  const char* name;
  double tolerance;
};

const NamedPrecision kPrecisions[] = {
    {Precision::kTf32, "tf32", 6e-3},
    {Precision::kTf32x3, "tf32x3", 3e-6},
    {Precision::kBf16, "bf16", 5e-2},
};

// outer * inner of frequency k and one tap.
Complex Phase(const ProductShape& s, const Array& outer, const Array& inner, int64_t k,
              int64_t tap) {
  const int64_t i = k / s.K1 * s.k0 + tap / s.k1, j = k % s.K1 * s.k1 + tap % s.k1;
  return Complex(outer[i], outer[s.K0 * s.k0 + i]) * Complex(inner[j], inner[s.K1 * s.k1 + j]);
}

Complex At(const Array& re, const Array& im, int64_t i) { return {re[i], im[i]}; }

// Calls visit(k, c, o): every frequency, input channel and output channel of the same group.
template <class Visit>
void ForEachPair(const ProductCase& c, const Visit& visit) {
  for (int64_t k = 0; k < c.K(); ++k) {
    for (int64_t o = 0; o < c.shape.O; ++o) {
      for (int64_t i = 0; i < c.Input(); ++i) visit(k, o / c.Output() * c.Input() + i, o);
    }
  }
}

void CheckProducts(const ProductCase& c) {
  const ProductShape& s = c.shape;
  const Array xre = Array::Random(c.K() * s.N * s.C, c.spectra);
  const Array xim = Array::Random(c.K() * s.N * s.C, c.spectra);
  const Array yre = Array::Random(c.K() * s.N * s.O), yim = Array::Random(c.K() * s.N * s.O);
  const Array taps = Array::Random(c.Taps() * c.Input() * s.O);
  const Array outer = Array::Random(2 * s.K0 * s.k0), inner = Array::Random(2 * s.K1 * s.k1);
  std::vector<double> y_re(yre.size()), y_im(yre.size()), x_re(xre.size()), x_im(xre.size());
  ForEachPair(c, [&](int64_t k, int64_t i, int64_t o) {
    Complex w = 0;
    for (int64_t tap = 0; tap < c.Taps(); ++tap) {
      w += Phase(s, outer, inner, k, tap) * taps[(tap * c.Input() + i % c.Input()) * s.O + o];
    }
    for (int64_t n = 0; n < s.N; ++n) {
      const int64_t x = (k * s.N + n) * s.C + i, y = (k * s.N + n) * s.O + o;
      const Complex forward = At(xre, xim, x) * std::conj(w), back = At(yre, yim, y) * w;
      y_re[y] += forward.real(), y_im[y] += forward.imag();
      x_re[x] += back.real(), x_im[x] += back.imag();
    }
  });
  for (const NamedPrecision& p : kPrecisions) {
    Array got_re(yre.size(), Storage::kF32), got_im(yre.size(), Storage::kF32);
    Check(c.Text("multiply_sum", p.name), p.tolerance, {&got_re, &got_im}, {y_re, y_im}, [&] {
      return LaunchMultiplySum(s, c.spectra, p.precision, xre.data(), xim.data(), taps.floats(),
                               outer.floats(), inner.floats(), got_re.floats(), got_im.floats(),
                               nullptr);
    });
    if (c.spectra != Storage::kF32) continue;
    Array back_re(xre.size(), Storage::kF32), back_im(xre.size(), Storage::kF32);
    Check(c.Text("input_product", p.name), p.tolerance, {&back_re, &back_im}, {x_re, x_im}, [&] {
      return LaunchInputProduct(s, p.precision, yre.floats(), yim.floats(), taps.floats(),
                                outer.floats(), inner.floats(), back_re.floats(), back_im.floats(),
                                nullptr);
    });
  }
}

void CheckFilterProduct(const ProductCase& c) {
  const ProductShape& s = c.shape;
  const Array xre = Array::Random(c.K() * s.N * s.C, c.spectra);
  const Array xim = Array::Random(c.K() * s.N * s.C, c.spectra);
  const Array yre = Array::Random(c.K() * s.N * s.O), yim = Array::Random(c.K() * s.N * s.O);
  const Array outer = Array::Random(2 * s.K0 * s.k0), inner = Array::Random(2 * s.K1 * s.k1);
  std::vector<double> expected(c.Taps() * c.Input() * s.O);
  ForEachPair(c, [&](int64_t k, int64_t i, int64_t o) {
    Complex d = 0;
    for (int64_t n = 0; n < s.N; ++n) {
      d += At(xre, xim, (k * s.N + n) * s.C + i) * std::conj(At(yre, yim, (k * s.N + n) * s.O + o));
    }
    for (int64_t tap = 0; tap < c.Taps(); ++tap) {
      expected[(tap * c.Input() + i % c.Input()) * s.O + o] +=
          (std::conj(Phase(s, outer, inner, k, tap)) * d).real();
    }
  });
  const int64_t bytes = FilterWorkspaceBytes(c.K(), s.C, s.O, s.groups, c.Taps());
  for (const NamedPrecision& p : kPrecisions) {
    Array got(static_cast<int64_t>(expected.size()), Storage::kF32);
    const Array workspace(bytes / 4, Storage::kF32);
    Check(c.Text("filter_product", p.name), p.tolerance, {&got}, {expected}, [&] {
      return LaunchFilterProduct(s, c.spectra, p.precision, xre.data(), xim.data(), yre.floats(),
                                 yim.floats(), outer.floats(), inner.floats(), got.floats(),
                                 workspace.floats(), nullptr);
    });
  }
}

void FilterProducts() {
  for (const ProductCase& c : ProductCases()) {
    if (c.Taps() < 100) CheckFilterProduct(c);
  }
  // So many tiles that the frequencies are not shared out, or not evenly.
  CheckFilterProduct({{2, 1, 3, 33, 65, 1, 11, 5}, Storage::kF32});
  CheckFilterProduct({{19, 1, 17, 64, 129, 1, 2, 13}, Storage::kF32});
}

void CheckPaper(const ProductCase& c, bool planar) {
  const ProductShape& s = c.shape;
  const Array xre = Array::Random(c.K() * s.N * s.C, c.spectra);
  const Array xim = Array::Random(c.K() * s.N * s.C, c.spectra);
  const Array wre = Array::Random(c.K() * s.C * s.O), wim = Array::Random(c.K() * s.C * s.O);
  std::vector<double> re(c.K() * s.N * s.O), im(re.size());
  for (int64_t k = 0; k < c.K(); ++k) {
    for (int64_t n = 0; n < s.N; ++n) {
      for (int64_t o = 0; o < s.O; ++o) {
        Complex sum = 0;
        for (int64_t i = 0; i < s.C; ++i) {
          const int64_t x = planar ? (n * s.C + i) * c.K() + k : (k * s.N + n) * s.C + i;
          const int64_t w = planar ? (o * s.C + i) * c.K() + k : (k * s.C + i) * s.O + o;
          sum += At(xre, xim, x) * std::conj(At(wre, wim, w));
        }
        const int64_t y = planar ? (n * s.O + o) * c.K() + k : (k * s.N + n) * s.O + o;
        re[y] = sum.real(), im[y] = sum.imag();
      }
    }
  }
  Array got_re(static_cast<int64_t>(re.size()), Storage::kF32);
  Array got_im(static_cast<int64_t>(re.size()), Storage::kF32);
  Check(c.Text("paper", planar ? "planar" : ""), 2e-6, {&got_re, &got_im}, {re, im}, [&] {
    return LaunchPaperMultiplySum(s, c.spectra, planar, xre.data(), xim.data(), wre.floats(),
                                  wim.floats(), got_re.floats(), got_im.floats(), nullptr);
  });
}

int Main(const std::string& what) {
  if (what == "transform") {
    Transforms();
  } else if (what == "multiply") {
    for (const ProductCase& c : ProductCases()) CheckProducts(c);
  } else if (what == "filter") {
    FilterProducts();
  } else if (what == "paper") {
    for (const bool planar : {false, true}) {
      CheckPaper({{3, 2, 2, 5, 3, 1, 1, 1}, Storage::kF32}, planar);
      CheckPaper({{3, 2, 2, 5, 3, 1, 1, 1}, Storage::kBf16}, planar);
      CheckPaper({{45, 23, 1, 2, 2, 1, 1, 1}, Storage::kF32}, planar);  // Threads come round.
    }
  } else {
    std::fprintf(stderr, "usage: emulate transform | multiply | filter | paper\n");
    return 2;
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace bandjax::cuda

int main(int count, char** arguments) {
  return bandjax::cuda::Main(count == 2 ? arguments[1] : "");
}
