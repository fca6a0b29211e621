// Exact convolutions, by windows and directly, on random shapes, against their literal sums.
#ifndef BANDJAX_FFI_CPU_FUZZ_WINDOWS_H_
#define BANDJAX_FFI_CPU_FUZZ_WINDOWS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/fuzz_pack.h"

namespace bandjax {

class WindowsFuzz : public PackFuzz {
 public:
  using PackFuzz::PackFuzz;

 protected:
  void Convolutions() {
    WindowArgs a{};
    const Type types[] = {Type::kFloat32, Type::kFloat32, Type::kFloat64, Type::kBFloat16};
    a.map_type = types[Draw(0, 3)];
    a.type = a.map_type == Type::kFloat64 ? Type::kFloat64 : Type::kFloat32;
    a.n = Once(20) ? 0 : Draw(1, 3), a.groups = Once(3) ? Draw(2, 5) : 1;
    a.transposed = Once(2);
    const bool depthwise = Once(5);
    const int64_t in = depthwise ? 1 : Draw(1, 9), out = depthwise ? 1 : Draw(1, Once(4) ? 40 : 9);
    if (depthwise) a.groups = Draw(1, 40);
    a.in = in * a.groups, a.out = out * a.groups;
    const int64_t rank = Draw(1, 3);
    int64_t dilation[3], taps = 1, inputs = a.n * a.in, outputs = a.n * a.out;
    std::string shape = "n " + std::to_string(a.n) + " in " + std::to_string(a.in) + " out " +
                        std::to_string(a.out) + " groups " + std::to_string(a.groups) +
                        (a.transposed ? " transposed" : "");
    std::vector<Buffer> tables;
    tables.reserve(9);
    for (int axis = 0; axis < 3; ++axis) {
      WindowAxis& w = a.axes[axis];
      const bool there = axis < rank;
      w.taps = !there    ? 1
               : Once(6) ? Draw(9, 20)
                         : Draw(1, 4),
      dilation[axis] = there ? Draw(1, 2) : 1;
      w.in = there ? Draw(1, 30 / rank) : 1, w.out = there ? Draw(1, 30 / rank) : 1;
      w.length = there ? Draw(1, 12) : 1, w.first = there ? Draw(-6, 3) : 0;
      w.span = w.grid = w.length + (w.taps - 1) * dilation[axis];
      w.windows = (w.out + w.length - 1) / w.length;
      taps *= w.taps, inputs *= w.in, outputs *= w.out;
      tables.push_back(MiddleTable(a.type, w.grid, w.span));
      w.span_table = tables.back().data();
      tables.push_back(MiddleTable(a.type, w.grid, w.length));
      w.length_table = tables.back().data();
      tables.push_back(Turns(a.type, w, dilation[axis], axis == 0));
      w.turns = tables.back().data();
      shape += " " + std::to_string(w.in) + ">" + std::to_string(w.out) + "/" +
               std::to_string(w.length) + " taps " + std::to_string(w.taps) + "x" +
               std::to_string(dilation[axis]) + " from " + std::to_string(w.first);
    }
    const Numbers x = Random(inputs), ct = Random(outputs), w = Random(taps * in * a.out);
    Sums y(outputs), dw(taps * in * a.out);
    DirectArgs d{};
    d.n = a.n, d.in = a.in, d.out = a.out, d.groups = a.groups, d.type = a.type;
    d.transposed = a.transposed;
    for (int axis = 0; axis < 3; ++axis) {
      const WindowAxis& of = a.axes[axis];
      d.axes[axis] = {of.in, of.out, of.taps, of.first, 1, dilation[axis]};
    }
    Literal(d, x, ct, w, &y, &dw);
    // Every number of a window adds to the rounding of each result.
    const double each =
        16.0 * static_cast<double>(in * a.axes[0].grid * a.axes[1].grid * a.axes[2].grid);
    std::fill(y.magnitude.begin(), y.magnitude.end(), each);
    std::fill(dw.magnitude.begin(), dw.magnitude.end(),
              16.0 * static_cast<double>(a.n * a.axes[0].out * a.axes[1].out * a.axes[2].out + 64));
    const Buffer from_x(a.map_type, x), from_ct(a.map_type, ct), from_w(a.type, w);
    using Results = std::vector<Buffer>;
    const Ending ending = AnEnding(a.type, a.map_type, a.out, &y);
    a.epilogue = ending.epilogue;
    Check<WindowArgs>("windows", shape, &Kernels::windows, a, {{a.map_type, &y}},
                      [&](WindowArgs* args, const Results& result) {
                        args->x = from_x.data(), args->taps = from_w.data();
                        args->y = result[0].data();
                      });
    a.transposed = false;
    Check<WindowArgs>("windows_filter", shape, &Kernels::windows_filter, a, {{a.type, &dw}},
                      [&](WindowArgs* args, const Results& result) {
                        args->x = from_x.data(), args->y = from_ct.data();
                        args->taps = result[0].data();
                      });
  }

