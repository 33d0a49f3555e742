// Which bin holds the need-th largest key? A suffix scan over the block's 2048 bins, two bins a thread.
// Called by the row paths between two barriers of their own. Before: the bins are complete (barrier passed) and their
// sum is at least `need`, which is at least 1. Shared memory: Scratch. Two barriers inside; afterwards the answer stands
// in Scratch (registers are what the row paths are short of), and the bins may be overwritten.
#pragma once
#include "params.cuh"

// A block's fixed words in shared memory, behind its bins.
struct Scratch {
  u32 warp_sums[kWarps];
  u32 digit;                 // the bin that find_bin found,
  u32 need;                  // how many of its keys are members (at least 1),
  u32 count;                 // and how many it holds
  u32 above_count;           // staged members above the threshold
  u32 tie_count;             // keys seen at the threshold
  u32 candidate_count;       // keys of the threshold bin kept in shared memory
  u32 above_base, tie_base;  // where this block's members go in the row's output
  u32 low, high;             // the smallest and the largest of some keys
  u32 pivot;                 // a key that all members should reach
};
static_assert(sizeof(Scratch) <= DRVTOPK_SCRATCH_BYTES, "spec.SCRATCH_BYTES is too small");

__device__ __forceinline__ void find_bin(const u32* bins, u32 need, Scratch& s) {
  // Thread t owns bins 2047-2t and 2046-2t, so an ordinary prefix sum runs from the top.
  const u32 high = kBins - 1 - 2 * threadIdx.x;
  const u32 first = bins[high], both = first + bins[high - 1];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 sum = both;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 left = __shfl_up_sync(0xffffffffu, sum, d);
    if (lane >= d) sum += left;
  }
  if (lane == 31) s.warp_sums[warp] = sum;
  __syncthreads();
  // Every warp scans the warps' sums for itself: one barrier less than letting one warp do it.
  u32 before = s.warp_sums[lane];
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 left = __shfl_up_sync(0xffffffffu, before, d);
    if (lane >= d) before += left;
  }
  before = __shfl_sync(0xffffffffu, before, warp) - __shfl_sync(0xffffffffu, sum, 31);
  const u32 upto = before + sum, from = upto - both;
  if (from < need && need <= upto) {
    const bool in_first = need <= from + first;
    s.digit = in_first ? high : high - 1;
    s.need = need - (in_first ? from : from + first);
    s.count = in_first ? first : both - first;
  }
  __syncthreads();
}
