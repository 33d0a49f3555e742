// One row by one block that waits for nobody: trivial, short (held in shared memory) or streamed (any length). Shared
// memory: Shared<K> and `candidates` pairs behind it. A row needs no barrier before it: the previous row's last reads
// (of `staged`) lie two barriers before the next row's first writes there.
#pragma once
#include "finish.cuh"
#include "held.cuh"
#include "row_gather.cuh"
#include "row_pass.cuh"
#include "row_registers.cuh"

// Rows with no more elements than places: every index is a member.
template <int K>
__device__ __forceinline__ void row_trivial(const Row& row, const Out& to, Shared<K>& sh) {
  if constexpr (kOrder == Order::kValue) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < row.n; i += kThreads) sh.staged[i] = static_cast<int>(i);
    finish(row, row.n, to, sh);
  } else {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < K; i += kThreads) {
      if (i < row.n) {
        to.put(row, i, i);
      } else {
        to.fill(i);
      }
    }
  }
}

// K < n <= kShortMax, and the row fits into `rest`. Read once and held, so all else is counted where it lies, and no buffer
// exists that could overflow. `held`: it lies there already, and bins of equal width in value do not tell it apart.
template <int K, int Vec>
__device__ __forceinline__ void row_short(const Row& row, const Params& p, u32 r, bool held, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  if (!held) {
    clear_bins(sh.bins);
    if (threadIdx.x == 0) s.tie_count = s.high = 0, s.low = ~0u;
    __syncthreads();
    u32 low = ~0u, high = 0;
    for_each_key_deep<Vec, 2>(row, 0, row.n, [&](u32 key, u32 index, bool valid) {
      if (valid) {
        sh.rest[index] = key;
        low = min(low, key);
        high = max(high, key);
      }
    });
    widen(low, high, s);
  }
  __syncthreads();
  const Spread spread = held ? Spread::none() : Spread::of_keys(s.low, s.high);
  select_held(row, sh.rest, row.n, spread, p, r, sh, [](u32 i) { return i; });
}

// Any n > K. A coarse histogram of the top 11 bits in a first reading; a second reading takes what lies above the
// threshold bin and keeps the bin's own keys as candidates, which are refined in shared memory. A bin that holds
// more than there is room for is narrowed by reading again, 11 bits at a time: at most four readings, nothing dropped
// (at most seven where indices tell ties apart).
template <int K, int Vec>
__device__ __forceinline__ void row_stream(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  u32* const kept_keys = sh.rest;
  u32* const kept_indices = sh.rest + p.candidates;
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.above_count = s.tie_count = s.candidate_count = 0;
  __syncthreads();
  for_each_key<Vec>(row, 0, row.n, [&](u32 key, u32, bool valid) {
    if (valid) atomicAdd(&sh.bins[opening_digit(key)], 1u);
  });
  __syncthreads();
  find_bin(sh.bins, K, s);
  Threshold t(s.digit, row.n);
  while (!t.decided(s) && s.count > p.candidates) {
    clear_bins(sh.bins);
    __syncthreads();
    for_each_key<Vec>(row, 0, row.n, [&](u32 key, u32 index, bool valid) {
      if (valid && t.tied(key, index)) atomicAdd(&sh.bins[t.next_digit(key, index)], 1u);
    });
    __syncthreads();
    find_bin(sh.bins, s.need, s);
    t.refine(s);
  }
  const bool keep = !t.decided(s);  // then s.count <= p.candidates
  for_each_key<Vec>(row, 0, row.n, [&](u32 key, u32 index, bool valid) {
    const bool tied = valid && t.tied(key, index);
    stage(sh.staged, s, K, valid && t.above(key, index), tied && !keep, [&] { return index; });
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
    const auto index_of = [&](u32 i) { return kept_indices[i]; };
    do {
      clear_bins(sh.bins);
      __syncthreads();
      count_tied(kept_keys, kept, t, sh.bins, index_of);
      __syncthreads();
      find_bin(sh.bins, s.need, s);
      t.refine(s);
    } while (!t.decided(s));
    stage_held(kept_keys, kept, K, t, sh.staged, s, index_of);
  }
  __syncthreads();
  finish(row, K, out_of(p, r), sh);
}

// `Pass`: whether long rows are tried in one reading. A kernel that keeps much from row to row has no registers for it.
template <int K, int Vec, bool Pass>
__device__ __forceinline__ void row_alone(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  if (row.n <= K) {
    row_trivial<K>(row, out_of(p, r), sh);
    return;
  }
  const Registers found = row.n <= kShortMax ? row_registers<K, Vec>(row, p, r, sh) : Registers::kNothing;
  if (found == Registers::kDone) return;
  if (row.n <= kShortMax && row.n <= 2 * p.candidates) {
    row_short<K, Vec>(row, p, r, found == Registers::kHeld, sh);
  } else {
    if constexpr (Pass && kGathers) {
      if (p.candidates > K && row.n >= 32) {
        if (row.n <= kShortMax) __syncthreads();  // row_registers has read its bounds
        if (row_gather<K, Vec>(row, p, r, 0, 0, sh)) return;
      }
    } else if constexpr (Pass) {
      if (p.candidates >= kLeastCandidates && row.n >= 2 * kSamples && row_pass<K, Vec>(row, p, r, sh)) return;
    }
    row_stream<K, Vec>(row, p, r, sh);
  }
}

// A row as every block sees it: start and length clamped to what exists, so no two blocks can disagree about its path.
template <int Vec>
__device__ __forceinline__ Row row_of(const Params& p, u32 row) {
  const auto clamped = [](int given, u32 most) { return given <= 0 ? 0u : min(static_cast<u32>(given), most); };
  const Logit* from = p.logits + static_cast<i64>(row) * p.logits_stride;
  u32 width = p.width, skip = 0;
#if DRVTOPK_ROW_STARTS
  const u32 start = clamped(__ldg(p.row_starts + row), width);
  skip = start % Vec;
  from += start - skip;
  width -= start;
#endif
  return {from, p.lengths == nullptr ? width : clamped(__ldg(p.lengths + row), width), skip};
}