  void Directs() {
    DirectArgs a{};
    a.type = Once(3) ? Type::kFloat64 : Type::kFloat32;
    a.n = Once(20) ? 0 : Draw(1, 3), a.groups = Once(3) ? Draw(2, 5) : 1;
    a.transposed = Once(3);
    const bool wide = Once(3);  // whole panels, which are read where they are
    if (wide) a.groups = 1;
    if (wide && Once(3)) a.n = Draw(4, 12);
    const int64_t rank = Draw(1, 3), most = wide ? 8 : 20;
    const int64_t in = wide && Once(2) ? Draw(32, 150) : Draw(1, Once(3) ? 40 : 9);
    const int64_t out = wide ? 64 * Draw(1, Once(4) ? 5 : 2) : Draw(1, 40);
    a.in = in * a.groups, a.out = out * a.groups;
    int64_t taps = 1, inputs = a.n * a.in, outputs = a.n * a.out;
    std::string shape = "n " + std::to_string(a.n) + " in " + std::to_string(a.in) + " out " +
                        std::to_string(a.out) + " groups " + std::to_string(a.groups) +
                        (a.transposed ? " transposed" : "");
    for (int axis = 0; axis < 3; ++axis) {
      DirectAxis& d = a.axes[axis];
      d = {1, 1, 1, 0, 1, 1};
      if (axis < 3 - rank) continue;
      d.in = Draw(1, most / rank), d.out = Draw(1, most / rank);
      d.taps = rank == 1 && Once(4) ? Draw(5, 20) : Draw(1, 4);
      d.first = Draw(-6, 3), d.stride = Draw(1, 3), d.dilation = Draw(1, 2);
      taps *= d.taps, inputs *= d.in, outputs *= d.out;
      shape += " " + std::to_string(d.in) + ">" + std::to_string(d.out) + " by " +
               std::to_string(d.stride) + " taps " + std::to_string(d.taps) + "x" +
               std::to_string(d.dilation) + " from " + std::to_string(d.first);
    }
    const Numbers x = Random(inputs), ct = Random(outputs), w = Random(taps * in * a.out);
    Sums y(outputs), dw(taps * in * a.out);
    Literal(a, x, ct, w, &y, &dw);
    const Buffer from_x(a.type, x), from_ct(a.type, ct), from_w(a.type, w);
    using Results = std::vector<Buffer>;
    const Ending ending = AnEnding(a.type, a.type, a.out, &y);
    a.epilogue = ending.epilogue;
    Check<DirectArgs>("direct", shape, &Kernels::direct, a, {{a.type, &y}},
                      [&](DirectArgs* args, const Results& result) {
                        args->x = from_x.data(), args->taps = from_w.data();
                        args->y = result[0].data();
                      });
    a.transposed = false;
    Check<DirectArgs>("direct_filter", shape, &Kernels::direct_filter, a, {{a.type, &dw}},
                      [&](DirectArgs* args, const Results& result) {
                        args->x = from_x.data(), args->y = from_ct.data();
                        args->taps = result[0].data();
                      });
  }

