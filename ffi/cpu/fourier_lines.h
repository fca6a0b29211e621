// The lines of fourier.h: what is loaded, transformed and stored of one of them, or of two.
#ifndef BANDJAX_FFI_CPU_FOURIER_LINES_H_
#define BANDJAX_FFI_CPU_FOURIER_LINES_H_

#include "epilogue.h"
#include "line.h"

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A>
const A* TwiddlesOf(const FourierPlan& plan) {
  if constexpr (sizeof(A) == 4) {
    return plan.twiddles32;
  } else {
    return plan.twiddles64;
  }
}
template <typename A>
const A* FactorsOf(const FourierPlan& plan) {
  if constexpr (sizeof(A) == 4) {
    return plan.factors32;
  } else {
    return plan.factors64;
  }
}

template <typename A>
const A* TurnsOf(const FourierPlan& plan) {
  if constexpr (sizeof(A) == 4) {
    return plan.turns32;
  } else {
    return plan.turns64;
  }
}

template <typename A, typename T, typename S, bool kAnalysis>
class FourierLines {
 public:
  static constexpr int64_t kLane = kLanes<A>;
  static constexpr int64_t kWide = kPoint<A>;
  static constexpr int64_t kVectors = BANDJAX_BYTES < 64 ? 2 : 1;  // of an item
  static constexpr int64_t kGap = kVectors * kWide;  // from one row of a column to the next

  explicit FourierLines(const FourierArgs& args) : args_(args) {}

  // An example and up to `vectors` vectors of its channels.
  struct Item {
    int64_t n, c, vectors;
  };
  Item ItemAt(int64_t index) const {
    const int64_t c = index % chunks_ * kVectors * kLane;
    return {index / chunks_, c, Min(kVectors, CeilDiv(args_.c - c, kLane))};
  }

  // Numbers of a column of a workspace: of a power of two, all would lie in the same few lines of a
  // cache.
  static int64_t Pitch(int64_t points) { return (points | 1) * kGap; }

  // Columns of vectors, `pitch` numbers from one to the next. What many threads write, and read
  // when all of it is there, goes past their caches.
  struct Workspace {
    A* z;
    int64_t pitch;
    bool past;
    Workspace At(int64_t numbers) const { return {z + numbers, pitch, past}; }
  };
  static Workspace SharedWorkspace(A* z, int64_t pitch, int64_t bytes) {
    return {z, pitch, Streams(kWide * sizeof(A), bytes)};
  }
  static BANDJAX_INLINE void Keep(A* to, Vec<A> re, Vec<A> im, bool past) {
    if (past) {
      Stream<A>(to, re);
      Stream<A>(to + kLane, im);
    } else {
      Store<A>(to, re);
      Store<A>(to + kLane, im);
    }
  }

  // What a thread needs to work on one line.
  struct Desk {
    A *line, *scratch, *factors;
  };
  size_t DeskBytes() const {
    return Arena::Bytes<A>(room_ * kWide) + Arena::Bytes<A>(table_room_) +
           Arena::Bytes<A>(2 * outer_kept_);
  }
  Desk TakeDesk(Arena* arena) const {
    Desk desk;
    desk.line = arena->template Take<A>(room_ * kWide);
    desk.scratch = arena->template Take<A>(table_room_);
    desk.factors = arena->template Take<A>(2 * outer_kept_);
    return desk;
  }

  // Into the cache: what is far apart in memory, and wanted after the line in hand.
  template <int kWrite>
  static BANDJAX_INLINE void Fetch(const void* p) {
    __builtin_prefetch(p, kWrite, 2);
  }

  // ------------------------------------------------------------------------------- one line

  void Transform(int axis, const Desk& desk) const {
    const FourierPlan& plan = *args_.plans[axis];
    const A* table = static_cast<const A*>(args_.tables[axis]);
    if (plan.fast) {
      FastLine<A>(plan, TwiddlesOf<A>(plan), desk.line);
    } else if (kAnalysis) {
      TableAnalysis<A>(plan, table, desk.line, desk.scratch);
    } else {
      TableSynthesis<A>(plan, table, desk.line, desk.scratch);
    }
  }

