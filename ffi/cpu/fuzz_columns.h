// The convolutions by columns on random shapes, against the kernels one after another in double
// precision, which are compared with literal sums themselves.
#ifndef BANDJAX_FFI_CPU_FUZZ_COLUMNS_H_
#define BANDJAX_FFI_CPU_FUZZ_COLUMNS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/fuzz_windows.h"

namespace bandjax {

class ColumnsFuzz : public WindowsFuzz {
 public:
  using WindowsFuzz::WindowsFuzz;

 protected:
  void ByColumns() {
    MultiplyArgs m{};
    m.type = Once(3) ? Type::kFloat64 : Type::kFloat32, m.x_type = m.y_type = m.w_type = m.type;
    m.groups = Once(3) ? Draw(2, 3) : 1, m.n = Once(20) ? 0 : Draw(1, Once(4) ? 12 : 3);
    const int64_t in = Draw(1, Once(5) ? 40 : 7), out = Draw(2, Once(5) ? 40 : 7);
    m.in = in * m.groups, m.out = out * m.groups, m.t0 = Draw(1, 4), m.t1 = Draw(1, 4);
    AxisShape input[2], output[2];
    bool fast[2][2];
    const bool large = Once(100);  // A workspace of more than 4 MB goes past the caches.
    if (large) m.n = 9;
    std::string shape = "n " + std::to_string(m.n) + " groups " + std::to_string(m.groups) + " " +
                        std::to_string(in) + ">" + std::to_string(out) + " taps " +
                        std::to_string(m.t0) + "x" + std::to_string(m.t1);
    for (int axis = 0; axis < 2; ++axis) {
      const bool half = axis == 1;
      const int64_t grid = large ? Draw(88, 96) : Draw(2, 30);
      const int64_t limit = large ? Draw(43, 44) : Draw(half ? 1 : 0, grid / 2);
      const int64_t least = large ? 87 : 2;
      input[axis] = {grid, Draw(1, 2), Draw(least, grid), limit, half, false};
      output[axis] = {grid, Draw(1, 2), Draw(least, grid), limit, half, true};
      fast[0][axis] = FastLength(input[axis]) && !Once(4);
      fast[1][axis] = FastLength(output[axis]) && !Once(4);
      shape += ", " + std::to_string(grid) + " of " + std::to_string(limit) + ": " +
               std::to_string(input[axis].samples) + " " + std::to_string(output[axis].samples);
    }
    m.k0 = Kept(input[0]), m.k1 = Kept(input[1]), m.hermitian = Once(2);
    const int64_t points = m.k0 * m.k1 * m.n, taps = m.t0 * m.t1 * in * m.out;
    const int64_t inputs = m.n * input[0].samples * input[1].samples * m.in;
    const int64_t outputs = m.n * output[0].samples * output[1].samples * m.out;
    const Numbers x_re = Random(points * m.in), x_im = Random(points * m.in);
    const Numbers ct = Random(outputs), w = Random(taps);
    const Numbers outer = Phases(input[0], m.k0, m.t0), inner = Phases(input[1], m.k1, m.t1);

    // The same in double precision, step by step.
    const Operands wide(Type::kFloat64, x_re, x_im, ct, w, outer, inner);
    const Kernels& kernels = kKernelsPortable;
    MultiplyArgs a = m;
    a.type = a.x_type = a.y_type = a.w_type = Type::kFloat64;
    wide.Set(&a);
    const auto maps = [&](const Tables& tables, const AxisShape* axes, const bool* chosen,
                          int64_t c, bool analysis, void* samples, Type type) {
      FourierArgs f{};
      f.n = m.n, f.c = c, f.samples = samples, f.sample_type = f.spectrum_type = type;
      f.plans[0] = PlanOf({1, 1, 1, 0, false, false}, false, analysis, false), f.kept[0] = 1;
      for (int axis = 0; axis < 2; ++axis) {
        f.plans[axis + 1] = PlanOf(axes[axis], chosen[axis], analysis, false);
        f.kept[axis + 1] = Kept(axes[axis]), f.tables[axis + 1] = tables.of[axis].data();
      }
      return f;
    };
    const Tables in_wide(Type::kFloat64, input, fast[0]), out_wide(Type::kFloat64, output, fast[1]);
    const auto spectrum = [&](int64_t c) { return Buffer(Type::kFloat64, points * c); };
    const Buffer y_re = spectrum(m.out), y_im = spectrum(m.out), y(Type::kFloat64, outputs);
    const Buffer d_re = spectrum(m.in), d_im = spectrum(m.in), dx(Type::kFloat64, inputs);
    const int64_t chunks = SplitFilter(m).parts();
    const Buffer dw(Type::kFloat64, taps), partial(Type::kFloat64, chunks > 1 ? chunks * taps : 0);
    ThreadedPool pool(1,
                      [this](std::function<void()> work) { workers_.Schedule(std::move(work)); });
    a.y_re = y_re.data(), a.y_im = y_im.data(), a.partial = partial.data();
    kernels.multiply_sum(a, &pool);
    FourierArgs f = maps(out_wide, output, fast[1], m.out, false, y.data(), Type::kFloat64);
    f.re = y_re.data(), f.im = y_im.data();
    kernels.fourier_synthesis(f, &pool);
    f = maps(out_wide, output, fast[1], m.out, true, wide.ct.data(), Type::kFloat64);
    f.re = y_re.data(), f.im = y_im.data();
    kernels.fourier_analysis(f, &pool);
    a.taps = dw.data();
    kernels.filter_product(a, &pool);
    a.taps = wide.w.data(), a.x_re = d_re.data(), a.x_im = d_im.data();
    kernels.input_product(a, &pool);
    f = maps(in_wide, input, fast[0], m.in, false, dx.data(), Type::kFloat64);
    f.re = d_re.data(), f.im = d_im.data();
    kernels.fourier_synthesis(f, &pool);

    const Sums expected_y = Near(y), expected_dx = Near(dx), expected_dw = Near(dw);
    const Operands own(m.type, x_re, x_im, ct, w, outer, inner);
    const Tables in_tables(m.type, input, fast[0]), out_tables(m.type, output, fast[1]);
    ColumnArgs args{};
    args.product = m;
    own.Set(&args.product);
    using Results = std::vector<Buffer>;
    Check<ColumnArgs>("columns", shape, &Kernels::columns, args, {{m.type, &expected_y}},
                      [&](ColumnArgs* c, const Results& result) {
                        c->to = maps(out_tables, output, fast[1], m.out, false, result[0].data(),
                                     m.type);
                      });
    Check<ColumnArgs>(
        "columns_gradients", shape, &Kernels::columns_gradients, args,
        {{m.type, &expected_dx}, {m.type, &expected_dw}},
        [&](ColumnArgs* c, const Results& result) {
          c->from = maps(out_tables, output, fast[1], m.out, true, own.ct.data(), m.type);
          c->to = maps(in_tables, input, fast[0], m.in, false, result[0].data(), m.type);
          c->gradient = result[1].data();
        });
  }

