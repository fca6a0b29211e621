// Vectors of the instruction set in hand: BANDJAX_ISA names its namespace, BANDJAX_BYTES is the
// width of a register, BANDJAX_REGISTERS how many of them may hold sums.
#ifndef BANDJAX_FFI_CPU_SIMD_H_
#define BANDJAX_FFI_CPU_SIMD_H_

#include "kernels.h"

#define BANDJAX_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define BANDJAX_NOINLINE __attribute__((noinline))
#else
#define BANDJAX_NOINLINE __attribute__((noinline, noclone))
#endif

namespace bandjax {
namespace BANDJAX_ISA {

template <typename A>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(BANDJAX_BYTES)));
  typedef int32_t Index __attribute__((vector_size(BANDJAX_BYTES)));
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(BANDJAX_BYTES)));
  typedef int64_t Index __attribute__((vector_size(BANDJAX_BYTES)));
};
template <typename A>
using Vec = typename Simd<A>::Vec;
template <typename A>
constexpr int kLanes = BANDJAX_BYTES / sizeof(A);

// Rows of a register tile `vectors` wide (1, 2 or 4), the largest, and of the next smaller one:
// few sizes, for the sake of the compiler's time.
constexpr int TileRows(int vectors) {
  return BANDJAX_REGISTERS / vectors < 12 ? BANDJAX_REGISTERS / vectors : 12;
}
constexpr int NextTileRows(int rows) { return rows > 4 ? 4 : rows / 2; }

typedef uint16_t Half __attribute__((vector_size(BANDJAX_BYTES / 2)));
typedef uint32_t Word __attribute__((vector_size(BANDJAX_BYTES)));

BANDJAX_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
BANDJAX_INLINE int64_t Max(int64_t a, int64_t b) { return a < b ? b : a; }
BANDJAX_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename A>
BANDJAX_INLINE Vec<A> Load(const A* p) {
  Vec<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename A>
BANDJAX_INLINE Vec<A> Load(const BFloat16* p) {
  Half half;
  __builtin_memcpy(&half, p, sizeof half);
  return (Vec<A>)(__builtin_convertvector(half, Word) << 16);
}
// A product as it is rounded, which no compiler makes part of a multiply-add: of a sum of two
// products it may do so with either, here one and there the other.
template <typename A>
BANDJAX_INLINE Vec<A> Rounded(Vec<A> product) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(product));
#elif defined(__FMA__)
  __asm__("" : "+x"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#endif
  return product;
}