  static BANDJAX_INLINE void Put(A* line, int32_t place, Vec<A> re, Vec<A> im) {
    A* point = line + (place < 0 ? ~place : place) * kWide;
    if (__builtin_expect(place < 0, 0)) {
      re += Load<A>(point), im += Load<A>(point + kLane);
    }
    Store<A>(point, re);
    Store<A>(point + kLane, im);
  }
  static void Clear(const FourierPlan& plan, A* line) {
    for (int64_t i = 0; i < plan.empties; ++i) Put(line, plan.empty[i], Vec<A>{}, Vec<A>{});
  }

  // ------------------------------------------------------------------- two lines of the last axis

  // The spectra of rows a and b, of which b may be absent, `step` from one frequency to the next.
  void AnalyseRows(const T* a, const T* b, int64_t valid, int64_t ahead, const Desk& desk) const {
    for (int64_t j = 0; j < last_.samples; ++j) {
      Fetch<0>(a + j * args_.c + ahead);
      Fetch<0>(a + j * args_.c + ahead / 2 * 3);
      const Vec<A> re = LoadUpTo<A>(a + j * args_.c, valid);
      const Vec<A> im = b != nullptr ? LoadUpTo<A>(b + j * args_.c, valid) : Vec<A>{};
      Put(desk.line, last_.load_at[j], re, im);
    }
    Clear(last_, desk.line);
    Transform(2, desk);
  }
  // Twice the spectra of both rows at frequency u: (Z[u] + conj Z[-u]) and (Z[u] - conj Z[-u]) / i.
  BANDJAX_INLINE void Part(const A* line, int64_t u, Vec<A> (&rows)[4]) const {
    const A* plus = line + last_.read_at[2 * u] * kWide;
    const A* minus = line + last_.read_at[2 * u + 1] * kWide;
    const Vec<A> p_re = Load<A>(plus), p_im = Load<A>(plus + kLane);
    const Vec<A> m_re = Load<A>(minus), m_im = Load<A>(minus + kLane);
    rows[0] = p_re + m_re, rows[1] = p_im - m_im;
    rows[2] = p_im + m_im, rows[3] = m_re - p_re;
  }

  // Z[u] = A + i B and Z[-u] = conj A + i conj B, real and imaginary part exchanged.
  BANDJAX_INLINE void Join(A* line, int64_t u, const Vec<A> (&rows)[4]) const {
    if (u == 0) {
      Put(line, last_.load_at[0], rows[2], rows[0]);
      return;
    }
    Put(line, last_.load_at[2 * u], rows[1] + rows[2], rows[0] - rows[3]);
    Put(line, last_.load_at[2 * u + 1], rows[2] - rows[1], rows[0] + rows[3]);
  }
  BANDJAX_INLINE void StoreSample(T* to, Vec<A> value, int64_t valid, bool stream) const {
    StreamUpTo<A>(to, finish_(value, to, args_.c - valid, valid), valid, stream);
  }
  void SynthesiseRows(T* a, T* b, int64_t valid, const Desk& desk) const {
    Clear(last_, desk.line);
    Transform(2, desk);
    for (int64_t j = 0; j < last_.samples; ++j) {
      const A* point = desk.line + last_.read_at[j] * kWide;
      StoreSample(a + j * args_.c, Load<A>(point + kLane), valid, stream_);
      if (b != nullptr) StoreSample(b + j * args_.c, Load<A>(point), valid, stream_);
    }
  }

