// The fast transforms on random shapes, against sums written out in double precision, one axis
// after another.
#ifndef BANDJAX_FFI_CPU_FUZZ_FOURIER_H_
#define BANDJAX_FFI_CPU_FUZZ_FOURIER_H_

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/fourier_plan.h"
#include "cpu/fuzz.h"

namespace bandjax {

class FourierFuzz : public Harness {
 public:
  using Harness::Harness;

 protected:
  void Fouriers() {
    AxisShape axes[3];
    bool fast[3];
    FourierArgs a{};
    const int64_t rank = Draw(1, 3);
    a.n = Once(20) ? 0 : Draw(1, 4);
    a.c = Once(4) ? Draw(1, 80) : Draw(1, 20);
    // As few points as the sums allow, or one long axis.
    const int64_t longest = rank == 1 ? 300 : rank == 2 ? 20 : 8;
    const int64_t grown = !Once(3) ? -1 : Draw(3 - rank, 2);
    const bool inverse = Once(2);
    for (int axis = 0; axis < 3; ++axis) {
      axes[axis] = axis < 3 - rank ? AxisShape{1, 1, 1, 0, axis == 2, inverse}
                                   : AnAxis(axis == grown && rank > 1 ? 100 : longest, axis == 2);
      axes[axis].inverse = inverse;
      fast[axis] = FastLength(axes[axis]) && !Once(3);
    }
    if (Once(200)) {  // More than the workspace of a group may have.
      a.n = 3, a.c = 16;
      axes[0] = {1, 1, 1, 0, false, inverse};
      axes[1] = {640, 1, 640, 1, false, inverse};
      axes[2] = {200, 1, 200, 90, true, inverse};
      fast[0] = false, fast[1] = fast[2] = true;
    } else if (Once(200)) {  // So much that a workspace of volumes goes past the caches.
      a.n = 1, a.c = Draw(17, 32);
      for (int axis = 0; axis < 3; ++axis) {
        axes[axis] = {36, 1, Draw(33, 36), axis == 1 ? 18 : 17, axis == 2, inverse};
        fast[axis] = !Once(3);
      }
    }
    const Type types[][2] = {{Type::kFloat32, Type::kFloat32},   {Type::kFloat64, Type::kFloat64},
                             {Type::kBFloat16, Type::kFloat32},  {Type::kFloat32, Type::kBFloat16},
                             {Type::kBFloat16, Type::kBFloat16}, {Type::kFloat32, Type::kFloat32}};
    const auto* type = types[Draw(0, 5)];
    a.sample_type = type[0], a.spectrum_type = type[1];
    CompareFourier(a, axes, fast);
  }

 protected:
  using Complex = std::complex<double>;

  static bool FastLength(const AxisShape& shape) {
    const int64_t length = shape.grid / std::gcd(shape.grid, shape.step);
    return length > 1 && !Radices(length).empty();
  }

  AxisShape AnAxis(int64_t longest, bool half) {
    AxisShape shape{};
    shape.grid = Draw(1, longest), shape.half = half;
    shape.step = Once(3) ? Draw(1, 9) : 1;
    shape.limit = Once(3) ? shape.grid / 2 : Draw(0, shape.grid / 2);
    shape.samples = Once(5) ? Draw(1, shape.grid + 9) : Draw(1, shape.grid);
    return shape;
  }
  static int64_t Kept(const AxisShape& shape) {
    return shape.half ? shape.limit + 1 : std::min(2 * shape.limit + 1, shape.grid);
  }
  static double Angle(const AxisShape& shape, int64_t u, int64_t j) {
    const int64_t halves = u * shape.step * (2 * j - (shape.samples - 1));
    return M_PI * static_cast<double>(halves % (2 * shape.grid)) / shape.grid;
  }
  static double Weight(const AxisShape& shape, int64_t u) {
    const bool twice = shape.half && u > 0 && 2 * u != shape.grid;
    return shape.inverse ? (twice ? 2.0 : 1.0) / shape.grid : 1;
  }

  // The matrix (kept, samples) of an axis, times axis `at` of `x`; or its adjoint.
  static std::vector<Complex> Apply(const AxisShape& shape, bool back, int64_t before,
                                    int64_t after, const std::vector<Complex>& x, bool sizes) {
    const int64_t kept = Kept(shape), n = shape.samples;
    std::vector<Complex> y(before * after * (back ? n : kept));
    for (int64_t row = 0; row < kept; ++row) {
      const int64_t u = row <= shape.limit ? row : row - kept;
      for (int64_t j = 0; j < n; ++j) {
        const double weight = Weight(shape, std::abs(u));
        const Complex wave = std::polar(weight, (back ? 1 : -1) * Angle(shape, u, j));
        const Complex factor = sizes ? weight : wave;
        const int64_t in = back ? row : j, out = back ? j : row;
        const int64_t ins = back ? kept : n, outs = back ? n : kept;
        for (int64_t b = 0; b < before; ++b) {
          const Complex* from = x.data() + (b * ins + in) * after;
          Complex* to = y.data() + (b * outs + out) * after;
          for (int64_t i = 0; i < after; ++i) to[i] += factor * from[i];
        }
      }
    }
    return y;
  }

