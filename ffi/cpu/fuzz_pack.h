// The packing kernels on random shapes: what comes back lies as near as the steps allow.
#ifndef BANDJAX_FFI_CPU_FUZZ_PACK_H_
#define BANDJAX_FFI_CPU_FUZZ_PACK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/fuzz_fourier.h"

namespace bandjax {

class PackFuzz : public FourierFuzz {
 public:
  using FourierFuzz::FourierFuzz;

 protected:
  void Blocks() {
    PackArgs a{};
    a.n = Once(20) ? 0 : Draw(1, 3), a.c = Once(4) ? Draw(1, 80) : Draw(1, 20);
    const int64_t common[] = {1, 2, 4, 7, 8, 3, 5, 6, 9, 16};
    int64_t points = 1, places = 1;
    std::string shape = "n " + std::to_string(a.n) + " c " + std::to_string(a.c);
    std::vector<float> matrices[3];
    for (int axis = 0; axis < 3; ++axis) {
      do a.sizes[axis] = common[Draw(0, 9)];
      while (points * a.sizes[axis] > kPackValues);
      points *= a.sizes[axis];
      a.shape[axis] = Draw(1, 2 * a.sizes[axis] + 1);
      a.counts[axis] = (a.shape[axis] + a.sizes[axis] - 1) / a.sizes[axis];
      places *= a.counts[axis];
      matrices[axis] = Cosines(a.sizes[axis]), a.matrices[axis] = matrices[axis].data();
      shape += " " + std::to_string(a.shape[axis]) + "/" + std::to_string(a.sizes[axis]);
    }
    const int64_t most = std::min(a.c, kPackValues / points);
    a.lanes = (a.c + most - 1) / most;
    if (Once(2)) a.lanes = Draw(a.lanes, a.c);
    a.merged = (a.c + a.lanes - 1) / a.lanes;
    const int64_t values = points * a.merged;
    std::vector<PackMember> layout;
    std::vector<float> limits;
    int32_t bit = 12, word = 0;  // The first word begins with the step.
    for (int32_t k = 0; k < values; ++k) {
      const int32_t width = Once(6) ? 0 : static_cast<int32_t>(Draw(2, 16));
      if (width == 0) continue;
      if (bit + width > 32) ++word, bit = 0;
      layout.push_back({k, word, bit, width});
      limits.push_back(1.0f / (static_cast<float>(1u << width >> 1) - 0.5f));
      bit += width;
    }
    a.n_words = word + 1, a.members = static_cast<int64_t>(layout.size());
    a.layout = layout.data(), a.limits = limits.data();
    shape += " lanes " + std::to_string(a.lanes) + " members " + std::to_string(a.members);

    const int64_t samples = a.n * a.shape[0] * a.shape[1] * a.shape[2] * a.c;
    const Numbers x = Random(samples);
    const Buffer in(Type::kFloat32, x);
    for (const Kernels* kernels : All()) {
      std::vector<Buffer> words, keys, back;
      for (int64_t threads : {4, 1}) {
        words.emplace_back(Type::kFloat32, a.n * places * a.n_words * a.lanes);
        keys.emplace_back(Type::kFloat32, a.n);
        back.emplace_back(Type::kFloat32, samples);
        a.samples = in.data(), a.words = words.back().data(), a.keys = keys.back().data();
        OnThreads(threads, [&](Pool* pool) { kernels->pack(a, pool); });
        a.samples = back.back().data();
        OnThreads(threads, [&](Pool* pool) { kernels->unpack(a, pool); });
      }
      const bool same = Same(words) && Same(keys) && Same(back);
      Tell("pack", kernels, shape,
           !same ? "four threads and one differ" : Distance(a, x, back[0], words[0]));
    }
  }

  void Flags() {
    BitsArgs a{};
    a.n = Once(20) ? 0 : Draw(1, 4), a.m = Draw(0, 700);
    const int64_t row = (a.m + 31) / 32;
    std::vector<char> flags(a.n * a.m);
    for (char& flag : flags) flag = static_cast<char>(Draw(0, 1));
    // The same as numbers, of which those count that are above zero.
    Numbers signs(flags.size());
    for (size_t i = 0; i < flags.size(); ++i) {
      const double others[] = {0, -0.0, -1, std::nan("")};
      signs[i] = flags[i] ? 0.5 + static_cast<double>(i) : others[Draw(0, 3)];
    }
    const Buffer numbers(Type::kFloat32, signs);
    for (const Kernels* kernels : All()) {
      std::string fault;
      for (int64_t threads : {4, 1, 0}) {
        const Buffer words(Type::kFloat32, a.n * row);
        std::vector<char> back(flags.size(), 7);
        a.flags = flags.data(), a.words = words.data(), a.above_zero = threads == 0;
        if (a.above_zero) a.flags = numbers.data(), threads = 1;
        OnThreads(threads, [&](Pool* pool) { kernels->pack_bits(a, pool); });
        const auto* packed = static_cast<const uint32_t*>(words.data());
        for (int64_t n = 0; n < a.n; ++n) {
          for (int64_t i = 0; i < 32 * row; ++i) {
            const uint32_t bit = packed[n * row + i % row] >> i / row & 1;
            if (bit != (i < a.m ? static_cast<uint32_t>(flags[n * a.m + i]) : 0)) fault = "a bit";
          }
        }
        a.flags = back.data();
        OnThreads(threads, [&](Pool* pool) { kernels->unpack_bits(a, pool); });
        if (back != flags) fault = "a flag";
      }
      Tell("bits", kernels, std::to_string(a.n) + " " + std::to_string(a.m), fault);
    }
  }