  // Rows `begin` to `end` of plane d, of which each column of the workspace holds a frequency.
  void Rows(const Item& item, int64_t v, int64_t d, int64_t begin, int64_t end, const Workspace& to,
            const Desk& desk) const {
    const int64_t step = to.pitch;
    const int64_t c = item.c + v * kLane, row = last_.samples * args_.c;
    const int64_t first = (item.n * depth_ + d) * height_;
    T* plane = static_cast<T*>(args_.samples) + first * row + c;
    for (int64_t i = begin; i < end; i += 2) {
      T* a = plane + i * row;
      T* b = i + 1 < height_ ? a + row : nullptr;
      A* at = to.z + v * kWide + i * kGap;
      if constexpr (kAnalysis) {
        AnalyseRows(a, b, args_.c - c, 2 * row, desk);
        for (int64_t u = 0; u <= last_.limit; ++u, at += step) {
          Vec<A> rows[4];
          Part(desk.line, u, rows);
          if (!to.past) {
            Fetch<1>(at + 2 * kGap);
            Fetch<1>(at + 3 * kGap);
          }
          Keep(at, rows[0], rows[1], to.past);
          if (b != nullptr) Keep(at + kGap, rows[2], rows[3], to.past);
        }
      } else {
        for (int64_t u = 0; u <= last_.limit; ++u, at += step) {
          const Vec<A> zero = {};
          const Vec<A> rows[4] = {Load<A>(at), Load<A>(at + kLane),
                                  b != nullptr ? Load<A>(at + kGap) : zero,
                                  b != nullptr ? Load<A>(at + kGap + kLane) : zero};
          Fetch<0>(at + 2 * kGap);
          Fetch<0>(at + 3 * kGap);
          Join(desk.line, u, rows);
        }
        SynthesiseRows(a, b, args_.c - c, desk);
      }
    }
  }

  // --------------------------------------------------------------------- columns of a workspace

  // A line of axis 0 or 1 between two workspaces: `column` holds its samples one after another,
  // `step` lies between its frequencies in `spectrum`; `past` tells of what is written.
  void Column(int axis, A* column, A* spectrum, int64_t step, bool past, const Desk& desk) const {
    const FourierPlan& plan = *args_.plans[axis];
    const int64_t kept = args_.kept[axis];
    if constexpr (kAnalysis) {
      LoadColumn(plan, column, desk.line);
      Transform(axis, desk);
      for (int64_t row = 0; row < kept; ++row) {
        const A* point = desk.line + plan.read_at[Entry(plan, kept, row)] * kWide;
        Keep(spectrum + row * step, Load<A>(point), Load<A>(point + kLane), past);
      }
    } else {
      for (int64_t row = 0; row < kept; ++row) {
        const A* from = spectrum + row * step;
        Put(desk.line, plan.load_at[Entry(plan, kept, row)], Load<A>(from + kLane), Load<A>(from));
      }
      StoreColumn(axis, column, past, desk);
    }
  }
  void LoadColumn(const FourierPlan& plan, const A* column, A* line) const {
    for (int64_t j = 0; j < plan.samples; ++j) {
      const A* from = column + j * kGap;
      Put(line, plan.load_at[j], Load<A>(from), Load<A>(from + kLane));
    }
    Clear(plan, line);
  }
  void StoreColumn(int axis, A* column, bool past, const Desk& desk) const {
    const FourierPlan& plan = *args_.plans[axis];
    Clear(plan, desk.line);
    Transform(axis, desk);
    for (int64_t j = 0; j < plan.samples; ++j) {
      const A* point = desk.line + plan.read_at[j] * kWide;
      Keep(column + j * kGap, Load<A>(point + kLane), Load<A>(point), past);
    }
  }
  // Where a plan has kept frequency `row`: its frequency is `row`, or row - kept behind the limit.
  static BANDJAX_INLINE int64_t Entry(const FourierPlan& plan, int64_t kept, int64_t row) {
    return row <= plan.limit ? 2 * row : 2 * (kept - row) + 1;
  }