  // Of samples (n, axes, c), or from their spectrum (n, kept, c) back to them.
  static std::vector<Complex> ApplyAll(const AxisShape* axes, int64_t n, int64_t c, bool back,
                                       std::vector<Complex> x, bool sizes) {
    for (int axis = 0; axis < 3; ++axis) {
      int64_t before = n, after = c;
      for (int other = 0; other < axis; ++other) {
        before *= back ? axes[other].samples : Kept(axes[other]);
      }
      for (int other = axis + 1; other < 3; ++other) {
        after *= back ? Kept(axes[other]) : axes[other].samples;
      }
      x = Apply(axes[axis], back, before, after, x, sizes);
    }
    return x;
  }

  static Numbers Table(const AxisShape& shape) {
    const int64_t half = (shape.samples + 1) / 2, limit = shape.limit;
    Numbers table((2 * limit + 1) * half);
    for (int64_t u = 0; u <= limit; ++u) {
      for (int64_t j = 0; j < half; ++j) {
        const double weight = Weight(shape, u), angle = Angle(shape, u, j);
        table[u * half + j] = weight * std::cos(angle);
        if (u > 0) table[(limit + u) * half + j] = weight * std::sin(angle);
      }
    }
    return table;
  }

  void CompareFourier(FourierArgs a, const AxisShape* axes, const bool* fast) {
    std::string shape = "n " + std::to_string(a.n) + " c " + std::to_string(a.c);
    int64_t points = 1, kept = 1;
    for (int axis = 0; axis < 3; ++axis) {
      const AxisShape& s = axes[axis];
      points *= s.samples, kept *= Kept(s), a.kept[axis] = Kept(s);
      shape += fast[axis] ? ", fast" : ", table";
      for (int64_t number : {s.grid, s.step, s.samples, s.limit}) {
        shape += " " + std::to_string(number);
      }
    }
    shape += ", types " + std::to_string(static_cast<int>(a.sample_type)) +
             std::to_string(static_cast<int>(a.spectrum_type));
    shape += axes[0].inverse ? ", inverse" : "";

    // Spectra are random, and their order here is (n, kept, c).
    const int64_t samples = a.n * points * a.c, coefficients = a.n * kept * a.c;
    const Numbers x = Random(samples), y_re = Random(coefficients), y_im = Random(coefficients);
    const auto place = [&](int64_t i) {
      return (i / a.c % kept * a.n + i / a.c / kept) * a.c + i % a.c;
    };
    std::vector<Complex> signal(samples), size(samples), spectrum(coefficients);
    std::vector<Complex> spectrum_size(coefficients);
    for (int64_t i = 0; i < samples; ++i) signal[i] = x[i], size[i] = std::abs(x[i]);
    for (int64_t i = 0; i < coefficients; ++i) {
      spectrum[i] = {y_re[place(i)], y_im[place(i)]};
      spectrum_size[i] = std::abs(y_re[place(i)]) + std::abs(y_im[place(i)]);
    }
    Sums re(coefficients), im(coefficients), y(samples);
    const auto analysed = ApplyAll(axes, a.n, a.c, false, signal, false);
    const auto analysed_size = ApplyAll(axes, a.n, a.c, false, size, true);
    for (int64_t i = 0; i < coefficients; ++i) {
      re.Add(place(i), analysed[i].real(), analysed_size[i].real());
      im.Add(place(i), analysed[i].imag(), analysed_size[i].real());
    }
    const auto back = ApplyAll(axes, a.n, a.c, true, spectrum, false);
    const auto back_size = ApplyAll(axes, a.n, a.c, true, spectrum_size, true);
    for (int64_t i = 0; i < samples; ++i) y.Add(i, back[i].real(), back_size[i].real());

    // An axis that is transformed fast has no table, so that none is read.
    const Type table_type = a.sample_type == Type::kFloat64 ? Type::kFloat64 : Type::kFloat32;
    std::vector<Buffer> tables;
    for (int axis = 0; axis < 3; ++axis) {
      tables.emplace_back(table_type, fast[axis] ? Numbers() : Table(axes[axis]));
      a.tables[axis] = tables.back().data();
    }
    const Buffer in(a.sample_type, x);
    const Buffer in_re(a.spectrum_type, y_re), in_im(a.spectrum_type, y_im);
    using Results = std::vector<Buffer>;
    const bool alone = a.kept[0] * a.kept[1] * axes[0].samples * axes[1].samples == 1;
    const auto plans = [&](FourierArgs* args, bool analysis) {
      for (int axis = 0; axis < 3; ++axis) {
        args->plans[axis] = PlanOf(axes[axis], fast[axis], analysis, alone && axis == 2);
      }
    };
    Check<FourierArgs>("fast analysis", shape, &Kernels::fourier_analysis, a,
                       {{a.spectrum_type, &re}, {a.spectrum_type, &im}},
                       [&](FourierArgs* args, const Results& out) {
                         plans(args, true);
                         args->samples = in.data();
                         args->re = out[0].data(), args->im = out[1].data();
                       });
    const Ending ending = AnEnding(table_type, a.sample_type, a.c, &y);
    a.epilogue = ending.epilogue;
    Check<FourierArgs>("fast synthesis", shape, &Kernels::fourier_synthesis, a,
                       {{a.sample_type, &y}}, [&](FourierArgs* args, const Results& out) {
                         plans(args, false);
                         args->samples = out[0].data();
                         args->re = in_re.data(), args->im = in_im.data();
                       });
  }
};

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FUZZ_FOURIER_H_
