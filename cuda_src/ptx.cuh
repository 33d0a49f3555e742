// Every operation that the language does not have, one line of PTX each. No algorithm.
// Called by sync.cuh, row_group.cuh and select.cuh. The CPU harness replaces this one file.
// Scope: all acquire/release/relaxed operations are at .gpu scope on global memory.
#pragma once
#include "params.cuh"

namespace ptx {

__device__ __forceinline__ u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(p)) : "memory");
  return v;
}

__device__ __forceinline__ u32 load_relaxed(const u32* p) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(p)) : "memory");
  return v;
}

__device__ __forceinline__ void store_release(u32* p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}

__device__ __forceinline__ void store_relaxed(u32* p, u32 v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}

__device__ __forceinline__ void add_relaxed(u32* p, u32 v) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}

__device__ __forceinline__ void add_release(u32* p, u32 v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}

__device__ __forceinline__ u32 fetch_add_relaxed(u32* p, u32 v) {
  u32 old;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(p)), "r"(v)
               : "memory");
  return old;
}

// A word of shared memory that other threads add to meanwhile: any of its values will do.
__device__ __forceinline__ u32 load_shared(const u32* p) { return *reinterpret_cast<const volatile u32*>(p); }

// The lanes of this warp below the calling one.
__device__ __forceinline__ u32 lanes_below() {
  u32 v;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(v));
  return v;
}

// Lets the SM's other warps run between two looks at a flag.
__device__ __forceinline__ void pause() { asm volatile("nanosleep.u32 20;"); }

#ifdef DRVTOPK_WAIT_LIMIT
// The debug build's end of a wait that took too long: one line, and the launch fails with an error.
__device__ __noinline__ void give_up(u32 what, u32 wanted, u32 seen) {
  const char* const names[] = {"hello", "again", "go", "barrier"};
  printf("drvtopk: block %u gave up waiting (%s): wanted %u, saw %u\n", blockIdx.x, names[what], wanted, seen);
  __trap();
}
#endif

}  // namespace ptx
