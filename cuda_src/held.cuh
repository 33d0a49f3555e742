// A stretch of a row that one block holds in shared memory as keys, so that memory is read once however many rounds it
// takes to decide. Called by row_alone.cuh (whole short rows) and row_group.cuh (a chunk of a long one).
// No barrier inside: the callers' own stand between these steps.
#pragma once
#include "loads.cuh"
#include "rank.cuh"

// Reads row[begin, begin + held) into `keys` and counts the opening digit.
template <int Vec>
__device__ __forceinline__ void hold(const Row& row, u32 begin, u32 held, u32* keys, u32* bins) {
  for_each_key_deep<Vec, 2>(row, begin, begin + held, [&](u32 key, u32 index, bool valid) {
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

// Stages the members. Above the threshold all are; of the tied ones the last `need` places take as many as come first.
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

// What a held key is: a member, a candidate for the last places, or neither. Sums of up to 65535 fit beside each other.
constexpr u32 kMember = 1u << 16, kCandidate = 1;

// Stages k members of the held keys: all that are kMember, and of the kCandidate ones, s.count of them and at most kRanked,
// the best s.need. `kind(i)` of held key i. Before: the bins are read no more; tie_count is zero. After: a barrier.
template <class Kind, class IndexOf>
__device__ __forceinline__ void stage_ranked(const u32* keys, u32 held, u32 k, u32* bins, int* staged, Scratch& s,
                                             Kind kind, IndexOf index_of) {
  constexpr u32 kBatch = 4;
  u32* const candidate_keys = bins;
  u32* const candidate_indices = bins + kRanked;
  const u32 lane = threadIdx.x % 32;
#pragma unroll 1
  for (u32 base = 0; base < held; base += kBatch * kThreads) {
    // A prefix sum over the warp and one atomic for all of a batch: votes and counts of bits are slower.
    u32 kinds[kBatch], mine = 0;
#pragma unroll
    for (u32 d = 0; d < kBatch; ++d) {
      const u32 i = base + d * kThreads + threadIdx.x;
      kinds[d] = i < held ? kind(i) : 0;
      mine += kinds[d];
    }
    u32 sum = mine;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
      const u32 left = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += left;
    }
    u32 place = 0;
    if (lane == 31 && sum) place = atomicAdd(&s.tie_count, sum);
    place = __shfl_sync(0xffffffffu, place, 31) + sum - mine;
#pragma unroll
    for (u32 d = 0; d < kBatch; ++d) {
      const u32 i = base + d * kThreads + threadIdx.x;
      if (kinds[d] == kMember) staged[place >> 16] = static_cast<int>(index_of(i));
      if (kinds[d] == kCandidate) {
        candidate_keys[place & 0xffffu] = keys[i];
        candidate_indices[place & 0xffffu] = index_of(i);
      }
      place += kinds[d];
    }
  }
  __syncthreads();
  const u32 first = k - s.need;
  rank_candidates(candidate_keys, candidate_indices, s.count, s.need,
                  [&](u32 place, u32 index) { staged[first + place] = static_cast<int>(index); });
  __syncthreads();
}

// Stages k of the held keys by radix digits; they belong to a row of n elements.
// Before: the bins are cleared, above_count and tie_count are zero; a barrier since. After: a barrier.
template <class IndexOf>
__device__ __forceinline__ void stage_by_digits(const u32* keys, u32 held, u32 k, u32 n, u32* bins, int* staged,
                                                Scratch& s, IndexOf index_of) {
#pragma unroll 1
  for (u32 i = threadIdx.x; i < held; i += kThreads) atomicAdd(&bins[opening_digit(keys[i])], 1u);
  __syncthreads();
  find_bin(bins, k, s);
  Threshold t(s.digit, n);
#pragma unroll 1
  while (!t.decided(s)) {
    clear_bins(bins);
    __syncthreads();
    count_tied(keys, held, t, bins, index_of);
    __syncthreads();
    find_bin(bins, s.need, s);
    t.refine(s);
  }
  stage_held(keys, held, k, t, staged, s, index_of);
  __syncthreads();
}

// Stages k of the held keys, which lie between s.low and s.high (some may lie above): nearly always one histogram leaves a
// handful to rank. Before: the bins are cleared, above_count and tie_count are zero; a barrier since. After: a barrier.
template <class IndexOf>
__device__ __forceinline__ void stage_best(const u32* keys, u32 held, u32 k, u32 n, u32* bins, int* staged, Scratch& s,
                                           IndexOf index_of) {
  const Spread spread(s.low, s.high);
  if (spread.usable()) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < held; i += kThreads) atomicAdd(&bins[spread.bin(keys[i])], 1u);
    __syncthreads();
    find_bin(bins, k, s);
    const u32 bin = s.digit;
    if (s.count <= kRanked) {
      stage_ranked(
          keys, held, k, bins, staged, s,
          [&](u32 i) {
            const u32 own = spread.bin(keys[i]);
            return own > bin ? kMember : own == bin ? kCandidate : 0u;
          },
          index_of);
      return;
    }
    clear_bins(bins);
    __syncthreads();
  }
  stage_by_digits(keys, held, k, n, bins, staged, s, index_of);
}

// The smallest and the largest of all threads' keys into Scratch. Before: s.low is all ones and s.high zero.
__device__ __forceinline__ void widen(u32 low, u32 high, Scratch& s) {
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (threadIdx.x % 32 == 0) {
    atomicMin(&s.low, low);
    atomicMax(&s.high, high);
  }
}
