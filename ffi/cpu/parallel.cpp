#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef __unix__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace bandjax {
namespace {

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Shared with the helpers, of which some may start only after all is done.
struct Job {
  int64_t tasks;
  void (*body)(void*, int64_t);
  void* data;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> left;
  std::atomic<bool> no_memory{false};
  std::mutex mutex;
  std::condition_variable finished;

  void Work() {
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      try {
        body(data, task);
      } catch (const std::bad_alloc&) {  // On another thread nobody would catch it.
        no_memory.store(true, std::memory_order_relaxed);
      }
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }

  void Wait() {
    // A task is short: look a while before going to sleep.
    for (int i = 0; i < 2000; ++i) {
      if (left.load(std::memory_order_acquire) == 0) return;
      Pause();
    }
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [this] { return left.load(std::memory_order_acquire) == 0; });
  }
};

// Helpers that have done their part stay for a moment: of a network's inference the next call comes
// within microseconds, and to wake a thread takes tens of them. Who has a job takes one of those
// that wait, and leaves the job for it; who leaves takes itself, and where it can't, since a job is
// on its way to it, it goes on waiting.
class Waiting {
 public:
  // Leaves a job for a waiting helper, if there is one.
  bool Give(const std::shared_ptr<Job>& job) {
    // In a process that was forked, whoever held the lock is not there any more.
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || waiting_.load(std::memory_order_relaxed) == 0) return false;
    jobs_.push_back(job);
    if (!Take()) {
      jobs_.pop_back();
      return false;
    }
    left_.store(static_cast<int>(jobs_.size()), std::memory_order_release);
    return true;
  }

  // Works on a job, and on those that come soon after it.
  void Help(std::shared_ptr<Job> job) {
    while (job != nullptr) {
      job->Work();
      job = Next();
    }
  }

 private:
  bool Take() {
    int there = waiting_.load(std::memory_order_relaxed);
    while (there > 0) {
      if (waiting_.compare_exchange_weak(there, there - 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  std::shared_ptr<Job> Next() {
    using Clock = std::chrono::steady_clock;
    constexpr auto kLong = std::chrono::microseconds(60);
    constexpr int kLooks = 50;  // until others may have the processor
    waiting_.fetch_add(1, std::memory_order_acq_rel);
    const auto end = Clock::now() + kLong;
    for (;;) {
      for (int i = 0; i < kLooks; ++i) {
        if (left_.load(std::memory_order_acquire) > 0) {
          std::lock_guard<std::mutex> lock(mutex_);
          if (!jobs_.empty()) {
            std::shared_ptr<Job> job = std::move(jobs_.back());
            jobs_.pop_back();
            left_.store(static_cast<int>(jobs_.size()), std::memory_order_release);
            return job;
          }
        }
        Pause();
      }
      if (Clock::now() > end && Take()) return nullptr;
#ifdef __unix__
      sched_yield();
#endif
    }
  }

  std::atomic<int> waiting_{0}, left_{0};
  std::mutex mutex_;
  std::vector<std::shared_ptr<Job>> jobs_;
};
Waiting& TheWaiting() {
  static auto* waiting = new Waiting;  // to the program's end
  return *waiting;
}

struct Memory {
  void* begin = nullptr;
  size_t bytes = 0;
  ~Memory() { std::free(begin); }
};

// The last call's shared memory, for the next: calls mostly follow one another, and fresh pages of
// the system cost as much as the work on them.
struct Spare {
  std::mutex mutex;
  void* begin = nullptr;
  size_t bytes = 0;
};
Spare& TheSpare() {
  static auto* spare = new Spare;  // to the program's end
  return *spare;
}

}  // namespace

ThreadedPool::ThreadedPool(int64_t threads, Schedule schedule)
    : Pool{&ThreadedPool::Run, &ThreadedPool::Scratch, &ThreadedPool::Shared,
           std::max<int64_t>(threads, 1)},
      schedule_(std::move(schedule)) {}

ThreadedPool::~ThreadedPool() {
  if (shared_ == nullptr) return;
  Spare& spare = TheSpare();
  std::lock_guard<std::mutex> lock(spare.mutex);
  if (spare.bytes < shared_bytes_) {
    std::swap(spare.begin, shared_);
    std::swap(spare.bytes, shared_bytes_);
  }
  std::free(shared_);
}

void* ThreadedPool::Shared(Pool* pool, size_t bytes) {
  auto* self = static_cast<ThreadedPool*>(pool);
  if (self->shared_bytes_ >= bytes) return self->shared_;
  std::free(self->shared_);
  self->shared_ = nullptr, self->shared_bytes_ = 0;
  {
    Spare& spare = TheSpare();
    std::lock_guard<std::mutex> lock(spare.mutex);
    if (spare.bytes >= bytes) {
      std::swap(spare.begin, self->shared_);
      std::swap(spare.bytes, self->shared_bytes_);
      return self->shared_;
    }
  }
  constexpr size_t kHuge = 2 << 20;
  const size_t unit = bytes < kHuge ? 4096 : kHuge;
  const size_t rounded = (bytes + unit - 1) / unit * unit;
  self->shared_ = std::aligned_alloc(unit, rounded);
  if (self->shared_ == nullptr) throw std::bad_alloc();
  self->shared_bytes_ = rounded;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (unit == kHuge) madvise(self->shared_, rounded, MADV_HUGEPAGE);
#endif
  return self->shared_;
}

void* ThreadedPool::Scratch(size_t bytes) {
  thread_local Memory memory;
  if (memory.bytes < bytes) {
    std::free(memory.begin);
    memory.bytes = (bytes + 4095) / 4096 * 4096;
    memory.begin = std::aligned_alloc(4096, memory.bytes);
    if (memory.begin == nullptr) {
      memory.bytes = 0;
      throw std::bad_alloc();
    }
  }
  return memory.begin;
}

void ThreadedPool::Run(Pool* pool, int64_t tasks, void (*body)(void*, int64_t), void* data) {
  const auto* self = static_cast<ThreadedPool*>(pool);
  if (tasks <= 0) return;
  const int64_t helpers = std::min(self->threads - 1, tasks - 1);
  if (helpers <= 0) {
    for (int64_t task = 0; task < tasks; ++task) body(data, task);
    return;
  }
  auto job = std::make_shared<Job>();
  job->tasks = tasks;
  job->body = body;
  job->data = data;
  job->left = tasks;
  Waiting& waiting = TheWaiting();
  for (int64_t i = 0; i < helpers; ++i) {
    if (!waiting.Give(job)) self->schedule_([job, &waiting] { waiting.Help(job); });
  }
  job->Work();
  job->Wait();
  if (job->no_memory.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

}  // namespace bandjax
