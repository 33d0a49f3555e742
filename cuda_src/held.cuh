// A stretch of a row that one block holds in shared memory as keys, so that memory is read once however many rounds it
// takes to decide. What selects a row has barriers inside; of the other steps none has.
#pragma once
#include "finish.cuh"
#include "loads.cuh"
#include "narrow.cuh"

static_assert(kShortMax <= kMostCounted && kMaxCandidates <= kMostCounted, "held keys are counted in 16 bits");

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

// Where the candidates for the last places wait to be ranked: in the bins, which have been read by then.
struct Candidates {
  u32* keys;
  u32* indices;

  __device__ __forceinline__ explicit Candidates(u32* bins) : keys(bins), indices(bins + kRanked) {}
};

// The row's output: staged members, then, if some wait to be ranked, of `count` candidates the best `need`.
// Before: tie_count was zero when they were staged; a barrier since.
template <int K>
__device__ __forceinline__ void finish_ranked(const Row& row, const Out& to, u32 need, u32 count, Shared<K>& sh) {
  const Candidates candidates(sh.bins);
  const u32 first = K - need;
  if constexpr (kSorts) {
    rank_candidates(candidates.keys, candidates.indices, count, need,
                    [&](u32 place, u32 index) { sh.staged[first + place] = static_cast<int>(index); });
    __syncthreads();
    finish(row, K, to, sh);
  } else {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < first; i += kThreads) to.put(row, i, static_cast<u32>(sh.staged[i]));
    rank_candidates(candidates.keys, candidates.indices, count, need,
                    [&](u32 place, u32 index) { to.put(row, first + place, index); });
    __syncthreads();  // before the next row's bins
  }
}

// Counts keys by `spread`. Several are under way at once: without branches the loads stay together.
__device__ __forceinline__ void count_spread(const u32* keys, u32 held, const Spread& spread, u32* bins) {
  constexpr u32 kBatch = 4;
#pragma unroll 1
  for (u32 base = 0; base < held; base += kBatch * kThreads) {
    u32 own[kBatch];
#pragma unroll
    for (u32 d = 0; d < kBatch; ++d) own[d] = spread.bin(keys[min(base + d * kThreads + threadIdx.x, held - 1)]);
#pragma unroll
    for (u32 d = 0; d < kBatch; ++d) {
      if (base + d * kThreads + threadIdx.x < held) atomicAdd(&bins[own[d]], 1u);
    }
  }
}

// Held keys in one bin of `spread`, or all of them: what narrow.cuh walks. f(key, index), the index only where ties are
// told apart.
constexpr u32 kEveryBin = ~0u;
template <class IndexOf>
struct HeldInBin {
  const u32* keys;
  u32 held;
  const Spread& spread;
  u32 bin;
  IndexOf index_of;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < held; i += kThreads) {
      const u32 key = keys[i];
      if (bin == kEveryBin || spread.bin(key) == bin) f(key, kTies ? index_of(i) : 0u);
    }
  }
};

// Stages the members among held keys, and calls waits(place, i) for those that wait for the last places, in places from
// 0 on, until it says that later places are of no use. tell(key, i, member, waiting) says which they are. Batch:
// elements of a thread in a turn. Before: tie_count is zero.
template <u32 Batch, int K, class IndexOf, class Tell, class Waits>
__device__ __forceinline__ void stage_told(const u32* keys, u32 held, Shared<K>& sh, IndexOf index_of, Tell tell,
                                           Waits waits) {
#pragma unroll 1
  for (u32 base = 0; base < held; base += Batch * kThreads) {
    u32 members = 0, waiting = 0;  // bits: which of the thread's elements
#pragma unroll
    for (u32 d = 0; d < Batch; ++d) {
      const u32 i = base + d * kThreads + threadIdx.x;
      bool member, waits_too;
      tell(keys[min(i, held - 1)], min(i, held - 1), member, waits_too);
      members |= i < held && member ? 1u << d : 0u;
      waiting |= i < held && waits_too ? 1u << d : 0u;
    }
    u32 place = warp_places(kMember * __popc(members) + kCandidate * __popc(waiting), &sh.scratch.tie_count);
#pragma unroll
    for (u32 d = 0; d < Batch; ++d) {
      const u32 i = min(base + d * kThreads + threadIdx.x, held - 1);
      if (members >> d & 1) sh.staged[place >> 16] = static_cast<int>(index_of(i));
      place += members >> d & 1 ? kMember : 0u;
    }
#pragma unroll 1
    while (waiting) {
      const u32 d = 31 - __clz(waiting);
      waiting ^= 1u << d;
      if (!waits(place & 0xffffu, base + d * kThreads + threadIdx.x)) break;
      place += kCandidate;
    }
  }
}

// The row's output from held keys, none of them below the lower bound of `spread`, which may be unusable.
// Before: the bins are cleared, tie_count is zero; a barrier since.
template <int K, class IndexOf>
__device__ __forceinline__ void select_held(const Row& row, const u32* keys, u32 held, const Spread& spread,
                                            const Params& p, u32 r, Shared<K>& sh, IndexOf index_of) {
  Scratch& s = sh.scratch;
  u32 bin = kEveryBin;
  bool ranks = false;
  if (spread.usable()) {
    count_spread(keys, held, spread, sh.bins);
    __syncthreads();
    find_bin(sh.bins, K, s);
    bin = s.digit;
    ranks = s.count <= kRanked;
  } else if (threadIdx.x == 0) {
    s.need = K;
  }
  const Candidates candidates(sh.bins);
  const auto rank_later = [&](u32 place, u32 i) {
    candidates.keys[place] = keys[i];
    candidates.indices[place] = index_of(i);
    return true;
  };
  if (ranks) {
    const auto tell = [&](u32 key, u32, bool& member, bool& waits) {
      const u32 own = spread.four_bins_of(value_of(bits_of(key)));
      member = own > 4 * bin;
      waits = own == 4 * bin;
    };
    // Each turn costs a scan and an atomic: few and larger ones, where registers allow.
    if (kRegisters < 64 || held <= 4 * kThreads) {
      stage_told<4>(keys, held, sh, index_of, tell, rank_later);
    } else {
      stage_told<8>(keys, held, sh, index_of, tell, rank_later);
    }
  } else {
    Open open;
    ranks = decide(open, sh.bins, s, HeldInBin<IndexOf>{keys, held, spread, bin, index_of});
    const u32 need = s.need;
    const auto tell = [&](u32 key, u32 i, bool& member, bool& waits) {
      const u32 index = kTies ? index_of(i) : 0u;
      member = open.below(key, index);
      waits = open.holds(key, index);
    };
    stage_told<4>(keys, held, sh, index_of, tell, [&](u32 place, u32 i) {
      if (ranks) return rank_later(place, i);
      if (place < need) sh.staged[K - need + place] = static_cast<int>(index_of(i));
      return place < need;
    });
  }
  __syncthreads();
  finish_ranked(row, out_of(p, r), ranks ? s.need : 0u, ranks ? s.count : 0u, sh);
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
