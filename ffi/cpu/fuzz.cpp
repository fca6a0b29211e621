// The CPU kernels on random shapes, against sums written out in double precision.
//
//   fuzz [seed [shapes]]
//
// Every shape goes through all kernels of every instruction set that the processor has, twice:
// on several threads and on one, which must agree to the last bit. Buffers and scratch memory have
// the exact size, so that AddressSanitizer sees each access beyond, and are full of NaNs before, so
// that a number which is not written, or is read before it is, shows in the result. Tables are
// random too: the kernels promise sums, and to no table any symmetry; that of the taps of the first
// axis, which makes a sum shorter, is there in half of the cases.

#include "cpu/fuzz.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cpu/fuzz_columns.h"

namespace bandjax {
namespace {

class Fuzz : public ColumnsFuzz {
 public:
  using ColumnsFuzz::ColumnsFuzz;

  // Whichever thread finds no memory, the caller is told.
  void NoMemory() {
    for (const Kernels* kernels : All()) {
      TransformArgs args{};
      args.n = 16, args.h = args.w = args.c = args.k0 = args.k1 = 1;
      args.sample_type = args.spectrum_type = Type::kFloat32;
      bool told = false;
      ThreadedPool pool(4,
                        [this](std::function<void()> work) { workers_.Schedule(std::move(work)); });
      pool.scratch = &NoScratch;
      try {
        kernels->analysis(args, &pool);
      } catch (const std::bad_alloc&) {
        told = true;
      }
      ++(told ? passed_ : failed_);
      if (!told) std::printf("%s: no memory, and nothing is told\n", kernels->name);
    }
  }

  void Shape() {
    Transforms();
    Products();
    Fouriers();
    Blocks();
    Flags();
    Convolutions();
    Directs();
    ByColumns();
    ++shapes_;
  }

 private:
  // Cosine (or sine) u at sample j of n, from a folded table.
  static double Entry(const Numbers& table, int64_t u, bool sine, int64_t j, int64_t n) {
    const int64_t limit = static_cast<int64_t>(table.size()) / ((n + 1) / 2) / 2;
    const int64_t mirror = n - 1 - j, row = sine ? limit + u : u;
    if (sine && (u == 0 || j == mirror)) return 0;
    const double entry = table[row * ((n + 1) / 2) + std::min(j, mirror)];
    return sine && j > mirror ? -entry : entry;
  }