 private:
  // Adds the terms of the sums that a convolution and its filter's gradient are.
  static void Literal(const DirectArgs& a, const Numbers& x, const Numbers& ct, const Numbers& w,
                      Sums* y, Sums* dw) {
    const DirectAxis* axes = a.axes;
    const int64_t in = a.in / a.groups, out = a.out / a.groups;
    const int64_t taps = axes[0].taps * axes[1].taps * axes[2].taps;
    const int64_t points = a.n * axes[0].out * axes[1].out * axes[2].out;
    for (int64_t j = 0; j < points; ++j) {
      int64_t rest = j, at[3];
      for (int axis = 2; axis >= 0; --axis)
        at[axis] = rest % axes[axis].out, rest /= axes[axis].out;
      for (int64_t t = 0; t < taps; ++t) {
        int64_t tap = t, place = rest, from[3];
        for (int axis = 2; axis >= 0; --axis) {
          from[axis] = at[axis] * axes[axis].stride + axes[axis].first +
                       tap % axes[axis].taps * axes[axis].dilation;
          tap /= axes[axis].taps;
        }
        bool there = true;
        for (int axis = 0; axis < 3; ++axis) {
          there = there && from[axis] >= 0 && from[axis] < axes[axis].in;
          place = place * axes[axis].in + from[axis];
        }
        if (!there) continue;
        for (int64_t o = 0; o < a.out; ++o) {
          const int64_t group = o / out;
          for (int64_t c = 0; c < in; ++c) {
            const int64_t tap_at = (t * in + c) * a.out + o;
            // Transposed: (taps turned about, out of a group, all inputs).
            const int64_t turned = ((taps - 1 - t) * out + o % out) * a.in + group * in + c;
            const double sample = x[place * a.in + group * in + c];
            const double to_y = sample * w[a.transposed ? turned : tap_at];
            const double to_dw = sample * ct[j * a.out + o];
            y->Add(j * a.out + o, to_y, std::abs(to_y));
            dw->Add(tap_at, to_dw, std::abs(to_dw));
          }
        }
      }
    }
  }

  static Buffer MiddleTable(Type type, int64_t grid, int64_t count) {
    Numbers table;
    for (bool sine : {false, true}) {
      for (int64_t u = 0; 2 * u <= grid; ++u) {
        for (int64_t k = 0; 2 * k < count; ++k) {
          const double angle = Angle(u, grid) * (static_cast<double>(count - 1) / 2 - k);
          table.push_back(sine ? std::sin(angle) : std::cos(angle));
        }
      }
    }
    return Buffer(type, table);
  }
  static Buffer Turns(Type type, const WindowAxis& axis, int64_t dilation, bool half) {
    Numbers table;
    const double middle = static_cast<double>((axis.taps - 1) * dilation) / 2;
    const int64_t grid = axis.grid;
    for (bool sine : {false, true}) {
      for (int64_t i = 0; i < (half ? grid / 2 + 1 : grid); ++i) {
        const int64_t u = 2 * i <= grid ? i : i - grid;
        const double weight = (half && i > 0 && 2 * i != grid ? 2.0 : 1.0) / grid;
        for (int64_t t = 0; t < axis.taps; ++t) {
          const double angle = Angle(u, grid) * (t * dilation - middle);
          table.push_back(weight * (sine ? std::sin(angle) : std::cos(angle)));
        }
      }
    }
    return Buffer(type, table);
  }
  static double Angle(int64_t u, int64_t grid) {
    return 2 * 3.14159265358979323846 * static_cast<double>(u) / static_cast<double>(grid);
  }
};

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FUZZ_WINDOWS_H_
