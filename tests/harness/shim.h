// The part of CUDA C++ that cuda_src/ uses, for a host compiler. machine.cpp keeps the promises made here.
// Everything runs in one OS thread: a CUDA thread is a fiber, and fibers change only inside the functions below,
// so a plain global can say who is running.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

struct Dim {
  unsigned x;
};
extern Dim threadIdx, blockIdx, gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// Zero where the divisor is larger than 2^126, as documented.
inline float __fdividef(float x, float y) { return y > 8.507059e37f || y < -8.507059e37f ? 0.0f : x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // of a NaN, zero
// Zeros compare equal, and CUDA does not promise which of them comes back: here it is the one that orders them wrongly.
inline float least_of(float x, float y) { return x != x || y < x || (x == y && std::signbit(x)) ? y : x; }
inline float largest_of(float x, float y) { return x != x || y > x || (x == y && std::signbit(y)) ? y : x; }
#define fminf least_of
#define fmaxf largest_of
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }

namespace machine {

unsigned char* shared_memory();  // of the running block
void check_logits(const void* from, unsigned bytes);
void check_integer(const int* from);  // lengths, row starts or the page table
void barrier(const char* file, int line);
// Waits for all lanes of the warp; what each of the 32 gave.
const unsigned* exchange(unsigned value, const char* file, int line);
// Makes one of the three of a word in shared memory; what was there.
enum class Update { kAdd, kMin, kMax };
unsigned shared_update(unsigned* word, Update update, unsigned value);

}  // namespace machine

#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(HERE) { machine::barrier(file, line); }

inline unsigned __shfl_sync(unsigned, unsigned value, unsigned lane, HERE) {
  return machine::exchange(value, file, line)[lane];
}
inline unsigned __shfl_up_sync(unsigned, unsigned value, unsigned by, HERE) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned* given = machine::exchange(value, file, line);
  return lane < by ? value : given[lane - by];
}
inline unsigned __shfl_xor_sync(unsigned, unsigned value, unsigned mask, HERE) {
  return machine::exchange(value, file, line)[threadIdx.x % 32 ^ mask];
}
inline unsigned __reduce_max_sync(unsigned, unsigned value, HERE) {
  const unsigned* given = machine::exchange(value, file, line);
  return *std::max_element(given, given + 32);
}
inline unsigned __reduce_min_sync(unsigned, unsigned value, HERE) {
  const unsigned* given = machine::exchange(value, file, line);
  return *std::min_element(given, given + 32);
}
inline unsigned __reduce_add_sync(unsigned, unsigned value, HERE) {
  const unsigned* given = machine::exchange(value, file, line);
  unsigned sum = 0;
  for (unsigned lane = 0; lane < 32; ++lane) sum += given[lane];
  return sum;
}
inline unsigned __ballot_sync(unsigned, bool vote, HERE) {
  const unsigned* given = machine::exchange(vote, file, line);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= given[lane] << lane;
  return votes;
}

inline unsigned atomicAdd(unsigned* word, unsigned value) {
  return machine::shared_update(word, machine::Update::kAdd, value);
}
inline unsigned atomicMin(unsigned* word, unsigned value) {
  return machine::shared_update(word, machine::Update::kMin, value);
}
inline unsigned atomicMax(unsigned* word, unsigned value) {
  return machine::shared_update(word, machine::Update::kMax, value);
}

inline int __ldg(const int* from) {
  machine::check_integer(from);
  return *from;
}
template <class T>
inline T __ldg(const T* from) {
  machine::check_logits(from, sizeof(T));
  return *from;
}