  // A line of the outermost axis between a workspace and the spectrum, at `at` of the frequencies
  // of the other axes.
  void OuterColumn(const Item& item, int64_t v, int64_t at, const Workspace& column,
                   const Desk& desk) const {
    const int64_t c = item.c + v * kLane, first = (at * args_.n + item.n) * args_.c + c;
    OuterLine<S>(args_.c - c, static_cast<S*>(args_.re) + first, static_cast<S*>(args_.im) + first,
                 inner_kept_ * args_.n * args_.c, stream_, column.At(at * column.pitch + v * kWide),
                 desk);
  }
  // The same of a spectrum whose frequencies of that axis are `step` apart; the factors are set.
  template <typename R>
  void OuterLine(int64_t valid, R* re, R* im, int64_t step, bool stream, const Workspace& column,
                 const Desk& desk) const {
    if constexpr (kAnalysis) {
      LoadColumn(outer_, column.z, desk.line);
      Transform(outer_axis_, desk);
    }
    const int64_t ahead = args_.n * args_.c;
    for (int64_t row = 0; row < outer_kept_; ++row, re += step, im += step) {
      if (!kAnalysis || !stream) {
        Fetch<kAnalysis>(re + ahead);
        Fetch<kAnalysis>(im + ahead);
      }
      const int64_t entry = Entry(outer_, outer_kept_, row);
      const A f_re = desk.factors[2 * row], f_im = desk.factors[2 * row + 1];
      if constexpr (kAnalysis) {
        const A* point = desk.line + outer_.read_at[entry] * kWide;
        const Vec<A> r = Load<A>(point), i = Load<A>(point + kLane);
        StreamUpTo<A>(re, r * f_re - i * f_im, valid, stream);
        StreamUpTo<A>(im, r * f_im + i * f_re, valid, stream);
      } else {
        const Vec<A> r = LoadUpTo<A>(re, valid), i = LoadUpTo<A>(im, valid);
        Put(desk.line, outer_.load_at[entry], r * f_im + i * f_re, r * f_re - i * f_im);
      }
    }
    if constexpr (!kAnalysis) StoreColumn(outer_axis_, column.z, column.past, desk);
  }

  // What an axis of one sample and one frequency, which is not transformed, multiplies by.
  A Weight(int axis) const {
    const A* table = static_cast<const A*>(args_.tables[axis]);
    return args_.plans[axis]->fast || table == nullptr ? FactorsOf<A>(*args_.plans[axis])[0]
                                                       : table[0];
  }

  // The product of all axes' factors, for every frequency of the outermost axis.
  void SetFactors(int64_t at, A* factors) const {
    const A* last = FactorsOf<A>(last_) + 2 * (at % last_kept_);
    A g_re = last[0], g_im = last[1];
    if (solid_) {
      Times(args_.plans[1], args_.kept[1], at / last_kept_, &g_re, &g_im);
    } else {
      g_re *= Weight(0), g_im *= Weight(0);
    }
    for (int64_t row = 0; row < outer_kept_; ++row) {
      A re = g_re, im = g_im;
      Times(&outer_, outer_kept_, row, &re, &im);
      factors[2 * row] = re, factors[2 * row + 1] = im;
    }
  }
  static BANDJAX_INLINE void Times(const FourierPlan* plan, int64_t kept, int64_t row, A* re,
                                   A* im) {
    const bool minus = row > plan->limit;
    const A* factor = FactorsOf<A>(*plan) + 2 * (minus ? kept - row : row);
    const A f_re = factor[0], f_im = minus ? -factor[1] : factor[1];
    const A r = *re, i = *im;
    *re = r * f_re - i * f_im, *im = r * f_im + i * f_re;
  }

  // ---------------------------------------------------------------------------- of a single axis

