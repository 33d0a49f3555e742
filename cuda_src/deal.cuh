// How a long row is dealt to the blocks of a cluster, their warps, and batches of loads that a thread holds in
// registers: so that any order of the row's elements spreads over all of them, and the first batch is a sample of the
// row (a stratified one: Cochran, Sampling Techniques, 1953). Before: the row has as many elements as one load. No
// shared memory, no barrier.
#pragma once
#include "loads.cuh"

constexpr u32 kNothing = sizeof(Logit) == 4 ? 0x7fffffffu : 0x7fffu;  // NaN

// A block's share of a row: stretches of 32 loads, dealt to the blocks in turns that no period of the data keeps step
// with, and to warps and batches so that each batch has its part of every region of the row.
template <int Vec>
struct Share {
  // Loads of a thread in a batch.
  static constexpr u32 kLoads = kRegisters >= 128 && Vec < 8 ? 8 : 4;
  static constexpr u32 kStretch = 32 * Vec;

  u32 first, last;  // positions from row.base
  u32 turns;        // of stretches, one for each block
  u32 full;         // of these, such as lie wholly before `last`
  u32 batches;
  u32 rank;

  __device__ __forceinline__ Share(const Row& row, u32 own) : first(row.lead()), last(first + row.n), rank(own) {
    turns = (last + (kStretch * kCluster - 1)) / (kStretch * kCluster);
    full = last / (kStretch * kCluster);
    batches = (turns + (kLoads * kWarps - 1)) / (kLoads * kWarps);
  }
  // Elements that one block holds of the first batch, about.
  __device__ __forceinline__ u32 held() const {
    return batches == 1 ? (last - first) / kCluster : kLoads * kThreads * Vec;
  }
  // The turn of this warp's load `d` of a batch.
  __device__ __forceinline__ u32 turn(u32 batch, u32 d) const {
    return (d * kWarps + threadIdx.x / 32) * batches + batch;
  }
  // Whether any warp has a load in this place of a batch.
  __device__ __forceinline__ bool there(u32 batch, u32 d) const { return d * (kWarps * batches) + batch < turns; }
  // Whether all warps have one that lies wholly before `last`.
  __device__ __forceinline__ bool whole(u32 batch, u32 d) const {
    return (d * kWarps + kWarps - 1) * batches + batch < full;
  }
  // Whether the window begins within a load of this place: the first of the first batch.
  __device__ __forceinline__ bool cut(u32 batch, u32 d) const {
    return kRowStarts && first != 0 && batch == 0 && d == 0;
  }
  // Whether every element that any warp loads in this batch is one of the row's.
  __device__ __forceinline__ bool all_of_row(u32 batch) const { return whole(batch, kLoads - 1) && !cut(batch, 0); }
  // Where this thread's load `d` of a batch begins. Which of a turn's stretches is this block's: four bits of a hash (Knuth,
  // TAOCP 3, 6.4) for each of a thread's loads.
  __device__ __forceinline__ u32 position(u32 batch, u32 d) const {
    u32 stretch = turn(batch, d) * kCluster;
    if constexpr (kCluster > 1) {
      const u32 hash = turn(batch, 0) * 2654435761u;
      stretch += (rank + ((hash ^ hash >> 15) >> (28 - 4 * d))) % kCluster;
    }
    return (stretch * 32 + threadIdx.x % 32) * Vec;
  }

  // One batch. Past the last whole load that one is made again: without a branch the loads stay together.
  __device__ __forceinline__ void load(const Row& row, u32 batch, Loaded<Vec> (&to)[kLoads]) const {
    const u32 latest = last / Vec * Vec - Vec;
    const Logit* const base = ptx::opaque(row.base);
#pragma unroll
    for (u32 half = 0; half < kLoads; half += 4) {
      if (half == 0 || there(batch, half)) {  // the same for all threads
#pragma unroll
        for (u32 d = half; d < half + 4; ++d) {
          if (there(batch, d)) to[d].load(base + min(position(batch, d), latest));
        }
      }
    }
  }
  // Makes NaN of what is not of the row, once the loads are there: the one value that reaches nothing.
  __device__ __forceinline__ void trim(u32 batch, Loaded<Vec> (&held)[kLoads]) const {
    if (all_of_row(batch)) return;
#pragma unroll
    for (u32 d = 0; d < kLoads; ++d) {
      if (!whole(batch, d) || cut(batch, d)) {
        const u32 at = position(batch, d);
#pragma unroll
        for (u32 v = 0; v < Vec; ++v) {
          if (at + Vec > last || (kRowStarts && at + v < first)) held[d].set(v, kNothing);
        }
      }
    }
  }
  // f(which of the thread's elements, value) for a batch; after `trim`.
  template <class F>
  __device__ __forceinline__ void each(u32 batch, const Loaded<Vec> (&held)[kLoads], F f) const {
#pragma unroll
    for (u32 half = 0; half < kLoads; half += 4) {
      if (half == 0 || there(batch, half)) {  // the same for all threads
#pragma unroll
        for (u32 d = half; d < half + 4; ++d) {
#pragma unroll
          for (int v = 0; v < Vec; ++v) f(d * Vec + v, value_of(held[d].bits(v)));
        }
      }
    }
  }
};

// Word `which` of those from `From` to before `From + Count`: selections instead of an address, so that they stay in registers.
template <u32 From, u32 Count, int Vec, u32 Loads>
__device__ __forceinline__ u32 chosen_word(const Loaded<Vec> (&held)[Loads], u32 which) {
  constexpr u32 kWords = sizeof(Loaded<Vec>) / 4;
  if constexpr (Count == 1) {
    return held[From / kWords].words[From % kWords];
  } else {
    const u32 lower = chosen_word<From, Count / 2>(held, which);
    const u32 upper = chosen_word<From + Count / 2, Count / 2>(held, which);
    return which & Count / 2 ? upper : lower;
  }
}

// The one of a thread's elements that `which` says; `few`: it is one of the first four loads'.
template <int Vec, u32 Loads>
__device__ __forceinline__ u32 chosen(const Loaded<Vec> (&held)[Loads], u32 which, bool few) {
  constexpr u32 kWords = sizeof(Loaded<Vec>) / 4, kEach = Vec / kWords;
  u32 word;
  if (Loads > 4 && few) {  // the same for all threads
    word = chosen_word<0, kWords*(Loads > 4 ? 4 : Loads)>(held, which / kEach);
  } else {
    word = chosen_word<0, kWords * Loads>(held, which / kEach);
  }
  if constexpr (kEach == 1) return word;
  return which % 2 ? word >> 16 : word & 0xffffu;
}
