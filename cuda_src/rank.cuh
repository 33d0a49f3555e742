// Of a few candidates in shared memory the best `need`: each is compared with all others, several lanes to a candidate.
// For the last bin of a selection, which rarely holds more: one round of this costs less than one more histogram.
// No barrier inside. Before: a barrier since the candidates were written. All threads of the block must call it.
#pragma once
#include "select.cuh"

constexpr u32 kRanked = 64;  // candidates at most: the work is their number squared

// take(place, index) for each of the best; places are 0 .. need - 1, each once.
template <class Take>
__device__ __forceinline__ void rank_candidates(const u32* keys, const u32* indices, u32 count, u32 need, Take take) {
  const u32 lanes = count <= 32 ? 32 : 16;  // to a candidate
  const u32 mine = threadIdx.x / lanes, part = threadIdx.x % lanes;
  const bool here = mine < count;
  const u32 key = here ? keys[mine] : 0, index = here ? indices[mine] : 0;
  u32 better = 0;
  if (here) {
#pragma unroll 4
    for (u32 i = part; i < count; i += lanes) {
      const u32 other = keys[i];
      const bool first = kTies ? Threshold::rank(indices[i]) > Threshold::rank(index) : i < mine;
      better += other > key || (other == key && first);
    }
  }
#pragma unroll 1
  for (u32 d = 1; d < lanes; d *= 2) better += __shfl_xor_sync(0xffffffffu, better, d);
  if (here && part == 0 && better < need) take(better, index);
}
