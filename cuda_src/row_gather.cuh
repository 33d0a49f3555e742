// A long row in one reading, by one block or by the blocks of a hardware cluster, each of which holds its first loads
// in registers and guesses a pivot from them (own_pivot.cuh). What reaches it is listed; every block of a cluster sends
// the keys of its list to all others, so that after one barrier all know the same keys, find the same threshold, and
// write their own members. The guess decides the time, never the result: all keys above the highest of the blocks'
// pivots were listed, so if no fewer than K reach that, the K best of the listed ones are the row's; if not, the row
// goes the exact way. For options that tell nothing apart by index and sort nothing. Shared memory: Shared<K> and what
// `candidates` give behind it. Barriers inside.
#pragma once
#include "finish.cuh"
#include "held.cuh"
#include "lists.cuh"
#include "own_pivot.cuh"
#include "row_pass.cuh"

constexpr bool kGathers = kQuickValue && !kTies && !kSorts && !kNanHighest;

constexpr u32 kFull = ~0u;  // instead of a pivot: more was found than there is room for
// Bins that the threshold is found in: enough that one usually holds no more than can be ranked.
template <int K>
constexpr u32 kTellBins = K <= 1024 ? 256 : 512;

// n > K, and at least 32 for each block. Whether the row is done; if not, all blocks of the cluster say so. `met`: how many
// rows the cluster has gathered before.
template <int K, int Vec>
__device__ __forceinline__ bool row_gather(const Row& row, const Params& p, u32 r, u32 rank, u32 met, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Gathered lists(sh.rest, p.candidates, rank);
  const Share<Vec> share(row, rank);
  Loaded<Vec> held[Share<Vec>::kLoads] = {};
  share.load(row, 0, held);
  // What fills no load, fewer than `Vec` elements, is the first block's.
  const u32 left_at = share.last / Vec * Vec + threadIdx.x;
  const bool has_left = rank == 0 && left_at < share.last;
  const u32 left = has_left ? __ldg(row.base + left_at) : kFill;
#if DRVTOPK_CLUSTER > 1
  // From here on others may send to this block. In its first row nobody has touched its slots, later they have been read.
  if (met == 0 && threadIdx.x == 0) ptx::mail_open(&s.mail, kCluster);
  if (r < p.groups) {
    ptx::cluster_arrive_relaxed();
  } else {
    ptx::cluster_arrive();
  }
#endif
  const u32 wanted = sample_rank(K, row.n, share.held(), lists.slot * kCluster);
  share.trim(0, held);
  bool many;
  u32 top;
  const u32 pivot = own_pivot<K, Vec>(share, held, wanted, many, top, sh);
  clear_coarse<kTellBins<K>>(sh.bins);
  // Where many equal the pivot, only what is above it is listed, and enough of those.
  const u32 room = many ? lists.slot - lists.tie_room() : lists.slot;
  const float value = value_of(bits_of(pivot));  // NaN if there is nothing else
  const float reached = !many ? value : value_of(bits_of(max(pivot + 1, kLowestNumber)));
#pragma unroll 1
  for (u32 batch = 0;;) {
    list_batch(share, batch, held, reached, lists, room, s);
    if (many) list_ties(share, batch, held, value, lists, s);
    if (++batch >= share.batches) break;
    share.load(row, batch, held);
    share.trim(batch, held);
  }
  if (has_left) {
    const float x = value_of(left);
    if (x >= reached) {
      const u32 place = atomicAdd(&s.gathered, 1u);
      if (place < room) lists.own_keys()[place] = ordered_key(left), lists.indices[place] = left_at - share.first;
    } else if (many && (x == value || value != value)) {
      const u32 place = atomicAdd(&s.gathered_ties, 1u);
      if (place < lists.tie_room()) lists.indices[lists.slot - 1 - place] = left_at - share.first;
    }
  }
  const Out out = out_of(p, r);
  __syncthreads();
  const u32 own = s.gathered, own_ties = min(s.gathered_ties, lists.tie_room());
  const bool full = own > room;  // more was found than there is room for
#if DRVTOPK_CLUSTER > 1
  // A warp, or several, to each block: they tell it how much they send, and send it. From registers, so the list may be
  // overwritten, and the block may end, before the keys are there.
  static_assert(kWarps % kCluster == 0, "no warps, or not as many, to each block");
  constexpr u32 kWarpsEach = kWarps / kCluster;
  const u32 to = warp / kWarpsEach, part = warp % kWarpsEach * 32 + lane;
  const u32 sent = to == rank || full ? 0 : align_up(own, 4);
  if (part == 0) {
    ptx::mail_announce(&s.mail, to, 16 + 4 * sent);
    ptx::mail_send(&s.told[rank], to, {own, own_ties, full ? kFull : pivot, top}, &s.mail);
  }
#pragma unroll 1
  for (u32 at = 4 * part; at < sent; at += 4 * kWarpsEach * 32) {
    ptx::mail_copy(reinterpret_cast<const uint4*>(lists.own_keys() + at), to, &s.mail);
  }
  ptx::mail_wait(&s.mail, met);
  const uint4 told = lane < kCluster ? s.told[lane] : uint4{0, 0, 0, 0};  // count, ties, pivot, top
  const u32 highest = __reduce_max_sync(0xffffffffu, told.z);
  top = __reduce_max_sync(0xffffffffu, told.w);
  u32 ties = 0, ties_before = 0;  // of all blocks, and of those before this one
  if (__ballot_sync(0xffffffffu, told.y != 0)) {
    const u32 tied = told.z == highest ? told.y : 0u;
    ties = __reduce_add_sync(0xffffffffu, tied);
    ties_before = __reduce_add_sync(0xffffffffu, lane < rank ? tied : 0u);
  }
  const u32 there = s.told[to].x;
  const u32* const from = lists.keys + to * lists.slot;
#else
  constexpr u32 kWarpsEach = kWarps;
  const u32 to = 0, part = threadIdx.x, highest = full ? kFull : pivot, ties = own_ties, ties_before = 0, there = own;
  const u32* const from = lists.keys;
#endif
  if (highest == kFull) {
    __syncthreads();  // what was found has been read
    return false;
  }
  const Listed<kWarpsEach * 32> listed{from, part, there};
  const Counted<kWarpsEach * 32> counted{listed, highest, ties};
  Interval in;
  u32 count = coarse_round<kTellBins<K>>(in, highest, max(top, highest), K, sh.bins, s, counted);
  if (count == 0) return false;  // fewer than K reach the highest pivot
  const bool with_ties = ties != 0 && in.contains(highest);
  const u32 few = with_ties ? 0 : kRanked;
  if (count > few && count != s.need) {
    in = bounds_of(in, sh.bins, s, counted);
    const u32 left = narrow_from(in, few, true, sh.bins, s, counted);
    if (left != kUncounted) count = left;
  }
  // Keys above `in` are members, and `need` of those in it: the best of a few that are ranked; otherwise any, since all are
  // equal or all are members.
  const u32 need = s.need;
  const bool ranks = count <= few && count != need;
  const Candidates waiting(sh.bins);
  const auto above = [&](u32 key) { return key > in.high; };
  const auto within = [&](u32 key) { return in.contains(key) && key != 0; };
  u32 sum = 0;
  listed([&](const u32(&keys)[kBatch], u32 at) {
    u32 waits = 0;  // bits: which of the keys
#pragma unroll
    for (u32 d = 0; d < kBatch; ++d) {
      sum += above(keys[d]) ? kMember : 0u;
      waits |= within(keys[d]) ? 1u << d : 0u;
    }
    if (!ranks) {
      sum += kCandidate * __popc(waits);
    } else if (waits != 0) {
      u32 place = atomicAdd(&s.candidate_count, static_cast<u32>(__popc(waits)));
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) {
        if (waits >> d & 1) {
          waiting.keys[place] = keys[d];
          waiting.indices[place++] = to * lists.slot + at + d * kWarpsEach * 32;
        }
      }
    }
  });
  sum = __reduce_add_sync(0xffffffffu, sum);
  if (lane == 0) s.warp_sums[warp] = sum;
  __syncthreads();
  const u32 first = K - need;  // of the places of those in the interval
  if (to == rank) {            // this warp counted keys of its own block's
    const u32 sums = lane < kWarps ? s.warp_sums[lane] : 0u;
    const u32 before = __reduce_add_sync(0xffffffffu, lane < warp ? sums : 0u);
    u32 place = before >> 16, among = before & 0xffffu;
    listed([&](const u32(&keys)[kBatch], u32 at) {
      u32 index[kBatch];
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) index[d] = lists.indices[min(at + d * kWarpsEach * 32, there - 1)];
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) {
        const u32 votes = __ballot_sync(0xffffffffu, above(keys[d]));
        if (above(keys[d])) out.put(row, place + __popc(votes & ptx::lanes_below()), index[d]);
        place += __popc(votes);
      }
      if (!ranks) {  // the same for all threads
#pragma unroll
        for (u32 d = 0; d < kBatch; ++d) {
          const u32 tied = __ballot_sync(0xffffffffu, within(keys[d]));
          const u32 own_place = among + __popc(tied & ptx::lanes_below());
          if (within(keys[d]) && own_place < need) out.put(row, first + own_place, index[d]);
          among += __popc(tied);
        }
      }
    });
  }
  if (!ranks && own_ties != 0 && pivot == highest && in.contains(highest)) {
    const u32 all = __reduce_add_sync(0xffffffffu, lane < kWarps ? s.warp_sums[lane] : 0u) & 0xffffu;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < own_ties; i += kThreads) {
      const u32 among = all + ties_before + i;
      if (among < need) out.put(row, first + among, lists.indices[lists.slot - 1 - i]);
    }
  }
  if (ranks) {
    const u32 own_first = rank * lists.slot;
    rank_candidates(
        waiting.keys, waiting.indices, count, need, [&](u32 id) { return id - own_first < lists.slot; },
        [&](u32 place, u32 id) { out.put(row, first + place, lists.indices[id - own_first]); });
  }
  __syncthreads();  // before the next row's bins
  return true;
}
