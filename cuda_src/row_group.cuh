// One row by all blocks of a group, which wait for each other: n > kRadixThreshold in a cooperative launch. Before:
// group x chunk >= n, the blocks of the group call it for the same rows in the same order. Each block reads its chunk
// once and holds it in shared memory as keys; the group's histogram decides 11 bits a round, at most three rounds (six
// where indices tell ties apart), one group barrier each. A sorted row costs one more. Shared memory: Shared<K>, its
// `rest` holding `chunk` keys. Workspace: GroupState.
#pragma once
#include "finish.cuh"
#include "held.cuh"
#include "sync.cuh"

// What one block remembers of its group from row to row.
struct Member {
  GroupState state;
  u32 rank;
  u32 target;  // arrivals at the group's barrier so far
  u32 round;   // whose turn it is; kRounds: the group has not met yet
};

constexpr u32 kAboveWord = kBins, kTieWord = kBins + 1;  // of a round: members handed out so far

// Adds this block's bins to the group's and replaces them by the sum.
// Round r is filled before a barrier and read after it; after that same barrier nobody reads round r-1 any more, so
// it is cleared then, a barrier before its turn comes again as round r+2.
__device__ __forceinline__ void share_bins(u32* bins, Member& m) {
  u32* const shared_bins = m.state.round(m.round);
#pragma unroll 1
  for (u32 b = threadIdx.x; b < kBins; b += kThreads) {
    if (bins[b]) ptx::add_relaxed(shared_bins + b, bins[b]);
  }
  group_barrier(m.state, m.target);
#pragma unroll 1
  for (u32 b = threadIdx.x; b < kBins; b += kThreads) bins[b] = ptx::load_relaxed(shared_bins + b);
  u32* const finished = m.state.round(m.round == 0 ? kRounds - 1 : m.round - 1);
#pragma unroll 1
  for (u32 i = m.rank * kThreads + threadIdx.x; i < kRoundWords; i += m.state.group * kThreads) {
    ptx::store_relaxed(finished + i, 0);
  }
  m.round = m.round + 1 == kRounds ? 0 : m.round + 1;
  __syncthreads();
}

template <int K, int Vec, class Turn>
__device__ __forceinline__ void row_group(const Row& row, const Params& p, u32 r, Turn my_turn, Shared<K>& sh,
                                          Member& m) {
  Scratch& s = sh.scratch;
  u32* const keys = sh.rest;
  // group x chunk < 2^32: spec.MAX_WIDTH plus less than one chunk a block
  const u32 begin = min(m.rank * p.chunk, row.n);
  const u32 held = min(p.chunk, row.n - begin);
  const auto index_of = [&](u32 i) { return begin + i; };
  if (m.round == kRounds) meet_begin(m.state, m.rank);
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.above_count = s.tie_count = 0;
  __syncthreads();
  hold<Vec>(row, begin, held, keys, sh.bins);
  __syncthreads();
  if (m.round == kRounds) {
    meet_finish(m.state, m.rank);
    m.round = 0;
  }
  share_bins(sh.bins, m);
  find_bin(sh.bins, K, s);
  Threshold t(s.digit, row.n);
  while (!t.decided(s)) {
    clear_bins(sh.bins);
    __syncthreads();
    count_tied(keys, held, t, sh.bins, index_of);
    __syncthreads();
    share_bins(sh.bins, m);
    find_bin(sh.bins, s.need, s);
    t.refine(s);
  }
  stage_held(keys, held, K, t, sh.staged, s, index_of);
  __syncthreads();
  // The last round's words are cleared only after the next barrier, which nobody passes before this block arrives.
  u32* const handed_out = m.state.round(m.round == 0 ? kRounds - 1 : m.round - 1);
  const u32 above = s.above_count, tied = min(s.tie_count, s.need);
  if (threadIdx.x == 0 && above) s.above_base = ptx::fetch_add_relaxed(handed_out + kAboveWord, above);
  if (threadIdx.x == 32 && tied) s.tie_base = ptx::fetch_add_relaxed(handed_out + kTieWord, tied);
  __syncthreads();
  const auto member = [&](u32 place, u32 from) {
    if constexpr (kSorts) {
      ptx::store_relaxed(m.state.members() + place, static_cast<u32>(sh.staged[from]));
    } else {
      out_of(p, r).put(row, place, static_cast<u32>(sh.staged[from]));
    }
  };
#pragma unroll 1
  for (u32 i = threadIdx.x; i < above; i += kThreads) member(s.above_base + i, i);
#pragma unroll 1
  for (u32 i = threadIdx.x; i < tied; i += kThreads) {
    const u32 place = s.tie_base + i;
    if (place < s.need) member(K - s.need + place, K - s.need + i);
  }
  if constexpr (kSorts) {
    // One block sorts while the others go on. They write members again only after the next row's first barrier, at which
    // this block arrives after it has read them.
    group_barrier(m.state, m.target);
    if (my_turn()) {
#pragma unroll 1
      for (u32 i = threadIdx.x; i < K; i += kThreads) {
        sh.staged[i] = static_cast<int>(ptx::load_relaxed(m.state.members() + i));
      }
      finish(row, K, out_of(p, r), sh);
    }
  }
}
