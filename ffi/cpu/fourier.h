// Truncated analysis and synthesis of real samples of one to three axes, one axis after another.
//
// The last axis comes first in an analysis. Two of its lines, two rows of a plane, are transformed
// as the real and the imaginary part of one complex line, and told apart after it. The spectra of
// the rows lie in a workspace by column: [frequency of the last axis][row][vector of channels], and
// each column of it is a line of the axis before. Of three axes the columns of each plane go to a
// second such workspace, whose lines are those of the first axis. The phases and weights of all
// axes meet the spectrum, in one factor. The synthesis goes the other way. A single axis has no
// rows to pair: its even and its odd points are the two parts.
//
// The real and the imaginary part changed places, a forward transform is an inverse one.
#ifndef BANDJAX_FFI_CPU_FOURIER_H_
#define BANDJAX_FFI_CPU_FOURIER_H_

#include "fourier_lines.h"

namespace bandjax {
namespace BANDJAX_ISA {

constexpr int64_t kOwnBytes = 4 << 20;      // a plane that one thread works on alone
constexpr int64_t kSharedBytes = 16 << 20;  // planes that all threads work on together

template <typename A, typename T, typename S, bool kAnalysis>
class Fourier : FourierLines<A, T, S, kAnalysis> {
  using Base = FourierLines<A, T, S, kAnalysis>;
  using Base::args_, Base::chunks_, Base::depth_, Base::height_, Base::inner_kept_, Base::kGap,
      Base::kLane, Base::kVectors, Base::kWide, Base::last_kept_, Base::outer_, Base::Pitch,
      Base::solid_, Base::stream_, Base::DeskBytes, Base::ItemAt, Base::TakeDesk;
  using typename Base::Desk;
  using typename Base::Item;
  using typename Base::Workspace;

 public:
  Fourier(const FourierArgs& args, Pool* pool) : Base(args), pool_(pool) {}

  void Run() {
    if (args_.n == 0 || args_.c == 0) return;
    if (outer_.samples == 1 && outer_.limit == 0) {
      Lines();
    } else if (solid_) {
      Solids();
    } else {
      Planes();
    }
  }

 private:
  void Lines() const {
    const int64_t chunks = CeilDiv(args_.c, kLane), lines = args_.n * chunks;
    constexpr int64_t kLinesEach = 4;
    ParallelFor(pool_, CeilDiv(lines, kLinesEach), [&](int64_t task) {
      Arena arena(pool_, DeskBytes());
      const Desk desk = TakeDesk(&arena);
      const int64_t end = Min(lines, (task + 1) * kLinesEach);
      for (int64_t line = task * kLinesEach; line < end; ++line) {
        this->Line(line / chunks, line % chunks * kLane, desk);
      }
      EndStream(stream_);
    });
  }

  // A single copy, for its factors are sums of two products: whether a plane is of one thread or of
  // all, a compiler fuses the same ones into multiply-adds.
  BANDJAX_NOINLINE void Columns(const Item& item, int64_t begin, int64_t end, const Workspace& z,
                                const Desk& desk) const {
    for (int64_t at = begin; at < end; ++at) {
      this->SetFactors(at, desk.factors);
      for (int64_t v = 0; v < item.vectors; ++v) {
        this->OuterColumn(item, v, at, z, desk);
      }
    }
    EndStream(kAnalysis ? stream_ : z.past);
  }

  void PlaneRows(const Item& item, int64_t d, int64_t begin, int64_t end, const Workspace& z,
                 const Desk& desk) const {
    for (int64_t i = begin; i < end; i += 2) {
      for (int64_t v = 0; v < item.vectors; ++v) {
        this->Rows(item, v, d, i, Min(i + 2, end), z, desk);
      }
    }
    EndStream(kAnalysis ? z.past : stream_);
  }

