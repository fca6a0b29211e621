// A block of threads emulated on a CPU, so that kernels can be tested without a GPU.
//
// Every thread of a block is a fiber that runs until it reaches a barrier; blocks run one after
// another. What goes unnoticed on a lucky GPU is made to show:
//  - shared memory ends where requested, at a page nobody may touch, and starts as NaN;
//  - an asynchronous copy fills its target with NaN and delivers only when it is waited for;
//  - a matrix multiply-add delivers at the next barrier of its warp's block, in the fragment
//    layout of the PTX manual, and stops the program on an operand that was not rounded;
//  - threads run in an order that the tests vary: a result that depends on it is a race;
//  - a barrier that some threads do not reach stops the program.

#ifndef BANDJAX_FFI_CUDA_BLOCK_EMULATED_H_
#define BANDJAX_FFI_CUDA_BLOCK_EMULATED_H_

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "numbers.h"

namespace bandjax::cuda {

using Stream = void*;

// In which order the threads of a block run between two barriers.
enum class Order { kForward, kBackward, kShuffled };
inline Order emulated_order = Order::kForward;

[[noreturn]] inline void EmulationError(const char* message) {
  std::fprintf(stderr, "emulation: %s\n", message);
  std::exit(2);
}

// Memory that ends at a page nobody may touch: to read or write beyond it (by more than what rounds
// its size up to 16 bytes) stops the program.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t rounded = CeilDiv<size_t>(bytes, 16) * 16;
    const size_t front = CeilDiv(rounded, page) * page;
    mapped_ = front + page;
    memory_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) EmulationError("out of memory");
    mprotect(static_cast<unsigned char*>(memory_) + front, page, PROT_NONE);
    data_ = static_cast<unsigned char*>(memory_) + front - rounded;
    std::memset(data_, 0xff, rounded);  // NaN as a float32, and as a bfloat16.
  }
  GuardedMemory(GuardedMemory&& other) noexcept
      : memory_(other.memory_), mapped_(other.mapped_), data_(other.data_) {
    other.memory_ = nullptr;
  }
  GuardedMemory& operator=(GuardedMemory&&) = delete;
  ~GuardedMemory() {
    if (memory_ != nullptr) munmap(memory_, mapped_);
  }
  unsigned char* data() const { return data_; }

 private:
  void* memory_;
  size_t mapped_;
  unsigned char* data_;
};

class Block;

// The state that the threads of an emulated block share.
class EmulatedBlock {
 public:
  EmulatedBlock(int64_t index, int threads, size_t shared);
  void Run(const std::function<void(Block&)>& body);

 private:
  friend class Block;

  struct Copy {
    unsigned char* target;
    const unsigned char* source;
    int bytes;
  };
  struct Multiply {
    bool bf16;
    float* d;
    uint32_t a[4];
    uint32_t b[2];
  };
  struct Fiber {
    ucontext_t context;
    unsigned char* stack = nullptr;
    void* sanitizer_state = nullptr;
    bool finished = false;
    int barriers = 0;
    std::deque<std::vector<Copy>> groups;  // Committed, oldest first.
    std::vector<Copy> open;
    std::vector<Multiply> multiplies;
  };

  static constexpr size_t kStack = size_t{256} << 10;
  static inline thread_local EmulatedBlock* running = nullptr;

  static unsigned char* Stack(size_t thread);
  static void Enter();
  void SwitchTo(int thread);
  void SwitchBack(bool leaving);
  void MultiplyWarps();
  static void MultiplyOne(const std::vector<Multiply*>& lanes);

  int64_t index_;
  GuardedMemory shared_;
  std::vector<Fiber> fibers_;
  ucontext_t scheduler_;
  void* scheduler_sanitizer_state_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
  int current_ = 0;
  const std::function<void(Block&)>* body_ = nullptr;
};

class Block {
 public:
  Block(EmulatedBlock* state, int thread) : state_(state), thread_(thread) {}

  int Thread() const { return thread_; }
  int Threads() const { return static_cast<int>(state_->fibers_.size()); }
  int64_t Index() const { return state_->index_; }
  unsigned char* Shared() const { return state_->shared_.data(); }

