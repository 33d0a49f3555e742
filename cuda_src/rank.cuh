// Of a few candidates in shared memory the best `need`: each is compared with all others, a warp to a candidate.
// For the last bin of a selection, which rarely holds more: one round of this costs less than one more histogram.
// No barrier inside. Before: a barrier since the candidates were written. All threads of the block must call it.
#pragma once
#include "select.cuh"

constexpr u32 kRanked = 64;  // candidates at most: the work is their number squared

// take(place, index) for each of the best for which wanted(index) holds; places are 0 .. need - 1, each once. Of equal
// ones those with the smaller index come first, unless indices tell ties apart otherwise.
template <class Wanted, class Take>
__device__ __forceinline__ void rank_candidates(const u32* keys, const u32* indices, u32 count, u32 need, Wanted wanted,
                                                Take take) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll 1
  for (u32 mine = threadIdx.x / 32; mine < count; mine += kWarps) {
    const u32 key = keys[mine], index = indices[mine];
    if (!wanted(index)) continue;
    u32 better = 0;
#pragma unroll
    for (u32 i = lane; i < kRanked; i += 32) {
      if (i >= count) continue;
      const u32 other = keys[i];
      const bool first = kTies ? Threshold::rank(indices[i]) > Threshold::rank(index) : indices[i] < index;
      better += other > key || (other == key && first);
    }
    better = __reduce_add_sync(0xffffffffu, better);
    if (lane == 0 && better < need) take(better, index);
  }
}

template <class Take>
__device__ __forceinline__ void rank_candidates(const u32* keys, const u32* indices, u32 count, u32 need, Take take) {
  rank_candidates(keys, indices, count, need, [](u32) { return true; }, take);
}