  void Transforms() {
    TransformArgs a{};
    a.n = Once(20) ? 0 : Draw(1, 3);
    a.h = Draw(1, 9), a.w = Draw(1, 9), a.c = Once(4) ? Draw(1, 140) : Draw(1, 20);
    a.u0 = Draw(0, 5), a.u1 = Draw(0, 5);
    if (a.c > 20) a.n = 1, a.u0 = Draw(0, 2), a.u1 = Draw(0, 2);
    if (Once(4)) a.h = 1, a.u0 = 0;
    if (Once(40)) {  // Larger than the cache, so that frequencies or rows are worked on in blocks.
      a.n = 1, a.h = Draw(260, 520), a.w = Draw(1, 3), a.c = Draw(1, 5);
      if (Once(2)) a.c += 64;
      a.u0 = Draw(0, 1), a.u1 = Draw(4, 18);
    }
    a.k0 = 2 * a.u0 + 1 - (a.u0 > 0 && Once(3) ? 1 : 0), a.k1 = a.u1 + 1;
    const Type types[][2] = {{Type::kFloat32, Type::kFloat32},   {Type::kFloat64, Type::kFloat64},
                             {Type::kBFloat16, Type::kFloat32},  {Type::kFloat32, Type::kBFloat16},
                             {Type::kBFloat16, Type::kBFloat16}, {Type::kFloat32, Type::kFloat32}};
    const auto* type = types[Draw(0, 5)];
    a.sample_type = type[0], a.spectrum_type = type[1];
    // Windows of maps: side by side and, where they are only read, overlapping.
    Tiling read, written;
    int64_t maps = a.n;
    if (Once(3)) {
      written.rows = Draw(1, 3), written.columns = Draw(1, 3);
      written.step_h = a.h, written.step_w = a.w;
      written.first_h = Draw(1 - a.h, 0), written.first_w = Draw(1 - a.w, 0);
      written.map_h = Draw(1, written.rows * a.h + written.first_h);
      written.map_w = Draw(1, written.columns * a.w + written.first_w);
      read = written;
      read.step_h = Draw(1, a.h), read.step_w = Draw(1, a.w);
      a.n = maps * read.rows * read.columns;
    }
    const auto place = [&](const Tiling& t, int64_t n, int64_t i, int64_t j) -> int64_t {
      if (t.rows == 0) return ((n * a.h + i) * a.w + j) * a.c;
      const int64_t tiles = t.rows * t.columns;
      i += t.first_h + n % tiles / t.columns * t.step_h, j += t.first_w + n % t.columns * t.step_w;
      const bool there = i >= 0 && i < t.map_h && j >= 0 && j < t.map_w;
      return there ? ((n / tiles * t.map_h + i) * t.map_w + j) * a.c : -1;
    };
    const Type table_type = a.sample_type == Type::kFloat64 ? Type::kFloat64 : Type::kFloat32;
    std::string shape;
    for (int64_t size : {a.n, a.h, a.w, a.c, a.u0, a.u1, a.k0}) shape += std::to_string(size) + " ";
    shape += "types " + std::to_string(static_cast<int>(type[0])) +
             std::to_string(static_cast<int>(type[1]));

    const int64_t samples =
        read.rows == 0 ? a.n * a.h * a.w * a.c : maps * read.map_h * read.map_w * a.c;
    const int64_t kept = a.k0 * a.k1 * a.n * a.c;
    const Numbers t0 = Random((2 * a.u0 + 1) * ((a.h + 1) / 2));
    const Numbers t1 = Random((2 * a.u1 + 1) * ((a.w + 1) / 2));
    const Numbers x = Random(samples), y_re = Random(kept), y_im = Random(kept);
    Sums re(kept), im(kept), y(samples);
    for (int64_t row = 0; row < a.k0; ++row) {
      const bool minus = row > a.u0;
      const int64_t u0 = minus ? a.k0 - row : row;
      for (int64_t u1 = 0; u1 < a.k1; ++u1) {
        for (int64_t i = 0; i < a.h; ++i) {
          const double c0 = Entry(t0, u0, false, i, a.h);
          const double s0 = Entry(t0, u0, true, i, a.h) * (minus ? -1 : 1);
          for (int64_t j = 0; j < a.w; ++j) {
            const double c1 = Entry(t1, u1, false, j, a.w), s1 = Entry(t1, u1, true, j, a.w);
            // (c0 - i s0) (c1 - i s1)
            const double real = c0 * c1 - s0 * s1, imaginary = -(c0 * s1 + s0 * c1);
            const double size = (std::abs(c0) + std::abs(s0)) * (std::abs(c1) + std::abs(s1));
            for (int64_t n = 0; n < a.n; ++n) {
              const int64_t at = ((row * a.k1 + u1) * a.n + n) * a.c;
              const int64_t from = place(read, n, i, j), to = place(written, n, i, j);
              for (int64_t c = 0; c < a.c; ++c) {
                const double value = from < 0 ? 0 : x[from + c];
                re.Add(at + c, real * value, size * std::abs(value));
                im.Add(at + c, imaginary * value, size * std::abs(value));
                if (to < 0) continue;
                y.Add(to + c, real * y_re[at + c] + imaginary * y_im[at + c],
                      size * (std::abs(y_re[at + c]) + std::abs(y_im[at + c])));
              }
            }
          }
        }
      }
    }

    const Buffer table0(table_type, t0), table1(table_type, t1);
    a.table0 = table0.data(), a.table1 = table1.data();
    const Buffer in(a.sample_type, x);
    const Buffer in_re(a.spectrum_type, y_re), in_im(a.spectrum_type, y_im);
    using Results = std::vector<Buffer>;
    Check<TransformArgs>("analysis", shape, &Kernels::analysis, a,
                         {{a.spectrum_type, &re}, {a.spectrum_type, &im}},
                         [&](TransformArgs* args, const Results& out) {
                           args->samples = in.data(), args->tiling = read;
                           args->re = out[0].data(), args->im = out[1].data();
                         });
    const Ending ending = AnEnding(table_type, a.sample_type, a.c, &y);
    a.epilogue = ending.epilogue;
    Check<TransformArgs>("synthesis", shape, &Kernels::synthesis, a, {{a.sample_type, &y}},
                         [&](TransformArgs* args, const Results& out) {
                           args->samples = out[0].data(), args->tiling = written;
                           args->re = in_re.data(), args->im = in_im.data();
                         });
  }

