// A long row by the blocks of a hardware cluster, which reach each other's shared memory: for few rows, where one SM
// alone would read too long. Every block guesses the same pivot from the same samples (row_pass.cuh), reads its part of
// the row once, its first loads under way before the pivot is known, and adds what reaches the pivot to a list in the
// first block's (the leader's) shared memory; the leader finishes. As in row_pass.cuh the guess decides the time, never
// the result: what was found is counted, and if it is too little or does not fit, the cluster selects by radix digits,
// all blocks together. All blocks of a cluster call it for the same rows in the same order. Shared memory: Shared<K>
// and `candidates` pairs behind it, at least K words. No workspace. A block waits for the other blocks of its cluster
// in cluster barriers only, and the hardware starts all blocks of a cluster at once or none (README.md).
#pragma once
#include "row_pass.cuh"

constexpr u32 kLeader = 0;
// Loads of a thread that are made while the pivot is sought: no more than 32 elements, each of which has a bit later.
template <int Vec>
constexpr u32 kClusterDeep = kRegisters < 128 ? 4
                             : Vec > 4        ? 32 / Vec
                                              : 8;

__device__ __forceinline__ void cluster_barrier() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// The part of a row of n elements that a block of the cluster reads: whole lines, so that no two blocks share one.
struct Part {
  u32 begin, end;

  __device__ __forceinline__ Part(u32 n, u32 rank) {
    constexpr u32 kLine = 32;  // elements
    const u32 each = (n + (kCluster * kLine - 1)) / (kCluster * kLine) * kLine;
    begin = min(rank * each, n);
    end = min(begin + each, n);
  }
};

// Any n > K, exactly, all blocks of the cluster together: the leader's bins add up all counts of a digit, and every
// block reads them. Before: nobody reaches into this block's shared memory any more. After: nor then.
template <int K, int Vec>
__device__ __forceinline__ void cluster_by_digits(const Row& row, const Part& part, u32 rank, const Out& to,
                                                  Shared<K>& sh) {
  Scratch& s = sh.scratch;
  if (threadIdx.x == 0) s.above_count = s.tie_count = s.gathered = s.gathered_ties = 0;
  // What all blocks counted, in every block's bins, in which it counted its own.
  const auto add_up = [&] {
    cluster_barrier();  // this block has counted, and the leader
    if (rank != kLeader) {
#pragma unroll 1
      for (u32 b = threadIdx.x; b < kBins; b += kThreads) {
        if (sh.bins[b]) ptx::remote_add(&sh.bins[b], kLeader, sh.bins[b]);
      }
    }
    cluster_barrier();  // all have added
    if (rank != kLeader) {
#pragma unroll 1
      for (u32 b = threadIdx.x; b < kBins; b += kThreads) sh.bins[b] = ptx::remote_load(&sh.bins[b], kLeader);
    }
    cluster_barrier();  // all have read
  };
  clear_bins(sh.bins);
  __syncthreads();
  for_each_key<Vec>(row, part.begin, part.end, [&](u32 key, u32, bool valid) {
    if (valid) atomicAdd(&sh.bins[opening_digit(key)], 1u);
  });
  add_up();
  find_bin(sh.bins, K, s);
  Threshold t(s.digit, row.n);
#pragma unroll 1
  while (!t.decided(s)) {
    clear_bins(sh.bins);
    __syncthreads();
    for_each_key<Vec>(row, part.begin, part.end, [&](u32 key, u32 index, bool valid) {
      if (valid && t.tied(key, index)) atomicAdd(&sh.bins[t.next_digit(key, index)], 1u);
    });
    add_up();
    find_bin(sh.bins, s.need, s);
    t.refine(s);
  }
  for_each_key<Vec>(row, part.begin, part.end, [&](u32 key, u32 index, bool valid) {
    stage(sh.staged, s, K, valid && t.above(key, index), valid && t.tied(key, index), [&] { return index; });
  });
  __syncthreads();
  const u32 above = s.above_count, tied = min(s.tie_count, s.need), first_tie = K - s.need;
  if (threadIdx.x == 0 && above) s.above_base = ptx::remote_fetch_add(&s.gathered, kLeader, above);
  if (threadIdx.x == 32 && tied) s.tie_base = ptx::remote_fetch_add(&s.gathered_ties, kLeader, tied);
  __syncthreads();
#pragma unroll 1
  for (u32 i = threadIdx.x; i < above; i += kThreads) {
    ptx::remote_store(&sh.rest[s.above_base + i], kLeader, static_cast<u32>(sh.staged[i]));
  }
#pragma unroll 1
  for (u32 i = threadIdx.x; i < tied; i += kThreads) {
    const u32 place = s.tie_base + i;
    if (place < s.need) {
      ptx::remote_store(&sh.rest[first_tie + place], kLeader, static_cast<u32>(sh.staged[first_tie + i]));
    }
  }
  cluster_barrier();  // all members are with the leader
  if (rank != kLeader) return;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < K; i += kThreads) sh.staged[i] = static_cast<int>(sh.rest[i]);
  finish(row, K, to, sh);
}