  void Planes() const {
    const int64_t items = args_.n * chunks_, pitch = Pitch(height_);
    const int64_t numbers = last_kept_ * pitch;
    const int64_t bytes = static_cast<int64_t>(Arena::Bytes<A>(numbers));
    const bool even = items % pool_->threads == 0 || items >= 4 * pool_->threads;
    if (even && bytes <= kOwnBytes) {
      ParallelFor(pool_, items, [&](int64_t index) {
        Arena arena(pool_, DeskBytes() + bytes);
        const Desk desk = TakeDesk(&arena);
        const Workspace z = {arena.template Take<A>(numbers), pitch, false};
        const Item item = ItemAt(index);
        if constexpr (kAnalysis) PlaneRows(item, 0, 0, height_, z, desk);
        Columns(item, 0, last_kept_, z, desk);
        if constexpr (!kAnalysis) PlaneRows(item, 0, 0, height_, z, desk);
      });
      return;
    }
    const int64_t group = Max(1, Min(items, kSharedBytes / bytes));
    const Workspace shared = Base::SharedWorkspace(
        static_cast<A*>(pool_->shared(pool_, group * bytes)), pitch, group * bytes);
    constexpr int64_t kRowsEach = 8, kColumnsEach = 2;
    for (int64_t first = 0; first < items; first += group) {
      const int64_t count = Min(group, items - first);
      const auto rows = [&] {
        const int64_t blocks = CeilDiv(height_, kRowsEach);
        ParallelFor(pool_, count * blocks, [&](int64_t task) {
          Arena arena(pool_, DeskBytes());
          const int64_t index = task / blocks, begin = task % blocks * kRowsEach;
          PlaneRows(ItemAt(first + index), 0, begin, Min(height_, begin + kRowsEach),
                    shared.At(index * bytes / sizeof(A)), TakeDesk(&arena));
        });
      };
      if constexpr (kAnalysis) rows();
      const int64_t blocks = CeilDiv(last_kept_, kColumnsEach);
      ParallelFor(pool_, count * blocks, [&](int64_t task) {
        Arena arena(pool_, DeskBytes());
        const int64_t index = task % count, begin = task / count * kColumnsEach;
        Columns(ItemAt(first + index), begin, Min(last_kept_, begin + kColumnsEach),
                shared.At(index * bytes / sizeof(A)), TakeDesk(&arena));
      });
      if constexpr (!kAnalysis) rows();
    }
  }

  // Plane d of a solid; the plane's own columns are in `z`.
  void SolidPlane(const Item& item, int64_t d, const Workspace& solid, const Workspace& z,
                  const Desk& desk) const {
    if constexpr (kAnalysis) PlaneRows(item, d, 0, height_, z, desk);
    for (int64_t u = 0; u < last_kept_; ++u) {
      for (int64_t v = 0; v < item.vectors; ++v) {
        this->Column(1, z.z + u * z.pitch + v * kWide,
                     solid.z + u * solid.pitch + d * kGap + v * kWide, last_kept_ * solid.pitch,
                     kAnalysis && solid.past, desk);
      }
    }
    EndStream(kAnalysis && solid.past);
    if constexpr (!kAnalysis) PlaneRows(item, d, 0, height_, z, desk);
  }

  void Solids() const {
    const int64_t items = args_.n * chunks_, pitch = Pitch(depth_);
    const int64_t plane = last_kept_ * Pitch(height_);
    const int64_t bytes = static_cast<int64_t>(Arena::Bytes<A>(inner_kept_ * pitch));
    const int64_t group = Max(1, Min(items, kSharedBytes / bytes));
    const Workspace shared = Base::SharedWorkspace(
        static_cast<A*>(pool_->shared(pool_, group * bytes)), pitch, group * bytes);
    constexpr int64_t kColumnsEach = 8;
    for (int64_t first = 0; first < items; first += group) {
      const int64_t count = Min(group, items - first);
      const auto planes = [&] {
        ParallelFor(pool_, count * depth_, [&](int64_t task) {
          Arena arena(pool_, DeskBytes() + Arena::Bytes<A>(plane));
          const Desk desk = TakeDesk(&arena);
          const Workspace z = {arena.template Take<A>(plane), Pitch(height_), false};
          const int64_t index = task / depth_;
          SolidPlane(ItemAt(first + index), task % depth_, shared.At(index * bytes / sizeof(A)), z,
                     desk);
        });
      };
      if constexpr (kAnalysis) planes();
      const int64_t blocks = CeilDiv(inner_kept_, kColumnsEach);
      ParallelFor(pool_, count * blocks, [&](int64_t task) {
        Arena arena(pool_, DeskBytes());
        const int64_t index = task % count, begin = task / count * kColumnsEach;
        Columns(ItemAt(first + index), begin, Min(inner_kept_, begin + kColumnsEach),
                shared.At(index * bytes / sizeof(A)), TakeDesk(&arena));
      });
      if constexpr (!kAnalysis) planes();
    }
  }

  Pool* pool_;
};

template <bool kAnalysis>
void FourierTyped(const FourierArgs& args, Pool* pool) {
  const bool half_samples = args.sample_type == Type::kBFloat16;
  const bool half_spectrum = args.spectrum_type == Type::kBFloat16;
  if (args.sample_type == Type::kFloat64) {
    Fourier<double, double, double, kAnalysis>(args, pool).Run();
  } else if (half_samples && half_spectrum) {
    Fourier<float, BFloat16, BFloat16, kAnalysis>(args, pool).Run();
  } else if (half_samples) {
    Fourier<float, BFloat16, float, kAnalysis>(args, pool).Run();
  } else if (half_spectrum) {
    Fourier<float, float, BFloat16, kAnalysis>(args, pool).Run();
  } else {
    Fourier<float, float, float, kAnalysis>(args, pool).Run();
  }
}

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FOURIER_H_
