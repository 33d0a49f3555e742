// Every operation that the language does not have, one line of PTX each. No algorithm. The CPU harness replaces this
// one file. Scope: all acquire/release/relaxed operations on global memory are at .gpu scope, those on shared memory at
// .cluster scope.
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

// The lanes of this warp below the calling one. (A compiler would read the register that says so again at each use.)
__device__ __forceinline__ u32 lanes_below() { return (1u << threadIdx.x % 32) - 1; }

// The block's dynamic shared memory as a T. Its address depends on the block's place in a cluster, and a compiler that
// knows it as a symbol's asks for that place again wherever it needs the address. What was shuffled it has to keep, for
// which few registers are too few. All threads must call it.
template <class T>
__device__ __forceinline__ T& shared_as(unsigned char* dynamic) {
  u32 address = static_cast<u32>(__cvta_generic_to_shared(dynamic));
  if constexpr (kRegisters >= 64) address = __shfl_sync(0xffffffffu, address, 0);
  return *reinterpret_cast<T*>(__cvta_shared_to_generic(address));
}

// The same address in global memory, of which the compiler does not know how it came about: it is worked out here, not where it is used, and
// what is added to it is added in one instruction.
template <class T>
__device__ __forceinline__ T* opaque(T* p) {
  asm volatile("" : "+l"(p));
  __builtin_assume(__isGlobal(p));
  return p;
}

// The sum of `v` over this lane of the warp and all below it. A shuffle says whether there is such a lane, so a step is two
// instructions; where registers are few, three that the compiler can arrange. All 32 lanes must call it.
__device__ __forceinline__ u32 sum_upto(u32 v) {
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    if constexpr (kRegisters < 64) {
      const u32 left = __shfl_up_sync(0xffffffffu, v, d);
      if (threadIdx.x % 32 >= d) v += left;
    } else {
      asm volatile(
          "{\n\t.reg .pred p;\n\t.reg .u32 t;\n\tshfl.sync.up.b32 t|p, %0, %1, 0, 0xffffffff;\n\t@p add.u32 %0, %0, "
          "t;\n\t}"
          : "+r"(v)
          : "r"(d));
    }
  }
  return v;
}

// SMs of the GPU, or some more.
__device__ __forceinline__ u32 sms() {
  u32 v;
  asm("mov.u32 %0, %%nsmid;" : "=r"(v));
  return v;
}

// Lets the SM's other warps run between two looks at a flag.
__device__ __forceinline__ void pause() { asm volatile("nanosleep.u32 20;"); }

// The larger of two bfloat16 each, of a NaN and a number the number, unless NaN is the highest.
__device__ __forceinline__ u32 max_of_pairs(u32 a, u32 b) {
  u32 v;
  if constexpr (kNanHighest) {
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  } else {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  }
  return v;
}

// Programmatic dependent launch. Goes on when the predecessor on the stream has ended and what it wrote is visible: before
// that nothing is read or written that others may touch.
__device__ __forceinline__ void wait_for_predecessor() {
#if DRVTOPK_PDL
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// After this thread's last write: once all have said so, the next launch may begin.
__device__ __forceinline__ void let_successor_begin() {
#if DRVTOPK_PDL
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#ifdef DRVTOPK_WAIT_LIMIT
// The debug build's end of a wait that took too long: one line, and the launch fails with an error.
__device__ __noinline__ void give_up(u32 what, u32 wanted, u32 seen) {
  const char* const names[] = {"hello", "again", "go", "barrier", "mail"};
  printf("drvtopk: block %u gave up waiting (%s): wanted %u, saw %u\n", blockIdx.x, names[what], wanted, seen);
  __trap();
}
#endif

#if DRVTOPK_CLUSTER > 1
// This block's rank in its cluster.
__device__ __forceinline__ u32 cluster_rank() {
  u32 v;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
  return v;
}

// A barrier of all threads of a cluster, in two halves that every thread calls in turn: what any of them wrote before
// it arrived, in any block's shared memory, is visible to all that have waited.
// Warps arrive as a whole, whatever loop their lanes come from.
__device__ __forceinline__ void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// The same without the memory: it only tells that the blocks are there.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where `own`, a word of this block's shared memory, lies in that of block `rank` of the cluster.
__device__ __forceinline__ u32 remote_address(const u32* own, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there)
      : "r"(static_cast<u32>(__cvta_generic_to_shared(own))), "r"(rank));
  return there;
}

__device__ __forceinline__ u32 remote_fetch_add(u32* own, u32 rank, u32 v) {
  u32 old;
  asm volatile("atom.relaxed.cluster.shared::cluster.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "r"(remote_address(own, rank)), "r"(v)
               : "memory");
  return old;
}

__device__ __forceinline__ void remote_add(u32* own, u32 rank, u32 v) {
  asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(remote_address(own, rank)), "r"(v)
               : "memory");
}

__device__ __forceinline__ void remote_store(u32* own, u32 rank, u32 v) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote_address(own, rank)), "r"(v) : "memory");
}

// Mail: words that blocks of a cluster send into each other's shared memory, and a barrier there (`box`) that says when
// all of them have come. No fence: what has been waited for is visible. Each sender announces once for each turn how many
// bytes it sends; a turn is over when all senders have announced and all bytes are there.
// Before anybody sends: opened by one thread, and a cluster barrier, which need not order memory.
__device__ __forceinline__ void mail_open(u64* box, u32 senders) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(box))),
               "r"(senders)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mail_announce(u64* box, u32 rank, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(
                   remote_address(reinterpret_cast<const u32*>(box), rank)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void mail_send(const uint4* own, u32 rank, uint4 v, u64* box) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   remote_address(reinterpret_cast<const u32*>(own), rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(remote_address(reinterpret_cast<const u32*>(box), rank))
               : "memory");
}
// Four of this block's words, to the same place in that of `rank`. They are read now, so they may be overwritten.
__device__ __forceinline__ void mail_copy(const uint4* own, u32 rank, u64* box) { mail_send(own, rank, *own, box); }
// Until turn `turn`, counted from zero, is over. All threads that read what came must call it.
__device__ __forceinline__ void mail_wait(u64* box, u32 turn) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(box));
  u32 done = 0;
#ifdef DRVTOPK_WAIT_LIMIT
  u32 looks = 0;
#endif
  while (true) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, "
        "1, 0, "
        "p;\n\t}"
        : "=r"(done)
        : "r"(address), "r"(turn % 2)
        : "memory");
    if (done) break;
#ifdef DRVTOPK_WAIT_LIMIT
    if (looks++ == DRVTOPK_WAIT_LIMIT) give_up(4, turn + 1, turn);
#endif
  }
}

__device__ __forceinline__ u32 remote_load(const u32* own, u32 rank) {
  u32 v;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(remote_address(own, rank)) : "memory");
  return v;
}
#endif

}  // namespace ptx