  void Products() {
    MultiplyArgs a{};
    a.k0 = Draw(1, 5), a.k1 = Draw(1, 5), a.n = Once(20) ? 0 : Once(6) ? Draw(15, 70) : Draw(1, 14);
    a.t0 = Once(8) ? Draw(4, 7) : Draw(1, 3), a.t1 = Draw(1, 4),
    a.groups = Once(3) ? Draw(2, 4) : 1;
    int64_t in = Draw(1, 12), out = Draw(1, 12);
    switch (Draw(0, 11)) {
      case 0:  // depthwise
        a.groups = Draw(1, 150), in = out = 1;
        break;
      case 1:  // several panels of output channels
        a.k0 = Draw(1, 2), a.k1 = Draw(1, 2), out = Draw(13, 150), a.groups = Draw(1, 2);
        break;
      case 2:  // of input channels, and blocks of rows
        a.k0 = Draw(1, 2), a.k1 = Draw(1, 2), in = Draw(13, 150), a.groups = Draw(1, 2);
        break;
      case 3:  // one channel meets several
        (Once(2) ? in : out) = 1;
        break;
      case 4:  // blocks along a sum over channels, or over the batch
        a.k0 = Draw(1, 2), a.k1 = Draw(1, 3), a.groups = 1, in = out = Draw(1, 3), a.t0 = 1;
        (Once(3) ? a.n : Once(2) ? in : out) = Draw(250, 600);
        break;
      case 5:  // many taps: shorter blocks
        a.t0 = Draw(8, 40), a.t1 = Draw(1, 2), a.k0 = Draw(1, 2), a.k1 = Draw(1, 2), a.groups = 1;
        (Once(2) ? in : out) = Draw(16, 80);
        break;
      case 6:  // many frequencies: as many partial sums as there may be
        a.k1 = Draw(10, 40), a.k0 = Draw(1, 2), a.t0 = Draw(1, 2), in = Draw(1, 4),
        out = Draw(1, 4);
        break;
      case 7:  // nine taps, in blocks of rows
        a.t0 = a.t1 = 3, a.k0 = Draw(1, 13), a.n = Draw(1, 3), a.groups = 1;
        in = Draw(1, 130), out = Draw(1, 40);
        break;
      default:
        break;
    }
    a.in = in * a.groups, a.out = out * a.groups;
    const Type types[][2] = {{Type::kFloat32, Type::kFloat32},
                             {Type::kFloat64, Type::kFloat64},
                             {Type::kBFloat16, Type::kFloat32},
                             {Type::kBFloat16, Type::kBFloat16}};
    const auto* type = types[Draw(0, 3)];
    a.x_type = type[0], a.y_type = type[1];
    a.type = a.y_type == Type::kFloat64 ? Type::kFloat64 : Type::kFloat32;
    if (Once(3)) a.t0 = a.t1 = 0;  // the filter's spectrum in place of taps
    const bool half = a.spectral() && a.type == Type::kFloat32 && in * out > 1 && Once(2);
    a.w_type = a.type;
    a.hermitian = Once(2);
    std::string shape = a.hermitian ? "hermitian " : "";
    for (int64_t size : {a.k0, a.k1, a.n, a.in, a.out, a.groups, a.t0, a.t1}) {
      shape += std::to_string(size) + " ";
    }
    shape += "types " + std::to_string(static_cast<int>(type[0])) +
             std::to_string(static_cast<int>(type[1]));

    const int64_t points = a.k0 * a.k1;
    const int64_t taps = (a.spectral() ? 2 * points : a.t0 * a.t1) * in * a.out;
    Numbers outer = Random(2 * a.k0 * a.t0), inner = Random(2 * a.k1 * a.t1);
    Numbers w = Random(taps);
    const auto fold = [&](Numbers* table, int64_t kept, int64_t size) {
      for (int64_t u = 0; u < kept; ++u) {
        double *re = table->data() + u * size, *im = re + kept * size;
        for (int64_t t = 0; t <= size / 2 && t < size; ++t) {
          const int64_t other = size - 1 - t;
          re[other] = re[t], im[other] = -im[t];
          if (t == other) re[t] = 1, im[t] = 0;
        }
      }
    };
    if (Once(2)) {  // taps that lie symmetrically about 0
      fold(&outer, a.k0, a.t0);
      if (Once(2)) fold(&inner, a.k1, a.t1);
    }
    Numbers x_re = Random(points * a.n * a.in), x_im = Random(points * a.n * a.in);
    Numbers y_re = Random(points * a.n * a.out), y_im = Random(points * a.n * a.out);
    if (a.hermitian) {
      // Of `count` numbers in each of the rows, which are `step` apart.
      const auto pair_rows = [&](double* re, double* im, int64_t step, int64_t count) {
        std::fill_n(im, count, 0.0);
        for (int64_t u = a.k0 / 2 + 1; u < a.k0; ++u) {
          for (int64_t i = 0; i < count; ++i) {
            re[u * step + i] = re[(a.k0 - u) * step + i];
            im[u * step + i] = -im[(a.k0 - u) * step + i];
          }
        }
      };
      pair_rows(outer.data(), outer.data() + a.k0 * a.t0, a.t0, a.t0);
      pair_rows(x_re.data(), x_im.data(), a.k1 * a.n * a.in, a.n * a.in);
      pair_rows(y_re.data(), y_im.data(), a.k1 * a.n * a.out, a.n * a.out);
      for (int64_t t1 = 0; t1 < a.t1; ++t1) inner[a.k1 * a.t1 + t1] = 0;
      if (a.spectral()) {
        pair_rows(w.data(), w.data() + points * in * a.out, a.k1 * in * a.out, in * a.out);
      }
    }
    Sums out_re(points * a.n * a.out), out_im(points * a.n * a.out);
    Sums in_re(points * a.n * a.in), in_im(points * a.n * a.in), dw(taps);
    if (a.y_type == Type::kBFloat16) {  // The filter's spectrum may be rounded to that.
      for (Sums* sums : {&out_re, &out_im, &in_re, &in_im}) sums->rounding = 0x1p-8;
    }
    for (int64_t point = 0; point < points; ++point) {
      for (int64_t c = 0; c < a.in; ++c) {
        const int64_t group = c / in;
        for (int64_t o = group * out; o < (group + 1) * out; ++o) {
          double w_re = 0, w_im = 0, w_size = 0, d_re = 0, d_im = 0, d_size = 0;
          const auto factor = [&](int64_t t0, int64_t t1, double* re, double* im) {
            const int64_t from0 = point / a.k1 * a.t0 + t0, from1 = point % a.k1 * a.t1 + t1;
            const double re0 = outer[from0], im0 = outer[a.k0 * a.t0 + from0];
            const double re1 = inner[from1], im1 = inner[a.k1 * a.t1 + from1];
            *re = re0 * re1 - im0 * im1, *im = re0 * im1 + im0 * re1;
            return (std::abs(re0) + std::abs(im0)) * (std::abs(re1) + std::abs(im1));
          };
          const auto tap = [&](int64_t t0, int64_t t1) {
            return ((t0 * a.t1 + t1) * in + c % in) * a.out + o;
          };
          double re, im;
          const int64_t given = (point * in + c % in) * a.out + o, plane = points * in * a.out;
          if (a.spectral()) {
            w_re = w[given], w_im = w[plane + given], w_size = std::abs(w_re) + std::abs(w_im);
          }
          for (int64_t t0 = 0; t0 < a.t0; ++t0) {
            for (int64_t t1 = 0; t1 < a.t1; ++t1) {
              const double size = factor(t0, t1, &re, &im), weight = w[tap(t0, t1)];
              w_re += re * weight, w_im += im * weight, w_size += size * std::abs(weight);
            }
          }
          for (int64_t n = 0; n < a.n; ++n) {
            const int64_t i = (point * a.n + n) * a.in + c, j = (point * a.n + n) * a.out + o;
            const double x_size = std::abs(x_re[i]) + std::abs(x_im[i]);
            const double y_size = std::abs(y_re[j]) + std::abs(y_im[j]);
            out_re.Add(j, x_re[i] * w_re + x_im[i] * w_im, 2 * x_size * w_size);
            out_im.Add(j, x_im[i] * w_re - x_re[i] * w_im, 2 * x_size * w_size);
            in_re.Add(i, y_re[j] * w_re - y_im[j] * w_im, 2 * y_size * w_size);
            in_im.Add(i, y_re[j] * w_im + y_im[j] * w_re, 2 * y_size * w_size);
            d_re += x_re[i] * y_re[j] + x_im[i] * y_im[j];
            d_im += x_im[i] * y_re[j] - x_re[i] * y_im[j];
            d_size += x_size * y_size;
          }
          if (a.spectral()) {
            dw.Add(given, d_re, 2 * d_size), dw.Add(plane + given, d_im, 2 * d_size);
          }
          for (int64_t t0 = 0; t0 < a.t0; ++t0) {
            for (int64_t t1 = 0; t1 < a.t1; ++t1) {
              const double size = factor(t0, t1, &re, &im);
              dw.Add(tap(t0, t1), re * d_re + im * d_im, 2 * size * d_size);
            }
          }
        }
      }
    }

    const Buffer outer_buffer(a.type, outer), inner_buffer(a.type, inner), w_buffer(a.type, w);
    a.outer = outer_buffer.data(), a.inner = inner_buffer.data(), a.taps = w_buffer.data();
    using Results = std::vector<Buffer>;
    const Buffer from_x_re(a.x_type, x_re), from_x_im(a.x_type, x_im);
    const Buffer from_y_re(a.y_type, y_re), from_y_im(a.y_type, y_im);
    const Buffer w_half(Type::kBFloat16, half ? w : Numbers());
    if (half) a.w_type = Type::kBFloat16, a.taps = w_half.data();
    Check<MultiplyArgs>("multiply_sum", shape + (half ? " half filter" : ""),
                        &Kernels::multiply_sum, a, {{a.y_type, &out_re}, {a.y_type, &out_im}},
                        [&](MultiplyArgs* args, const Results& result) {
                          args->x_re = from_x_re.data(), args->x_im = from_x_im.data();
                          args->y_re = result[0].data(), args->y_im = result[1].data();
                        });
    a.w_type = a.type, a.taps = w_buffer.data();
    const int64_t chunks = a.spectral() ? 1 : SplitFilter(a).parts();
    const Buffer partial(a.type, chunks > 1 ? chunks * taps : 0);
    const bool hermitian = a.hermitian;
    a.hermitian = hermitian && !a.spectral();  // The gradient of a spectrum has all numbers.
    Check<MultiplyArgs>("filter_product", shape, &Kernels::filter_product, a, {{a.type, &dw}},
                        [&](MultiplyArgs* args, const Results& result) {
                          std::memset(partial.data(), 0xff, partial.Bytes());
                          args->x_re = from_x_re.data(), args->x_im = from_x_im.data();
                          args->y_re = from_y_re.data(), args->y_im = from_y_im.data();
                          args->taps = result[0].data(), args->partial = partial.data();
                        });
    a.hermitian = hermitian;
    a.x_type = a.y_type;
    Check<MultiplyArgs>("input_product", shape, &Kernels::input_product, a,
                        {{a.y_type, &in_re}, {a.y_type, &in_im}},
                        [&](MultiplyArgs* args, const Results& result) {
                          args->y_re = from_y_re.data(), args->y_im = from_y_im.data();
                          args->x_re = result[0].data(), args->x_im = result[1].data();
                        });
  }
};

}  // namespace
}  // namespace bandjax

int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20190613;
  const long shapes = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 2400;
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  bandjax::Fuzz fuzz(seed);
  fuzz.NoMemory();
  for (long i = 0; i < shapes; ++i) fuzz.Shape();
  return fuzz.Report();
}
