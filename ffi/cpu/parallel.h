// Runs tasks on XLA's own CPU threads.
#ifndef BANDJAX_FFI_CPU_PARALLEL_H_
#define BANDJAX_FFI_CPU_PARALLEL_H_

#include <cstdint>
#include <functional>

#include "kernels.h"

namespace bandjax {

// A pool that gives work to `schedule` and takes part itself. A task is not bound to a thread, so
// the caller alone could do all of it: waiting for threads that are busy elsewhere cannot hang.
class ThreadedPool : public Pool {
 public:
  using Schedule = std::function<void(std::function<void()>)>;

  // `threads` counts those that `schedule` reaches.
  ThreadedPool(int64_t threads, Schedule schedule);

  ~ThreadedPool();
  ThreadedPool(const ThreadedPool&) = delete;
  ThreadedPool& operator=(const ThreadedPool&) = delete;

  // The scratch memory is kept by each thread for its next task; the call allocates nothing then.
  static void* Scratch(size_t bytes);

 private:
  static void Run(Pool* pool, int64_t tasks, void (*body)(void*, int64_t), void* data);
  static void* Shared(Pool* pool, size_t bytes);

  void* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  Schedule schedule_;
};

}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_PARALLEL_H_