 private:
  // The orthonormal cosine transform (frequencies, points).
  static std::vector<float> Cosines(int64_t size) {
    std::vector<float> matrix(size * size);
    for (int64_t k = 0; k < size; ++k) {
      for (int64_t i = 0; i < size; ++i) {
        const double angle = M_PI * static_cast<double>(k * (2 * i + 1)) / (2 * size);
        matrix[k * size + i] =
            static_cast<float>(std::sqrt((k == 0 ? 1.0 : 2.0) / size) * std::cos(angle));
      }
    }
    return matrix;
  }

  template <typename Work>
  void OnThreads(int64_t threads, Work work) {
    ThreadedPool pool(threads,
                      [this](std::function<void()> task) { workers_.Schedule(std::move(task)); });
    pool.scratch = &FreshScratch, pool.shared = &FreshShared;
    work(&pool);
  }

  static bool Same(const std::vector<Buffer>& two) {
    return std::memcmp(two[0].data(), two[1].data(), two[0].Bytes()) == 0;
  }

  void Tell(const char* what, const Kernels* kernels, const std::string& shape,
            const std::string& fault) {
    ++(fault.empty() ? passed_ : failed_);
    if (!fault.empty() && failed_ <= 20) {
      std::printf("%s, %s, %s: %s\n", what, kernels->name, shape.c_str(), fault.c_str());
    }
  }

  // Each coefficient that is kept comes back within half a step, any other as zero. A sample is
  // then off by no more than these errors, each times the size of its wave there.
  static std::string Distance(const PackArgs& a, const Numbers& x, const Buffer& back,
                              const Buffer& words) {
    const int64_t points = a.sizes[0] * a.sizes[1] * a.sizes[2];
    const auto sample = [&](int64_t n, const int64_t (&at)[3], int64_t channel) {
      int64_t i = n;
      for (int axis = 0; axis < 3; ++axis) {
        i = i * a.shape[axis] + std::min(at[axis], a.shape[axis] - 1);
      }
      return i * a.c + channel;
    };
    const auto wave = [&](int64_t k, int64_t p) {
      double product = 1;
      for (int axis = 2; axis >= 0; --axis) {
        const int64_t size = a.sizes[axis];
        product *= a.matrices[axis][k % size * size + p % size];
        k /= size, p /= size;
      }
      return product;
    };
    const int64_t places = a.counts[0] * a.counts[1] * a.counts[2];
    for (int64_t block = 0; block < a.n * places; ++block) {
      const int64_t n = block / places, place = block % places;
      const int64_t first[3] = {place / (a.counts[1] * a.counts[2]) * a.sizes[0],
                                place / a.counts[2] % a.counts[1] * a.sizes[1],
                                place % a.counts[2] * a.sizes[2]};
      const auto where = [&](int64_t p, int64_t (&at)[3]) {
        at[0] = first[0] + p / (a.sizes[1] * a.sizes[2]);
        at[1] = first[1] + p / a.sizes[2] % a.sizes[1], at[2] = first[2] + p % a.sizes[2];
      };
      for (int64_t channel = 0; channel < a.c; ++channel) {
        const int64_t lane = channel % a.lanes, j = channel / a.lanes;
        const uint32_t header =
            static_cast<const uint32_t*>(words.data())[block * a.n_words * a.lanes + lane];
        const uint32_t bits = (header & 0xFFF) << 19;
        float step;
        std::memcpy(&step, &bits, sizeof step);
        Numbers off(points);
        int64_t at[3];
        for (int64_t k = 0; k < points; ++k) {
          const bool kept = std::any_of(
              a.layout, a.layout + a.members,
              [&](const PackMember& member) { return member.value == k * a.merged + j; });
          double truth = 0;
          for (int64_t p = 0; p < points; ++p) {
            where(p, at);
            truth += wave(k, p) * x[sample(n, at, channel)];
          }
          off[k] = kept ? 0.5001 * step : std::abs(truth);
        }
        for (int64_t p = 0; p < points; ++p) {
          where(p, at);
          if (at[0] >= a.shape[0] || at[1] >= a.shape[1] || at[2] >= a.shape[2]) continue;
          double bound = 1e-4;
          for (int64_t k = 0; k < points; ++k) bound += std::abs(wave(k, p)) * off[k];
          const int64_t i = sample(n, at, channel);
          if (std::abs(back.at(i) - x[i]) <= bound) continue;  // not so for a NaN
          return "sample " + std::to_string(i) + " is " + std::to_string(back.at(i)) + ", not " +
                 std::to_string(x[i]) + " to " + std::to_string(bound);
        }
      }
    }
    return "";
  }
};

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FUZZ_PACK_H_