  void Sync() {
    ++fiber().barriers;
    state_->SwitchBack(false);
  }

  void CopyAsync16(void* target, const void* source, int bytes) {
    if (reinterpret_cast<uintptr_t>(target) % 16 != 0 ||
        (bytes > 0 && reinterpret_cast<uintptr_t>(source) % 16 != 0)) {
      EmulationError("asynchronous copy from or to an address that is no multiple of 16");
    }
    std::memset(target, 0xff, 16);
    fiber().open.push_back(
        {static_cast<unsigned char*>(target), static_cast<const unsigned char*>(source), bytes});
  }
  void CommitCopies() { fiber().groups.push_back(std::move(fiber().open)), fiber().open.clear(); }
  template <int kPending>
  void WaitForCopies() {
    auto& groups = fiber().groups;
    for (; groups.size() > kPending; groups.pop_front()) {
      for (const auto& copy : groups.front()) {
        std::memset(copy.target, 0, 16);
        std::memcpy(copy.target, copy.source, copy.bytes);
      }
    }
  }

  void MmaTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    fiber().multiplies.push_back({false, d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  }
  void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    fiber().multiplies.push_back({true, d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  }

 private:
  EmulatedBlock::Fiber& fiber() const { return state_->fibers_[thread_]; }

  EmulatedBlock* state_;
  int thread_;
};

inline EmulatedBlock::EmulatedBlock(int64_t index, int threads, size_t shared)
    : index_(index), shared_(shared), fibers_(threads) {}

// The stack of a thread, the same for every block.
inline unsigned char* EmulatedBlock::Stack(size_t thread) {
  static thread_local std::vector<std::unique_ptr<unsigned char[]>> stacks;
  while (stacks.size() <= thread) stacks.emplace_back(new unsigned char[kStack]);
#ifdef __SANITIZE_ADDRESS__
  // A fiber is left for good in the middle of a function: its marks would outlast it.
  __asan_unpoison_memory_region(stacks[thread].get(), kStack);
#endif
  return stacks[thread].get();
}

inline void EmulatedBlock::Enter() {
  EmulatedBlock& self = *running;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_size_);
#endif
  const int thread = self.current_;
  Block block(&self, thread);
  (*self.body_)(block);
  self.fibers_[thread].finished = true;
  self.SwitchBack(true);
}

inline void EmulatedBlock::SwitchTo(int thread) {
  Fiber& fiber = fibers_[thread];
  current_ = thread;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_sanitizer_state_, fiber.stack, kStack);
#endif
  swapcontext(&scheduler_, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler_sanitizer_state_, nullptr, nullptr);
#endif
}

inline void EmulatedBlock::SwitchBack([[maybe_unused]] bool leaving) {
  Fiber& fiber = fibers_[current_];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fiber.sanitizer_state, scheduler_stack_,
                                 scheduler_stack_size_);
#endif
  swapcontext(&fiber.context, &scheduler_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.sanitizer_state, &scheduler_stack_, &scheduler_stack_size_);
#endif
}

inline void EmulatedBlock::Run(const std::function<void(Block&)>& body) {
  running = this;
  body_ = &body;
  const int threads = static_cast<int>(fibers_.size());
  for (size_t thread = 0; thread < fibers_.size(); ++thread) {
    Fiber& fiber = fibers_[thread];
    fiber.stack = Stack(thread);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &EmulatedBlock::Enter, 0);
  }
  for (int phase = 0;; ++phase) {
    // 41 has no divisor in common with a power of two, nor with 96 = 3 * 32 and the like.
    for (int i = 0; i < threads; ++i) {
      const int shuffled = static_cast<int>((int64_t{i} * 41 + 7 * phase) % threads);
      SwitchTo(emulated_order == Order::kForward    ? i
               : emulated_order == Order::kBackward ? threads - 1 - i
                                                    : shuffled);
    }
    int finished = 0;
    for (const Fiber& fiber : fibers_) {
      finished += fiber.finished;
      if (fiber.barriers != fibers_[0].barriers) EmulationError("a barrier some threads miss");
    }
    MultiplyWarps();
    if (finished == threads) return;
    if (finished != 0) EmulationError("some threads left while others wait at a barrier");
  }
}