  // A line for itself: a pair would be of different examples or channels.
  void Line(int64_t n, int64_t c, const Desk& desk) const {
    const int64_t valid = args_.c - c, step = args_.n * args_.c;
    T* samples = static_cast<T*>(args_.samples) + n * last_.samples * args_.c + c;
    S* re = static_cast<S*>(args_.re) + n * args_.c + c;
    S* im = static_cast<S*>(args_.im) + n * args_.c + c;
    const A* factors = FactorsOf<A>(last_);
    const A* turns = TurnsOf<A>(last_);
    const A others = Weight(0) * Weight(1);
    if constexpr (kAnalysis) AnalyseLine(samples, valid, desk);
    for (int64_t u = 0; u <= last_.limit; ++u, re += step, im += step) {
      const A f_re = factors[2 * u] * others, f_im = factors[2 * u + 1] * others;
      const A cosine = turns[2 * u], sine = turns[2 * u + 1];
      Vec<A> rows[4] = {};
      if constexpr (kAnalysis) {
        Part(desk.line, u, rows);
        if (last_.halved) {  // the even points, and the odd ones turned by one
          rows[0] += rows[2] * cosine + rows[3] * sine;
          rows[1] += rows[3] * cosine - rows[2] * sine;
        }
        StoreUpTo<A>(re, rows[0] * f_re - rows[1] * f_im, valid);
        StoreUpTo<A>(im, rows[0] * f_im + rows[1] * f_re, valid);
      } else {
        const Vec<A> r = LoadUpTo<A>(re, valid), i = LoadUpTo<A>(im, valid);
        rows[0] = r * f_re - i * f_im, rows[1] = r * f_im + i * f_re;
        if (last_.halved) {
          rows[2] = rows[0] * cosine - rows[1] * sine;
          rows[3] = rows[1] * cosine + rows[0] * sine;
        }
        Join(desk.line, u, rows);
      }
    }
    if constexpr (!kAnalysis) SynthesiseLine(samples, valid, desk);
  }

  void AnalyseLine(const T* samples, int64_t valid, const Desk& desk) const {
    if (!last_.halved) {
      AnalyseRows(samples, nullptr, valid, 0, desk);
      return;
    }
    for (int64_t j = 0; j < last_.samples; ++j) {
      const int32_t place = last_.load_at[j];
      A* to = desk.line + (place < 0 ? ~place : place) * kLane;
      const Vec<A> value = LoadUpTo<A>(samples + j * args_.c, valid);
      Store<A>(to, place < 0 ? Load<A>(to) + value : value);
    }
    for (int64_t i = 0; i < last_.empties; ++i) {
      Store<A>(desk.line + last_.empty[i] * kLane, Vec<A>{});
    }
    Transform(2, desk);
  }
  void SynthesiseLine(T* samples, int64_t valid, const Desk& desk) const {
    if (!last_.halved) {
      SynthesiseRows(samples, nullptr, valid, desk);
      return;
    }
    Clear(last_, desk.line);
    Transform(2, desk);
    for (int64_t j = 0; j < last_.samples; ++j) {  // The parts are exchanged.
      const A* point = desk.line + (last_.read_at[j] ^ 1) * kLane;
      StoreSample(samples + j * args_.c, Load<A>(point), valid, false);
    }
  }

  const FourierArgs& args_;
  const Finish<A, T> finish_{args_.epilogue, args_.samples};
  const FourierPlan& last_ = *args_.plans[2];
  const bool solid_ = args_.plans[0]->samples > 1 || args_.plans[0]->limit > 0;
  const int outer_axis_ = solid_ ? 0 : 1;
  const FourierPlan& outer_ = *args_.plans[outer_axis_];
  const int64_t depth_ = args_.plans[0]->samples, height_ = args_.plans[1]->samples;
  const int64_t last_kept_ = args_.kept[2], outer_kept_ = args_.kept[outer_axis_];
  // Of all axes but the outermost.
  const int64_t inner_kept_ = solid_ ? last_kept_ * args_.kept[1] : last_kept_;
  // Whether the results go past the cache.
  static constexpr int64_t kBytes = kAnalysis ? sizeof(S) : sizeof(T);  // of a number that results
  const bool stream_ = Streams(kLane * kBytes, args_.n* args_.c * kBytes *
                                                   (kAnalysis ? 2 * inner_kept_ * outer_kept_
                                                              : depth_ * height_ * last_.samples));
  const int64_t chunks_ = CeilDiv(args_.c, kVectors* kLane);
  const int64_t room_ = Max(args_.plans[0]->room, Max(args_.plans[1]->room, args_.plans[2]->room));
  const int64_t table_room_ =
      Max(TableScratch<A>(*args_.plans[0]),
          Max(TableScratch<A>(*args_.plans[1]), TableScratch<A>(*args_.plans[2])));
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FOURIER_LINES_H_
