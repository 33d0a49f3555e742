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
  // A turn's candidates do not wait for each other, where registers allow.
  constexpr u32 kOthers = kRanked / 32, kTurn = kRegisters >= 64 ? 2 : 1;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp >= count) return;
  u32 others[kOthers], their[kOthers];
#pragma unroll
  for (u32 j = 0; j < kOthers; ++j) {
    const bool there = lane + 32 * j < count;
    others[j] = there ? keys[lane + 32 * j] : 0u;
    their[j] = there ? indices[lane + 32 * j] : kTies ? Threshold::rank(0) : ~0u;  // behind all others
  }
#pragma unroll 1
  for (u32 base = warp; base < count; base += kTurn * kWarps) {
    u32 key[kTurn], index[kTurn], better[kTurn];
    bool ranks[kTurn];
#pragma unroll
    for (u32 e = 0; e < kTurn; ++e) {
      const u32 mine = base + e * kWarps;
      key[e] = keys[mine], index[e] = indices[mine];  // past `count` whatever lies there, which is not looked at
      ranks[e] = mine < count && wanted(index[e]);
    }
    if (!ranks[0] && !ranks[kTurn - 1]) continue;
#pragma unroll
    for (u32 e = 0; e < kTurn; ++e) {
      better[e] = 0;
#pragma unroll
      for (u32 j = 0; j < kOthers; ++j) {
        const bool first = kTies ? Threshold::rank(their[j]) > Threshold::rank(index[e]) : their[j] < index[e];
        better[e] += others[j] > key[e] || (others[j] == key[e] && first);
      }
      better[e] = __reduce_add_sync(0xffffffffu, better[e]);
    }
#pragma unroll
    for (u32 e = 0; e < kTurn; ++e) {
      if (lane == e && ranks[e] && better[e] < need) take(better[e], index[e]);
    }
  }
}

template <class Take>
__device__ __forceinline__ void rank_candidates(const u32* keys, const u32* indices, u32 count, u32 need, Take take) {
  rank_candidates(keys, indices, count, need, [](u32) { return true; }, take);
}
