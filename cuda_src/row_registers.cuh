// A short row by one block that holds it in registers: read once, the loads under way while the block makes itself ready;
// then one histogram of bins of equal width in value between the row's bounds, and a handful of candidates to rank. Works on
// the values themselves. What cannot be placed between finite bounds, and a bin that holds too many, is narrowed by keys.
// Called by row_alone.cuh. Shared memory: Shared<K> up to `rest`.
#pragma once
#include "held.cuh"

constexpr u32 kHeldWords = kThreads == 512 ? 32 : kRegisters >= 64 ? 16 : 4;  // of each thread's registers

// f(which of the thread's elements, value, counts) for all of them. Those that count are above the lower end of the order: -inf, and
// NaN where it is the lowest. The others are members only if there are fewer of these than places. No branch: several
// elements are under way at once.
template <int Vec, u32 Packs, class F>
__device__ __forceinline__ void for_each_held(u32 last, const Loaded<Vec> (&held)[Packs], F f) {
#pragma unroll
  for (u32 d = 0; d < Packs; ++d) {
    if (d * kThreads * Vec < last) {  // the same for all threads
#pragma unroll
      for (int v = 0; v < Vec; ++v) {
        const float x = value_of(held[d].bits(v));
        f(d * Vec + v, x, kNanHighest ? !(x <= value_of(kFill)) : x > value_of(kFill));
      }
    }
  }
}

// Where a thread's element lies, counted from row.base.
template <int Vec>
__device__ __forceinline__ u32 held_at(u32 which) {
  return (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec;
}

__device__ __forceinline__ u32 key_of_value(float x) {
  return ordered_key(__float_as_uint(x) >> (sizeof(Logit) == 2 ? 16 : 0));
}

// Those elements of each thread whose bit is set: what narrow.cuh walks.
template <int Vec, u32 Packs>
struct Undecided {
  u32 last, first;
  const Loaded<Vec> (&held)[Packs];
  u32 bits;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      if (bits >> which & 1) f(key_of_value(x), held_at<Vec>(which) - first);
    });
  }
};

// Returns whether the row is done. K < n.
template <int K, int Vec>
__device__ __forceinline__ bool row_registers(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  // Scalar loads need more registers beside the elements; with so many places there would be none left.
  constexpr u32 kHeld = Vec == 1 && K > 2048 && kHeldWords == 32 ? 24 : kHeldWords;
  constexpr u32 kWords = sizeof(Loaded<Vec>) / 4, kPacks = kHeld / kWords < 32 / Vec ? kHeld / kWords : 32 / Vec;
  const u32 first = row.lead(), last = first + row.n;  // positions from row.base
  if (!kQuickValue || last > kPacks * Vec * kThreads) return false;
  Scratch& s = sh.scratch;
  Loaded<Vec> held[kPacks];
#pragma unroll
  for (u32 d = 0; d < kPacks; ++d) {
    held[d] = {};
    if (d * kThreads * Vec < last) {
      const u32 at = (d * kThreads + threadIdx.x) * Vec;
      if (at + Vec <= last && (!kRowStarts || at >= first)) {
        held[d].load(row.base + at);
      } else {
        const int begin = at < first ? static_cast<int>(first - at) : 0;
        held[d].load_some(row.base + at, begin, at < last ? static_cast<int>(min(last - at, static_cast<u32>(Vec))) : 0,
                          kFill);
      }
    }
  }
  const auto index_of = [&](u32 which) { return held_at<Vec>(which) - first; };
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.tie_count = 0, s.digit = ~0u;
  const float infinity = -value_of(kFill);
  float low = infinity, high = -infinity;
  for_each_held<Vec>(last, held, [&](u32, float x, bool counts) {
    const bool bounds = counts && x < infinity;
    low = bounds ? fminf(low, x) : low;
    high = bounds ? fmaxf(high, x) : high;
  });
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 warp_low = __reduce_min_sync(0xffffffffu, key_of_value(low));
  const u32 warp_high = __reduce_max_sync(0xffffffffu, key_of_value(high));
  if (lane == 0) s.lows[warp] = warp_low, s.highs[warp] = warp_high;
  __syncthreads();
  const Spread spread(__reduce_min_sync(0xffffffffu, s.lows[lane % kWarps]),
                      __reduce_max_sync(0xffffffffu, s.highs[lane % kWarps]));
  const bool spreads = spread.usable();
  if (spreads) {
    for_each_held<Vec>(last, held, [&](u32, float x, bool counts) {
      const u32 own = spread.bin_of(x);
      if (counts) atomicAdd(&sh.bins[own], 1u);
    });
    __syncthreads();
    find_bin(sh.bins, K, s);
  }
  const u32 bin = s.digit;
  u32 members = 0, candidates = 0;  // bits: which of the thread's elements
  bool ranks = true;
  if (bin != ~0u && s.count <= kRanked) {
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool counts) {
      const u32 own = spread.bin_of(x);
      members |= counts && own > bin ? 1u << which : 0u;
      candidates |= counts && own == bin ? 1u << which : 0u;
    });
  } else {
    // One bin holds too many; or too few count, and the rest is -inf or NaN; or there are no bins between such bounds.
    const u32 counted = __reduce_add_sync(0xffffffffu, spreads && lane < kWarps ? s.warp_sums[lane] : 0u);
    if (bin == ~0u && threadIdx.x == 0) s.need = K - counted;
    u32 there = 0, undecided = 0;
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool counts) {
      const u32 at = held_at<Vec>(which);
      const bool in_row = at < last && (!kRowStarts || at >= first);
      there |= in_row ? 1u << which : 0u;
      undecided |= (bin != ~0u ? counts && spread.bin_of(x) == bin : in_row && !(spreads && counts)) ? 1u << which : 0u;
    });
    Open open;
    ranks = decide(open, sh.bins, s, Undecided<Vec, kPacks>{last, first, held, undecided});
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      const u32 key = key_of_value(x), index = index_of(which), one = there & 1u << which;
      members |= open.below(key, index) ? one : 0u;
      candidates |= open.holds(key, index) ? one : 0u;
    });
  }
  const u32 need = s.need;
  u32 place = warp_places(kMember * __popc(members) + kCandidate * __popc(candidates), &s.tie_count);
  for_each_held<Vec>(last, held, [&](u32 which, float, bool) {
    const bool member = members >> which & 1;
    if (member) sh.staged[place >> 16] = static_cast<int>(index_of(which));
    place += member ? kMember : 0u;
  });
  const Candidates waiting(sh.bins);
#pragma unroll 1
  while (candidates) {
    const u32 which = 31 - __clz(candidates), index = index_of(which);
    candidates ^= 1u << which;
    const u32 to = place & 0xffffu;
    if (ranks) {
      waiting.keys[to] = ordered_key(row.bits(index));
      waiting.indices[to] = index;
    } else if (to < need) {
      sh.staged[K - need + to] = static_cast<int>(index);
    }
    place += kCandidate;
  }
  __syncthreads();
  if (ranks) {
    finish_ranked(row, p, r, sh);
  } else {
    finish(row, K, out_of(p, r), sh);
  }
  return true;
}
