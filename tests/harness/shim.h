// The part of CUDA C++ that cuda_src/ uses, for a host compiler. machine.cpp keeps the promises made here.
// Everything runs in one OS thread: a CUDA thread is a fiber, and fibers change only inside the functions below,
// so a plain global can say who is running.
#pragma once
#include <algorithm>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Index {
  unsigned x;
};
extern Index threadIdx, blockIdx, gridDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

using std::min;

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

namespace machine {

unsigned char* shared_memory();  // of the running block
void check_logits(const void* from, unsigned bytes);
void barrier(const char* file, int line);
// Waits for all lanes of the warp; what each of the 32 gave.
const unsigned* exchange(unsigned value, const char* file, int line);
unsigned shared_add(unsigned* word, unsigned value);

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
inline unsigned __ballot_sync(unsigned, bool vote, HERE) {
  const unsigned* given = machine::exchange(vote, file, line);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= given[lane] << lane;
  return votes;
}

inline unsigned atomicAdd(unsigned* word, unsigned value) { return machine::shared_add(word, value); }

inline int __ldg(const int* from) { return *from; }
template <class T>
inline T __ldg(const T* from) {
  machine::check_logits(from, sizeof(T));
  return *from;
}
