// One row by one block that waits for nobody: trivial, short (held in shared memory) or streamed (any length).
// Called by both kernels. Shared memory: Shared<K> and `candidates` pairs behind it. A row needs no barrier before it:
// the previous row's last reads (of `staged`) lie two barriers before the next row's first writes there.
#pragma once
#include "held.cuh"

// Rows with no more elements than places: every index is a member.
template <int K>
__device__ __forceinline__ void row_trivial(u32 n, int* out) {
#pragma unroll 1
  for (u32 i = threadIdx.x; i < K; i += kThreads) out[i] = i < n ? static_cast<int>(i) : -1;
}

// K < n <= kShortMax, and the row fits into `rest`. Read once; one histogram of the top 11 bits nearly always decides
// all but a few keys, and further rounds count the keys that are held, so no buffer exists that could overflow.
template <int K, int Vec>
__device__ __forceinline__ void row_short(const float* row, u32 n, int* out, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.above_count = s.tie_count = 0;
  __syncthreads();
  hold<Vec>(row, 0, n, sh.rest, sh.bins);
  __syncthreads();
  find_bin(sh.bins, K, s);
  Threshold t{s.digit, kOpeningShift};
  while (!t.decided(s)) {
    clear_bins(sh.bins);
    __syncthreads();
    count_tied(sh.rest, n, t, sh.bins);
    __syncthreads();
    find_bin(sh.bins, s.need, s);
    t.refine(s);
  }
  stage_held(sh.rest, n, K, t, sh.staged, s, [](u32 i) { return i; });
  __syncthreads();
  write_staged<K>(sh.staged, out);
}

// Any n > K. A coarse histogram of the top 11 bits in a first reading; a second reading takes what lies above the
// threshold bin and keeps the bin's own keys as candidates, which are refined in shared memory. A bin that holds
// more than there is room for is narrowed by reading again, 11 bits at a time: at most four readings, nothing dropped.
template <int K, int Vec>
__device__ __forceinline__ void row_stream(const float* row, u32 n, u32 candidates, int* out, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  u32* const kept_keys = sh.rest;
  u32* const kept_indices = sh.rest + candidates;
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.above_count = s.tie_count = s.candidate_count = 0;
  __syncthreads();
  for_each_key<Vec>(row, 0, n, [&](u32 key, u32, bool valid) {
    if (valid) atomicAdd(&sh.bins[opening_digit(key)], 1u);
  });
  __syncthreads();
  find_bin(sh.bins, K, s);
  Threshold t{s.digit, kOpeningShift};
  while (!t.decided(s) && s.count > candidates) {
    clear_bins(sh.bins);
    __syncthreads();
    for_each_key<Vec>(row, 0, n, [&](u32 key, u32, bool valid) {
      if (valid && t.tied(key)) atomicAdd(&sh.bins[t.next_digit(key)], 1u);
    });
    __syncthreads();
    find_bin(sh.bins, s.need, s);
    t.refine(s);
  }
  const bool keep = !t.decided(s);  // then s.count <= candidates
  for_each_key<Vec>(row, 0, n, [&](u32 key, u32 index, bool valid) {
    const bool tied = valid && t.tied(key);
    stage(sh.staged, s, K, valid && t.above(key), tied && !keep, [&] { return index; });
    if (keep) {
      const u32 place = take_place(&s.candidate_count, tied);
      if (tied) {
        kept_keys[place] = key;
        kept_indices[place] = index;
      }
    }
  });
  if (keep) {
    const u32 kept = s.count;
    do {
      clear_bins(sh.bins);
      __syncthreads();
      count_tied(kept_keys, kept, t, sh.bins);
      __syncthreads();
      find_bin(sh.bins, s.need, s);
      t.refine(s);
    } while (!t.decided(s));
    stage_held(kept_keys, kept, K, t, sh.staged, s, [&](u32 i) { return kept_indices[i]; });
  }
  __syncthreads();
  write_staged<K>(sh.staged, out);
}

template <int K, int Vec>
__device__ __forceinline__ void row_alone(const float* row, u32 n, u32 candidates, int* out, Shared<K>& sh) {
  if (n <= K) {
    row_trivial<K>(n, out);
  } else if (n <= kShortMax && n <= 2 * candidates) {
    row_short<K, Vec>(row, n, out, sh);
  } else {
    row_stream<K, Vec>(row, n, candidates, out, sh);
  }
}

// A row's length as every block sees it: clamped to [0, width], so no two blocks can disagree about a row's path.
__device__ __forceinline__ u32 row_length(const Params& p, u32 row) {
  if (p.lengths == nullptr) return p.width;
  const int given = __ldg(p.lengths + row);
  return given <= 0 ? 0u : min(static_cast<u32>(given), p.width);
}