// Lists what of a part's first loads reaches the pivot, as list_reaching does for the rest. Whole warps call it: the
// elements are still in registers, and places are taken a warp at a time.
template <int Vec, u32 Deep>
__device__ __forceinline__ void list_ahead(const Row& row, const Stretch<Vec>& stretch, u32 pivot,
                                           const Batch<Vec, Deep>& batch, const List& list, Scratch& s) {
  const float value = value_of(bits_of(pivot));
  u32 reaching = 0;  // bits: which of the thread's elements
#pragma unroll
  for (u32 d = 0; d < Deep; ++d) {
    if (d * kThreads < stretch.packs) {  // the same for all threads
      u32 some = 0;
#pragma unroll
      for (u32 v = 0; v < Vec; ++v) {
        const float x = value_of(batch.loaded[d].bits(v));
        some |= (kNanHighest ? !(x < value) : x >= value) ? 1u << v : 0u;
      }
      if (kRowStarts && d == 0 && threadIdx.x == 0) some &= ~0u << (stretch.first - stretch.base);
      if (threadIdx.x + d * kThreads < stretch.packs) reaching |= some << (d * Vec);
    }
  }
  if (!__ballot_sync(0xffffffffu, reaching != 0)) return;
  u32 place = warp_places(__popc(reaching), &s.gathered);
  // They are few, and still in a cache: read again, they need no choice among registers.
#pragma unroll 1
  while (reaching) {
    const u32 which = 31 - __clz(reaching);
    reaching ^= 1u << which;
    const u32 index = stretch.base + (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec - row.lead();
    if (place < list.room) {
      list.keys[place] = ordered_key(row.bits(index));
      list.indices[place] = index;
    }
    ++place;
  }
}

// What the other blocks sent to the leader's slots goes behind its own list.
__device__ __forceinline__ void join_lists(const List& list, const u32* slots, u32 slot, const Scratch& s) {
  constexpr u32 kWarpsEach = kWarps / kCluster;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, from = warp / kWarpsEach;
  if (from == kLeader) return;
  const u32 base = __reduce_add_sync(0xffffffffu, lane < from ? s.told[lane].x : 0u);
  const u32 sent = min(s.told[from].x, slot);
#pragma unroll 1
  for (u32 i = warp % kWarpsEach * 32 + lane; i < sent; i += kWarpsEach * 32) {
    list.keys[base + i] = slots[from * slot + i];
    list.indices[base + i] = slots[list.room + from * slot + i];
  }
}

// The same for what did not fit into a slot, and for ties, as many as there are places: all threads fetch from one block after
// the other, for where members lie close together one block has most of them.
template <int K>
__device__ __forceinline__ void fetch_lists(const List& list, u32 slot, Shared<K>& sh) {
  constexpr u32 kBatch = 4;  // loads under way at once
  const Scratch& s = sh.scratch;
  u32 base = s.told[kLeader].x, tie_base = s.told[kLeader].y;
#pragma unroll 1
  for (u32 from = kLeader + 1; from < kCluster; ++from) {
    const u32 count = s.told[from].x, ties = s.told[from].y;
#pragma unroll 1
    for (u32 first = slot + threadIdx.x; first < count; first += kBatch * kThreads) {
      u32 keys[kBatch], indices[kBatch];
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) {
        const u32 i = min(first + d * kThreads, count - 1);
        keys[d] = ptx::remote_load(&list.keys[i], from);
        indices[d] = ptx::remote_load(&list.indices[i], from);
      }
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) {
        const u32 i = first + d * kThreads;
        if (i < count) list.keys[base + i] = keys[d], list.indices[base + i] = indices[d];
      }
    }
#pragma unroll 1
    for (u32 i = threadIdx.x; i < ties && tie_base + i < K; i += kThreads) {
      const u32* const index = reinterpret_cast<const u32*>(&sh.staged[K - 1 - i]);
      sh.staged[K - 1 - tie_base - i] = static_cast<int>(ptx::remote_load(index, from));
    }
    base += count;
    tie_base += ties;
  }
}

