// What the fuzzers of cpu/fuzz*.cpp share: threads, buffers, random numbers and the comparison.
#ifndef BANDJAX_FFI_CPU_FUZZ_H_
#define BANDJAX_FFI_CPU_FUZZ_H_

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace bandjax {

using Numbers = std::vector<double>;

// Threads that take work from a queue, as XLA's do.
class Workers {
 public:
  explicit Workers(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Loop(); });
  }
  ~Workers() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void Schedule(std::function<void()> work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(work));
    }
    wake_.notify_one();
  }

 private:
  void Loop() {
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

// Scratch memory of the exact size, new for each task and full of NaNs.
inline void* FreshScratch(size_t bytes) {
  thread_local std::unique_ptr<void, void (*)(void*)> memory(nullptr, &std::free);
  memory.reset();
  memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  std::memset(memory.get(), 0xff, bytes);
  return memory.get();
}

// The same of memory that all tasks see.
inline void* FreshShared(Pool*, size_t bytes) {
  thread_local std::unique_ptr<void, void (*)(void*)> memory(nullptr, &std::free);
  memory.reset();
  memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  std::memset(memory.get(), 0xff, bytes);
  return memory.get();
}

// An array as a kernel sees it.
class Buffer {
 public:
  Buffer(Type type, int64_t count)
      : type_(type), count_(count), data_(new char[Bytes()], std::default_delete<char[]>()) {
    std::memset(data_.get(), 0xff, Bytes());
  }
  Buffer(Type type, const Numbers& numbers) : Buffer(type, static_cast<int64_t>(numbers.size())) {
    for (int64_t i = 0; i < count_; ++i) {
      if (type_ == Type::kFloat64) {
        reinterpret_cast<double*>(data_.get())[i] = numbers[i];
      } else if (type_ == Type::kFloat32) {
        reinterpret_cast<float*>(data_.get())[i] = static_cast<float>(numbers[i]);
      } else {
        const float number = static_cast<float>(numbers[i]);  // exact, see Random
        uint32_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        reinterpret_cast<uint16_t*>(data_.get())[i] = static_cast<uint16_t>(bits >> 16);
      }
    }
  }
  void* data() const { return data_.get(); }
  Type type() const { return type_; }
  int64_t count() const { return count_; }
  size_t Bytes() const {
    const size_t each = type_ == Type::kFloat64 ? 8 : type_ == Type::kFloat32 ? 4 : 2;
    return each * static_cast<size_t>(count_);
  }
  double at(int64_t i) const {
    if (type_ == Type::kFloat64) return reinterpret_cast<const double*>(data_.get())[i];
    if (type_ == Type::kFloat32) return reinterpret_cast<const float*>(data_.get())[i];
    const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<uint16_t*>(data_.get())[i]) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
  }

 private:
  Type type_;
  int64_t count_;
  std::shared_ptr<char> data_;
};

// What a kernel should compute, and the sum of the terms' magnitudes, which bounds its rounding.
struct Sums {
  explicit Sums(int64_t count) : value(count), magnitude(count) {}
  void Add(int64_t i, double term, double size) {
    value[i] += term;
    magnitude[i] += size;
  }
  Numbers value, magnitude;
  double rounding = 0;  // of the terms themselves, beside the sum's
};

inline void* NoScratch(size_t) { throw std::bad_alloc(); }

class Harness {
 public:
  explicit Harness(uint64_t seed) : random_(seed) {}

  int Report() const {
    std::printf("%ld shapes, instruction sets:", static_cast<long>(shapes_));
    for (const Kernels* kernels : All()) std::printf(" %s", kernels->name);
    std::printf("\n%ld passed, %ld failed\n", static_cast<long>(passed_),
                static_cast<long>(failed_));
    return failed_ == 0 && passed_ > 0 ? 0 : 1;
  }

 protected:
  int64_t Draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool Once(int64_t in) { return Draw(1, in) == 1; }

  // Of 8 significant bits, so that they are the same in every type.
  Numbers Random(int64_t count) {
    Numbers numbers(count);
    for (double& number : numbers) number = static_cast<double>(Draw(-255, 255)) / 128;
    return numbers;
  }

