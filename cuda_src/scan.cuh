// Which bin holds the need-th largest key? A suffix scan over the block's 2048 bins. Before: the bins are complete
// (barrier passed); `need` is at least 1. Shared memory: Scratch. Two barriers inside; afterwards the answer stands in
// Scratch (registers are what the row paths are short of), and the bins may be overwritten.
#pragma once
#include "ptx.cuh"

// A block's fixed words in shared memory, behind its bins.
struct alignas(16) Scratch {
  uint4 told
      [kCluster];  // by each block of a cluster: its count of keys, of ties at its pivot, its pivot, its largest key
  u64 mail;        // that the other blocks send (ptx.cuh)
  u32 warp_sums[kWarps];
  u32 lows[kWarps], highs[kWarps];  // each warp's smallest and largest key
  u32 digit;                        // the bin that find_bin found,
  u32 need;                         // how many of its keys are members (at least 1),
  u32 count;                        // and how many it holds; zero: there are fewer keys than looked for
  u32 above_count;                  // staged members above the threshold
  u32 tie_count;                    // keys seen at the threshold
  u32 candidate_count;              // keys of the threshold bin kept in shared memory
  u32 above_base, tie_base;         // where this block's members go in the row's output
  u32 low, high;                    // the smallest and the largest of some keys
  u32 pivot;                        // a key that all members should reach
  // Keys that this block found to reach the pivot, but for those equal to it where they are many; and those.
  u32 gathered, gathered_ties;
};
static_assert(sizeof(Scratch) <= DRVTOPK_SCRATCH_BYTES, "spec.SCRATCH_BYTES is too small");

// What an element is that is not lost: a member, or a candidate for the last places. Sums of both fit beside each other.
constexpr u32 kMember = 1u << 16, kCandidate = 1;
constexpr u32 kMostCounted = kMember - 1;  // of either

// The sum of all threads' numbers. Before: a barrier since the latest sums were read. After: a barrier.
__device__ __forceinline__ u32 block_sum(u32 own, Scratch& s) {
  const u32 lane = threadIdx.x % 32;
  own = __reduce_add_sync(0xffffffffu, own);
  if (lane == 0) s.warp_sums[threadIdx.x / 32] = own;
  __syncthreads();
  return __reduce_add_sync(0xffffffffu, lane < kWarps ? s.warp_sums[lane] : 0u);
}

__device__ __forceinline__ void find_bin(const u32* bins, u32 need, Scratch& s) {
  // Thread t owns the kOwn bins from 2047 - kOwn t down, so an ordinary prefix sum runs from the top.
  constexpr u32 kOwn = kBins / kThreads;
  const u32 high = kBins - 1 - kOwn * threadIdx.x;
  u32 mine[kOwn], all = 0;
#pragma unroll
  for (u32 j = 0; j < kOwn; ++j) all += mine[j] = bins[high - j];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Reductions are one instruction, a scan by shuffles is ten that all warps queue for: so only one warp makes one.
  const u32 own = __reduce_add_sync(0xffffffffu, all);
  if (lane == 0) s.warp_sums[warp] = own;
  __syncthreads();
  const u32 before = __reduce_add_sync(0xffffffffu, lane < warp ? s.warp_sums[lane] : 0u);
  if (threadIdx.x == kThreads - 1 && before + own < need) s.count = 0;
  if (before < need && need <= before + own) {
    u32 from = before + ptx::sum_upto(all) - all;
    if (from < need && need <= from + all) {
#pragma unroll
      for (u32 j = 0; j < kOwn; ++j) {
        if (from < need && need <= from + mine[j]) {
          s.digit = high - j;
          s.need = need - from;
          s.count = mine[j];
        }
        from += mine[j];
      }
    }
  }
  __syncthreads();
}