// n > K. `met`: whether the cluster has shared a row before.
template <int K, int Vec>
__device__ __forceinline__ void row_cluster(const Row& row, const Params& p, u32 r, u32 rank, bool met, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  const u32 room = p.candidates, slot = room / kCluster, lane = threadIdx.x % 32;
  const Part part(row.n, rank);
  // From here on others may write to this block's slots and counts. At first nobody has touched those, later they
  // have been read.
  if (met) {
    ptx::cluster_arrive();
  } else {
    ptx::cluster_arrive_relaxed();
  }
  if (room < kLeastCandidates || row.n < 2 * kSamples) {
    ptx::cluster_wait();
    cluster_by_digits<K, Vec>(row, part, rank, out_of(p, r), sh);
    return;
  }
  Batch<Vec, kClusterDeep<Vec>> ahead;
  const u32 samples = samples_of(K, row.n, room);
  const bool few_equal = find_pivot<Vec>(row, samples, sample_rank(K, row.n, samples, room), sh.rest, sh.bins, s,
                                         [&] { load_ahead(row, part.begin, part.end, ahead); });
  const u32 pivot = s.pivot;
  const List list{sh.rest, sh.rest + room, sh.rest + 2 * room, room, way_of(p, few_equal)};
  u32* const slots = sh.rest + 3 * room;
  u32 rest = part.begin;
  if (kQuickValue && few_equal) {
    const Stretch<Vec> stretch(row, part.begin, part.end);
    list_ahead(row, stretch, pivot, ahead, list, s);
    const u32 listed = stretch.base + min(stretch.packs, kClusterDeep<Vec> * kThreads) * Vec;
    rest = max(stretch.first, listed) - row.lead();
  }
  if (rest < part.end) list_reaching<K, Vec, kDeep>(row, rest, part.end, pivot, list, sh);
  __syncthreads();
  ptx::cluster_wait();
  const u32 own = s.gathered;
  if (threadIdx.x < kCluster) {
    ptx::remote_store(&s.told[rank].x, threadIdx.x, own);
    ptx::remote_store(&s.told[rank].y, threadIdx.x, min(s.gathered_ties, static_cast<u32>(K)));
  }
  if (rank != kLeader && own <= room) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < min(own, slot); i += kThreads) {
      ptx::remote_store(&slots[rank * slot + i], kLeader, list.keys[i]);
      ptx::remote_store(&slots[room + rank * slot + i], kLeader, list.indices[i]);
    }
  }
  cluster_barrier();  // every block knows what all have found, and the leader has it, but for what it has to fetch
  const u32 count = lane < kCluster ? s.told[lane].x : 0, tie_count = lane < kCluster ? s.told[lane].y : 0;
  const u32 kept = __reduce_add_sync(0xffffffffu, count), ties = __reduce_add_sync(0xffffffffu, tie_count);
  if (kept > room || kept + ties < K) {
    cluster_by_digits<K, Vec>(row, part, rank, out_of(p, r), sh);
    return;
  }
  const bool fetches = kept < K || __reduce_max_sync(0xffffffffu, count) > slot;
  if (rank == kLeader) {
    join_lists(list, slots, slot, s);
    if (fetches) fetch_lists(list, slot, sh);
    __syncthreads();
  }
  if (fetches) cluster_barrier();  // the leader has fetched
  if (rank != kLeader) return;
  if (kept <= K) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kept; i += kThreads) sh.staged[i] = static_cast<int>(list.indices[i]);
    finish(row, K, out_of(p, r), sh);
  } else {
    // Between the pivot and the largest sample; what lies beyond that is in the last bin.
    select_held(row, list.keys, kept, Spread::of_keys(pivot, s.high), p, r, sh, [&](u32 i) { return list.indices[i]; });
  }
}