 private:
  struct Operands {
    Operands(Type type, const Numbers& re, const Numbers& im, const Numbers& cotangent,
             const Numbers& taps, const Numbers& first, const Numbers& second)
        : x_re(type, re),
          x_im(type, im),
          ct(type, cotangent),
          w(type, taps),
          outer(type, first),
          inner(type, second) {}
    void Set(MultiplyArgs* args) const {
      args->x_re = x_re.data(), args->x_im = x_im.data(), args->taps = w.data();
      args->outer = outer.data(), args->inner = inner.data();
    }
    Buffer x_re, x_im, ct, w, outer, inner;
  };
  struct Tables {
    Tables(Type type, const AxisShape* axes, const bool* fast) {
      for (int axis = 0; axis < 2; ++axis) {
        of.emplace_back(type, fast[axis] ? Numbers() : Table(axes[axis]));
      }
    }
    std::vector<Buffer> of;
  };

  // Of the taps of an axis, in their middle 0.
  static Numbers Phases(const AxisShape& axis, int64_t kept, int64_t taps) {
    Numbers table;
    for (bool sine : {false, true}) {
      for (int64_t row = 0; row < kept; ++row) {
        const int64_t u = row <= axis.limit ? row : row - kept;
        for (int64_t t = 0; t < taps; ++t) {
          const double angle = M_PI * static_cast<double>(u * (2 * t - (taps - 1))) / axis.grid;
          table.push_back(sine ? std::sin(angle) : std::cos(angle));
        }
      }
    }
    return table;
  }

  static Sums Near(const Buffer& wide) {
    Sums sums(wide.count());
    double most = 1;
    for (int64_t i = 0; i < wide.count(); ++i) most = std::max(most, std::abs(wide.at(i)));
    for (int64_t i = 0; i < wide.count(); ++i) sums.Add(i, wide.at(i), 32 * most);
    return sums;
  }
};

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FUZZ_COLUMNS_H_