template <typename A>
BANDJAX_INLINE void Store(A* p, Vec<A> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <typename A>
BANDJAX_INLINE void Store(BFloat16* p, Vec<A> v) {
  const Word bits = (Word)v;
  const Word nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Word quiet_nan = (bits >> 16) | 0x40;
  const Word nan = (Word)((bits & 0x7fffffff) > 0x7f800000);
  const Half half = __builtin_convertvector((nan & quiet_nan) | (~nan & nearest_even), Half);
  __builtin_memcpy(p, &half, sizeof half);
}

// Lane i of the result is lane index[i] of a, or of b when that exceeds a's lanes.
template <typename A>
BANDJAX_INLINE Vec<A> Shuffle(Vec<A> a, Vec<A> b, typename Simd<A>::Index index) {
#if defined(__clang__)
  Vec<A> result;
  for (int i = 0; i < kLanes<A>; ++i) {
    result[i] = index[i] < kLanes<A> ? a[index[i]] : b[index[i] - kLanes<A>];
  }
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// The first `count` lanes, where fewer are there; the others are zero.
template <typename A, typename S>
inline Vec<A> LoadPart(const S* p, int64_t count) {
  S lanes[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return Load<A>(lanes);
}
template <typename A, typename S>
inline void StorePart(S* p, Vec<A> v, int64_t count) {
  S lanes[kLanes<A>];
  Store<A>(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}
template <typename A, typename S>
BANDJAX_INLINE Vec<A> LoadUpTo(const S* p, int64_t count) {
  if (__builtin_expect(count >= kLanes<A>, 1)) return Load<A>(p);
  return count > 0 ? LoadPart<A>(p, count) : Vec<A>{};
}
template <typename A, typename S>
BANDJAX_INLINE void StoreUpTo(S* p, Vec<A> v, int64_t count) {
  if (__builtin_expect(count >= kLanes<A>, 1)) {
    Store<A>(p, v);
  } else if (count > 0) {
    StorePart<A>(p, v, count);
  }
}

// Large results are not read again before they have left the cache: stored past it, their lines
// need not be read first. But only lines that are written whole, `together` bytes at once, and of
// `all` bytes so many that the next kernel would not find them in a cache.
constexpr bool Streams(int64_t together, int64_t all) {
  constexpr int64_t kLine = 64, kCached = 4 << 20;
  return together >= kLine && all >= kCached;
}

template <typename A>
BANDJAX_INLINE void Stream(A* p, Vec<A> v) {
#if defined(__clang__) && BANDJAX_BYTES >= 32
  __builtin_nontemporal_store(v, reinterpret_cast<Vec<A>*>(p));
#elif BANDJAX_BYTES == 64
  if constexpr (sizeof(A) == 4) {
    __builtin_ia32_movntps512(p, v);
  } else {
    __builtin_ia32_movntpd512(p, v);
  }
#elif BANDJAX_BYTES == 32
  if constexpr (sizeof(A) == 4) {
    __builtin_ia32_movntps256(p, v);
  } else {
    __builtin_ia32_movntpd256(p, v);
  }
#else
  Store<A>(p, v);
#endif
}
template <typename A>
BANDJAX_INLINE void Stream(BFloat16* p, Vec<A> v) {
#if BANDJAX_BYTES == 64
  typedef long long Words __attribute__((vector_size(32)));
  alignas(32) BFloat16 lanes[kLanes<A>];
  Store<A>(lanes, v);
  Words words;
  __builtin_memcpy(&words, lanes, sizeof words);
#if defined(__clang__)
  __builtin_nontemporal_store(words, reinterpret_cast<Words*>(p));
#else
  __builtin_ia32_movntdq256(reinterpret_cast<Words*>(p), words);
#endif
#else
  Store<A>(p, v);
#endif
}
// StoreUpTo, past the cache where `stream` says so, the vector is whole and its place aligned.
template <typename A, typename S>
BANDJAX_INLINE void StreamUpTo(S* p, Vec<A> v, int64_t count, bool stream) {
  constexpr uintptr_t kBytes = kLanes<A> * sizeof(S);
  if (stream && count >= kLanes<A> && reinterpret_cast<uintptr_t>(p) % kBytes == 0) {
    Stream<A>(p, v);
  } else {
    StoreUpTo<A>(p, v, count);
  }
}
// What was stored past the cache is seen by other threads after this.
BANDJAX_INLINE void EndStream([[maybe_unused]] bool stream) {
#if BANDJAX_BYTES >= 32
  if (stream) __builtin_ia32_sfence();
#endif
}

// Turns a square of vectors by swapping ever smaller blocks off the diagonal.
template <typename A, int kSize = kLanes<A> / 2>
BANDJAX_INLINE void Transpose(Vec<A> (&rows)[kLanes<A>]) {
  constexpr int kLane = kLanes<A>;
  typename Simd<A>::Index upper, lower;
#pragma GCC unroll 16
  for (int j = 0; j < kLane; ++j) {
    upper[j] = j & kSize ? kLane + j - kSize : j;
    lower[j] = j & kSize ? kLane + j : j + kSize;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLane; ++i) {
    if (i & kSize) continue;
    const Vec<A> a = rows[i], b = rows[i + kSize];
    rows[i] = Shuffle<A>(a, b, upper);
    rows[i + kSize] = Shuffle<A>(a, b, lower);
  }
  if constexpr (kSize > 1) Transpose<A, kSize / 2>(rows);
}

// Calls body(task) for every task, on the pool's threads.
template <typename Body>
inline void ParallelFor(Pool* pool, int64_t tasks, Body body) {
  pool->run(
      pool, tasks, [](void* data, int64_t task) { (*static_cast<Body*>(data))(task); }, &body);
}

// Hands out consecutive pieces of a thread's scratch memory.
class Arena {
 public:
  Arena(Pool* pool, size_t bytes)
      : next_(static_cast<char*>(pool->scratch(bytes))), end_(next_ + bytes) {}
  template <typename A>
  A* Take(int64_t count) {
    A* piece = reinterpret_cast<A*>(next_);
    next_ += Bytes<A>(count);
    if (next_ > end_) __builtin_trap();  // The caller's sum is wrong.
    return piece;
  }
  template <typename A>
  static constexpr size_t Bytes(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(A) + 63) / 64 * 64;
  }

 private:
  char* next_;
  char* end_;
};

}  // namespace BANDJAX_ISA
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_SIMD_H_
