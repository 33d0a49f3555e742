// What reaches a block's pivot, and how the keys of all blocks' lists are walked. Shared memory: what `candidates` give
// behind Shared<K>. No barrier inside.
#pragma once
#include "deal.cuh"
#include "select.cuh"

// Where the blocks' lists lie: of each block `slot` keys, all blocks' one behind the other, then the indices of this
// block's own; those of keys that equal its pivot, where many do, from the end.
struct Gathered {
  u32* keys;
  u32* indices;
  u32 slot, rank;

  __device__ __forceinline__ Gathered(u32* rest, u32 candidates, u32 own) : keys(rest), rank(own) {
    constexpr u32 kHalves = kCluster == 1 ? 2 : kCluster == 2 ? 6 : 8;  // halves of `candidates` that all slots take
    static_assert(kMaxCandidates * kHalves / 2 <= kMostCounted, "the keys of all lists are counted in 16 bits");
    slot = candidates * kHalves / (2 * kCluster) / 4 * 4;  // keys are sent four at a time
    indices = keys + slot * kCluster;
  }
  __device__ __forceinline__ u32* own_keys() const { return keys + rank * slot; }
  // Room for indices of ties: no more than K in all blocks together are needed.
  __device__ __forceinline__ u32 tie_room() const { return slot / 2; }
};

// Lists what of a batch is at least `value`, as much as there is room for; all are counted. Whole warps call it.
template <int Vec, u32 Loads>
__device__ __forceinline__ void list_batch(const Share<Vec>& share, u32 batch, const Loaded<Vec> (&held)[Loads],
                                           float value, const Gathered& to, u32 room, Scratch& s) {
  u32 hits = 0;
  share.each(batch, held, [&](u32 which, float x) { hits |= x >= value ? 1u << which : 0u; });
  if (!__ballot_sync(0xffffffffu, hits != 0)) return;
  u32 place = warp_places(__popc(hits), &s.gathered);
  const bool few = !share.there(batch, 4);
#pragma unroll 1
  for (; hits != 0 && place < room; ++place) {
    const u32 which = 31 - __clz(hits);
    hits ^= 1u << which;
    to.own_keys()[place] = ordered_key(chosen(held, which, few));
    to.indices[place] = share.position(batch, which / Vec) + which % Vec - share.first;
  }
}

// The same for those that equal it; only their indices. Whole warps call it.
template <int Vec, u32 Loads>
__device__ __forceinline__ void list_ties(const Share<Vec>& share, u32 batch, const Loaded<Vec> (&held)[Loads],
                                          float value, const Gathered& to, Scratch& s) {
  const bool nan = value != value;
  if (__shfl_sync(0xffffffffu, ptx::load_shared(&s.gathered_ties), 0) >= to.tie_room()) return;
  u32 hits = 0;
  share.each(batch, held, [&](u32 which, float x) { hits |= (nan ? x != x : x == value) ? 1u << which : 0u; });
  const auto at = [&](u32 which) { return share.position(batch, which / Vec) + which % Vec; };
  if (nan && !share.all_of_row(batch)) {  // what is not of the row was made NaN
#pragma unroll 1
    for (u32 rest = hits; rest != 0;) {
      const u32 which = 31 - __clz(rest);
      rest ^= 1u << which;
      if (at(which) < share.first || at(which) >= share.last / Vec * Vec) hits ^= 1u << which;
    }
  }
  // One of each lane in a turn: where there are many, one turn of all warps is enough.
#pragma unroll 1
  while (const u32 votes = __ballot_sync(0xffffffffu, hits != 0)) {
    u32 place = 0;
    if (threadIdx.x % 32 == 0) place = atomicAdd(&s.gathered_ties, static_cast<u32>(__popc(votes)));
    place = __shfl_sync(0xffffffffu, place, 0) + __popc(votes & ptx::lanes_below());
    if (hits != 0) {
      const u32 which = 31 - __clz(hits);
      hits ^= 1u << which;
      if (place < to.tie_room()) to.indices[to.slot - 1 - place] = at(which) - share.first;
    }
    if (__ballot_sync(0xffffffffu, place >= to.tie_room()) != 0) break;
  }
}

// The keys that a warp counts: every Step-th of one block's list from those of its lanes on. f(keys, place of the first),
// kBatch keys of each lane at once, Step apart; zero: there is none. All lanes of a warp take every turn.
constexpr u32 kBatch = 4;
template <u32 Step>
struct Listed {
  const u32* keys;
  u32 part, there;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
#pragma unroll 1
    for (u32 base = part; base - threadIdx.x % 32 < there; base += kBatch * Step) {
      u32 key[kBatch];
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) key[d] = base + d * Step < there ? keys[base + d * Step] : 0u;
      f(key, base);
    }
  }
};

// Those that there are, and ties at the highest pivot: f(key, how often).
template <u32 Step>
struct Counted {
  const Listed<Step>& listed;
  u32 tied, ties;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
    listed([&](const u32(&keys)[kBatch], u32) {
#pragma unroll
      for (u32 d = 0; d < kBatch; ++d) {
        if (keys[d] != 0) f(keys[d], 1u);
      }
    });
    if (threadIdx.x == 0 && ties != 0) f(tied, ties);
  }
};