inline void EmulatedBlock::MultiplyWarps() {
  const size_t threads = fibers_.size();
  for (size_t warp = 0; warp < threads; warp += 32) {
    const size_t count = fibers_[warp].multiplies.size();
    for (size_t lane = warp; lane < Min(warp + 32, threads); ++lane) {
      if (fibers_[lane].multiplies.size() != count) EmulationError("lanes multiply unequally");
      if (fibers_[lane].finished && count > 0) EmulationError("products that nobody waits for");
    }
    if (count > 0 && warp + 32 > threads) EmulationError("a product by less than a warp");
    std::vector<Multiply*> lanes(32);
    for (size_t i = 0; i < count; ++i) {
      for (size_t lane = 0; lane < 32; ++lane) lanes[lane] = &fibers_[warp + lane].multiplies[i];
      MultiplyOne(lanes);
    }
    for (size_t lane = warp; lane < Min(warp + 32, threads); ++lane) {
      fibers_[lane].multiplies.clear();
    }
  }
}

// The PTX manual, "Matrix Fragments for mma.m16n8k8" (.tf32) and "... mma.m16n8k16" (.bf16), with
// group = lane >> 2 and t = lane & 3:
//   A, tf32: row = group (+8 for a1 and a3), column = t (+4 for a2 and a3);
//   B, tf32: row = t (+4 for b1), column = group;
//   A, bf16: two values a register: row = group (+8 for a1 and a3),
//            column = 2t and 2t+1 (+8 for a2 and a3), the lower half first;
//   B, bf16: row = 2t and 2t+1 (+8 for b1), column = group;
//   C, D:    row = group (+8 for c2 and c3), column = 2t (+1 for c1 and c3).
inline void EmulatedBlock::MultiplyOne(const std::vector<Multiply*>& lanes) {
  double a[16][16] = {}, b[16][8] = {};
  const bool bf16 = lanes[0]->bf16;
  const int depth = bf16 ? 16 : 8;
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, t = lane & 3;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i & 1);
      const uint32_t bits = lanes[lane]->a[i];
      if (bf16) {
        const int column = 2 * t + 8 * (i >> 1);
        a[row][column] = FromBits(bits << 16);
        a[row][column + 1] = FromBits(bits & 0xffff0000u);
      } else {
        if (bits & 0x1fffu) EmulationError("an operand that was not rounded to tf32");
        a[row][t + 4 * (i >> 1)] = FromBits(bits);
      }
    }
    for (int i = 0; i < 2; ++i) {
      const uint32_t bits = lanes[lane]->b[i];
      if (bf16) {
        b[2 * t + 8 * i][group] = FromBits(bits << 16);
        b[2 * t + 8 * i + 1][group] = FromBits(bits & 0xffff0000u);
      } else {
        if (bits & 0x1fffu) EmulationError("an operand that was not rounded to tf32");
        b[t + 4 * i][group] = FromBits(bits);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, t = lane & 3;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i >> 1), column = 2 * t + (i & 1);
      double sum = lanes[lane]->d[i];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      lanes[lane]->d[i] = static_cast<float>(sum);
    }
  }
}

template <class Body>
const char* Launch(const typename Body::Params& params, int64_t blocks, int threads, size_t shared,
                   Stream) {
  if (threads < 1 || threads > Body::kThreads) EmulationError("threads outside the launch bounds");
  if (shared > (size_t{99} << 10)) EmulationError("more shared memory than every GPU has");
  for (int64_t i = 0; i < blocks; ++i) {
    EmulatedBlock block(i, threads, shared);
    block.Run([&](Block& b) { Body::Run(params, b); });
  }
  return nullptr;
}

inline const char* Zero(void* at, size_t bytes, Stream) {
  if (bytes > 0) std::memset(at, 0, bytes);
  return nullptr;
}

}  // namespace bandjax::cuda

#endif  // BANDJAX_FFI_CUDA_BLOCK_EMULATED_H_
