// A long row by one block in one reading: a sample guesses a pivot that a few more than K keys reach, the reading keeps what
// reaches it, and the K best of these are the row's. The guess decides the time, never the result: what was kept is counted,
// and if it is too little or does not fit, the row goes the exact way (row_stream).
// Called by row_alone.cuh. Shared memory: Shared<K> and `candidates` pairs behind it.
// A pivot by sampling is Floyd and Rivest's idea (1975); one that is verified by counting is known from sample-select on GPUs
// (Ribizel and Anzt, 2020).
#pragma once
#include "finish.cuh"
#include "held.cuh"

// With less room than this, or fewer elements than two for a sample, guessing does not pay.
constexpr u32 kLeastCandidates = kSamples / 2;
constexpr u32 kManySamplesFrom = 1u << 19;              // elements: from here on four times as many samples
constexpr int kDeep = DRVTOPK_MIN_BLOCKS == 1 ? 8 : 4;  // loads of a thread under way at once: what registers allow

// How many of `samples` samples should reach the pivot, so that between K and `room` of n elements do: 4.5 standard
// deviations more than expected, but never nearer to too many than to too few. (The square root of a count has a
// standard deviation of one half, whatever the count.)
__device__ __forceinline__ u32 sample_rank(u32 k, u32 n, u32 samples, u32 room) {
  const float scale = static_cast<float>(samples) / static_cast<float>(n);
  const float low = sqrtf(static_cast<float>(k) * scale), high = sqrtf(static_cast<float>(room) * scale);
  const float root = min(low + 2.25f, (low + high) * 0.5f);
  return min(static_cast<u32>(root * root) + 1u, samples);
}

// A key that at least `wanted` of the samples reach, and few more: the smallest sample in the bin where the wanted-th
// largest lies, the bins being made smaller until that one holds few. Leaves it in Scratch, with the samples' bounds, and
// the bins cleared.
template <int Vec>
__device__ __forceinline__ void find_pivot(const Row& row, u32 samples, u32 wanted, u32* keys, u32* bins, Scratch& s) {
  const u32 packs = samples / Vec, skip = row.lead() != 0;  // the first load may begin before the window
  const u32 there = (row.lead() + row.n) / Vec - skip;
  u32 low = ~0u, high = 0;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < packs; i += kThreads) {
    // One load at a drawn place of each of `packs` equal stretches, so that no period of the data meets all of them.
    const u64 jitter = static_cast<u64>(i * 2654435761u) * there >> 32;
    const u32 at = static_cast<u32>((static_cast<u64>(i) * there + jitter) >> (31 - __clz(packs))) + skip;
    Loaded<Vec> pack;
    pack.load(row.base + static_cast<u64>(at) * Vec);
#pragma unroll
    for (int v = 0; v < Vec; ++v) {
      const u32 key = ordered_key(pack.bits(v));
      keys[v * packs + i] = key;
      low = min(low, key);
      high = max(high, key);
    }
  }
  widen(low, high, s);
  __syncthreads();
  const u32 few = 1 + wanted / 8;
  const Spread spread(s.low, s.high);
  bool found = false;
  if (spread.usable()) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < samples; i += kThreads) atomicAdd(&bins[spread.bin(keys[i])], 1u);
    __syncthreads();
    find_bin(bins, wanted, s);
    found = s.count <= few;
    clear_bins(bins);
    if (found) {
#pragma unroll 4
      for (u32 i = threadIdx.x; i < samples; i += kThreads) {
        if (spread.bin(keys[i]) == s.digit) atomicMin(&s.pivot, keys[i]);
      }
    }
    __syncthreads();
  }
  if (found) return;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < samples; i += kThreads) atomicAdd(&bins[opening_digit(keys[i])], 1u);
  __syncthreads();
  find_bin(bins, wanted, s);
  Threshold t(s.digit, 1);
  clear_bins(bins);
  __syncthreads();
#pragma unroll 1
  while (s.count > few && t.shift > 0) {
    count_tied(keys, samples, t, bins, [](u32) { return 0u; });
    __syncthreads();
    find_bin(bins, s.need, s);
    t.refine(s);
    clear_bins(bins);
    __syncthreads();
  }
#pragma unroll 1
  for (u32 i = threadIdx.x; i < samples; i += kThreads) {
    if (t.tied(keys[i], 0)) atomicMin(&s.pivot, keys[i]);
  }
  __syncthreads();
}

// Returns whether the row is done.
template <int K, int Vec>
__device__ __forceinline__ bool row_pass(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  const u32 room = p.candidates;
  u32* const kept_keys = sh.rest;
  u32* const kept_indices = sh.rest + room;
  clear_bins(sh.bins);
  if (threadIdx.x == 0) {
    s.above_count = s.tie_count = s.candidate_count = s.high = 0;
    s.low = s.pivot = ~0u;
  }
  __syncthreads();
  const u32 samples = row.n >= kManySamplesFrom && 2 * room >= 4 * kSamples ? 4 * kSamples : kSamples;
  find_pivot<Vec>(row, samples, sample_rank(K, row.n, samples, room), sh.rest, sh.bins, s);
  const u32 pivot = s.pivot;
  // Keys above the pivot are kept from the front. Of those equal to it no more than K are ever needed, and where indices
  // do not matter, any: they wait at the end of the staged places.
  for_each_reaching<Vec, kDeep>(
      row, 0, row.n, pivot,
      [&](u32 key, u32 index) {
        if (kTies || key > pivot) {
          const u32 place = atomicAdd(&s.candidate_count, 1u);
          if (place < room) {
            kept_keys[place] = key;
            kept_indices[place] = index;
          }
        } else {
          const u32 place = atomicAdd(&s.tie_count, 1u);
          if (place < K) sh.staged[K - 1 - place] = static_cast<int>(index);
        }
      },
      [&] { return !kTies && ptx::load_shared(&s.tie_count) >= K; });
  __syncthreads();
  const u32 kept = s.candidate_count, ties = min(s.tie_count, static_cast<u32>(K));
  __syncthreads();
  if (kept > room || kept + ties < K) return false;
  if (kept <= K) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kept; i += kThreads) sh.staged[i] = static_cast<int>(kept_indices[i]);
    finish(row, K, out_of(p, r), sh);
    return true;
  }
  // Between the pivot and the largest sample; what lies beyond that is in the last bin.
  if (threadIdx.x == 0) s.tie_count = 0, s.low = pivot;
  __syncthreads();
  stage_best(kept_keys, kept, K, row.n, sh.bins, sh.staged, s, [&](u32 i) { return kept_indices[i]; });
  finish(row, K, out_of(p, r), sh);
  return true;
}
