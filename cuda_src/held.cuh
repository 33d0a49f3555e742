// A stretch of a row that one block holds in shared memory as keys, so that memory is read once however many rounds it
// takes to decide. Called by row_alone.cuh (whole short rows) and row_group.cuh (a chunk of a long one).
// No barrier inside: the callers' own stand between these steps.
#pragma once
#include "loads.cuh"
#include "select.cuh"

// Reads row[begin, begin + held) into `keys` and counts the opening digit.
template <int Vec>
__device__ __forceinline__ void hold(const Row& row, u32 begin, u32 held, u32* keys, u32* bins) {
  for_each_key<Vec>(row, begin, begin + held, [&](u32 key, u32 index, bool valid) {
    if (valid) {
      keys[index - begin] = key;
      atomicAdd(&bins[opening_digit(key)], 1u);
    }
  });
}

// Counts the next digit of the keys that the threshold has not told apart yet. `index_of(i)` is the row's index of held
// key i.
template <class IndexOf>
__device__ __forceinline__ void count_tied(const u32* keys, u32 held, const Threshold& t, u32* bins, IndexOf index_of) {
#pragma unroll 1
  for (u32 i = threadIdx.x; i < held; i += kThreads) {
    const u32 index = kTies ? index_of(i) : 0u;
    if (t.tied(keys[i], index)) atomicAdd(&bins[t.next_digit(keys[i], index)], 1u);
  }
}

// Stages the members.
template <class IndexOf>
__device__ __forceinline__ void stage_held(const u32* keys, u32 held, u32 k, const Threshold& t, int* staged,
                                           Scratch& s, IndexOf index_of) {
#pragma unroll 1
  for (u32 base = 0; base < held; base += kThreads) {
    const u32 i = base + threadIdx.x;
    const bool valid = i < held;
    const u32 key = valid ? keys[i] : 0;
    const u32 index = kTies && valid ? index_of(i) : 0u;
    stage(staged, s, k, valid && t.above(key, index), valid && t.tied(key, index), [&] { return index_of(i); });
  }
}