  // An epilogue at random, most often none, and its operands, which live as long as it does.
  struct Ending {
    Epilogue epilogue;
    std::vector<Buffer> operands;
  };
  // Of results whose last axis are the channels; makes of sums what it makes of results.
  Ending AnEnding(Type sums, Type results, int64_t channels, Sums* y) {
    Ending ending;
    if (!Once(3)) return ending;
    Epilogue& to = ending.epilogue;
    const int64_t count = static_cast<int64_t>(y->value.size());
    const auto add = [&](Type type, const Numbers& numbers) {
      for (int64_t i = 0; i < count; ++i) {
        const double term = numbers[i % static_cast<int64_t>(numbers.size())];
        y->Add(i, term, std::abs(term));
      }
      ending.operands.emplace_back(type, numbers);
      return ending.operands.back().data();
    };
    if (Once(2)) to.bias = add(sums, Random(channels));
    if (count > 0 && Once(2)) to.residual = add(results, Random(count));
    if (Once(2)) to.low = static_cast<double>(Draw(-8, 0)) / 8;
    if (Once(3)) to.high = static_cast<double>(Draw(0, 24)) / 8;
    for (double& value : y->value) value = std::min(std::max(value, to.low), to.high);
    to.there = true;
    return ending;
  }

  static std::vector<const Kernels*> All() {
    std::vector<const Kernels*> all = {&kKernelsPortable};
#if defined(__x86_64__)
    if (Has(Isa::kAvx2)) all.push_back(&kKernelsAvx2);
    if (Has(Isa::kAvx512)) all.push_back(&kKernelsAvx512);
#ifdef BANDJAX_AVX512BF16
    if (Has(Isa::kAvx512Bf16)) all.push_back(&kKernelsAvx512Bf16);
#endif
#ifdef BANDJAX_AMX
    if (Has(Isa::kAmx)) all.push_back(&kKernelsAmx);
#endif
#endif
    return all;
  }

  // Runs a kernel of every instruction set on new buffers and compares. `fill` tells its arguments
  // of the results.
  template <typename Args>
  void Check(const char* what, const std::string& shape,
             void (*Kernels::*kernel)(const Args&, Pool*), const Args& args,
             const std::vector<std::pair<Type, const Sums*>>& expected,
             const std::function<void(Args*, const std::vector<Buffer>&)>& fill) {
    for (const Kernels* kernels : All()) {
      std::vector<Buffer> results, again;
      for (int64_t threads : {4, 1}) {
        std::vector<Buffer>& out = threads > 1 ? results : again;
        for (const auto& part : expected) {
          out.emplace_back(part.first, static_cast<int64_t>(part.second->value.size()));
        }
        Args with_results = args;
        fill(&with_results, out);
        ThreadedPool pool(
            threads, [this](std::function<void()> work) { workers_.Schedule(std::move(work)); });
        // The pool's own scratch memory as well.
        if (shapes_ % 4 > 0) pool.scratch = &FreshScratch, pool.shared = &FreshShared;
        (kernels->*kernel)(with_results, &pool);
      }
      std::string fault;
      for (size_t part = 0; part < results.size() && fault.empty(); ++part) {
        fault = Compare(results[part], *expected[part].second);
        if (fault.empty() &&
            std::memcmp(results[part].data(), again[part].data(), results[part].Bytes()) != 0) {
          fault = "four threads and one differ";
        }
      }
      ++(fault.empty() ? passed_ : failed_);
      if (!fault.empty() && failed_ <= 20) {
        std::printf("%s, %s, %s: %s\n", what, kernels->name, shape.c_str(), fault.c_str());
      }
    }
  }

  static std::string Compare(const Buffer& actual, const Sums& expected) {
    const double unit = actual.type() == Type::kFloat64 ? 0x1p-53 : 0x1p-24;
    for (int64_t i = 0; i < actual.count(); ++i) {
      double bound = (16 * unit + expected.rounding) * expected.magnitude[i];
      if (actual.type() == Type::kBFloat16) bound += 0x1.01p-8 * std::abs(expected.value[i]);
      const double gap = std::abs(actual.at(i) - expected.value[i]);
      if (gap <= bound) continue;  // not so for a NaN
      return "element " + std::to_string(i) + " of " + std::to_string(actual.count()) + " is " +
             std::to_string(actual.at(i)) + ", not " + std::to_string(expected.value[i]);
    }
    return "";
  }

  Workers workers_{3};
  std::mt19937_64 random_;
  int64_t shapes_ = 0, passed_ = 0, failed_ = 0;
};

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_FUZZ_H_
