// A short row by one block that holds it in registers: read once, the loads under way while the block makes itself
// ready; then one histogram of bins of equal width in value between the row's bounds, and a handful of candidates to
// rank. Works on the values themselves. A bin that holds too many is divided again; what cannot be placed between finite
// bounds is narrowed in shared memory (held.cuh), or left to others where it does not fit. Called by row_alone.cuh.
// Shared memory: Shared<K>, of `rest` as much as there is.
#pragma once
#include "held.cuh"

constexpr u32 kHeldWords = kThreads == 512 ? 32 : kRegisters >= 64 ? 16 : 4;  // of each thread's registers

// f(which of the thread's elements, value, counts) for all of them. Those that count are above the lower end of the
// order: -inf, and NaN where it is the lowest. The others are members only if there are fewer of these than places. No
// branch: several elements are under way at once.
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

__device__ __forceinline__ u32 key_of_value(float x) {
  return ordered_key(__float_as_uint(x) >> (sizeof(Logit) == 2 ? 16 : 0));
}

// What became of a row: nothing, its keys lie in shared memory, or it is done.
enum class Registers { kNothing, kHeld, kDone };

// K < n. Where the keys lie in `rest`, tie_count is zero; no barrier since.
template <int K, int Vec>
__device__ __forceinline__ Registers row_registers(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  // Scalar loads need more registers beside the elements; there would be none left.
  constexpr u32 kHeld = Vec == 1 && kHeldWords == 32 ? 28 : kHeldWords;
  constexpr u32 kWords = sizeof(Loaded<Vec>) / 4, kPacks = kHeld / kWords < 32 / Vec ? kHeld / kWords : 32 / Vec;
  const u32 first = row.lead(), last = first + row.n;  // positions from row.base
  if (!kQuickValue || last > kPacks * Vec * kThreads) return Registers::kNothing;
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
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.tie_count = 0;
  // The row's elements in groups, at least one for each place: K elements are no less than the smallest of their
  // maxima.
  constexpr u32 kGroups = K <= kThreads ? 1 : K <= 2 * kThreads ? 2 : 4;
  constexpr bool kGrouped = kRegisters >= 64 && kGroups <= Vec && K <= kGroups * kThreads;
  const float infinity = -value_of(kFill);
  float low = infinity, high = -infinity;
  if (kGrouped && last >= kThreads * Vec) {
    float most[kGroups];
#pragma unroll
    for (u32 g = 0; g < kGroups; ++g) most[g] = -infinity;
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      float& group = most[which % kGroups];
      group = fmaxf(group, x < infinity ? x : -infinity);
    });
#pragma unroll
    for (u32 g = 0; g < kGroups; ++g) low = fminf(low, most[g]), high = fmaxf(high, most[g]);
  }
  const auto all_bounds = [&] {
    for_each_held<Vec>(last, held, [&](u32, float x, bool counts) {
      const bool bounds = counts && x < infinity;
      low = bounds ? fminf(low, x) : low;
      high = bounds ? fmaxf(high, x) : high;
    });
  };
  if (!(kGrouped && last >= kThreads * Vec)) all_bounds();
  const u32 lane = threadIdx.x % 32;
  Interval bounds = shared_bounds(key_of_value(low), key_of_value(high), s);
  if (kGrouped && bounds.low == kLowestNumber) {  // a group of -inf only
    low = infinity, high = -infinity;
    all_bounds();
    __syncthreads();
    bounds = shared_bounds(key_of_value(low), key_of_value(high), s);
  }
  low = value_of(bits_of(bounds.low)), high = value_of(bits_of(bounds.high));
  if (last > kThreads * Vec) {
    // One that is far above all others would leave them to one bin: the bound is the largest of all warps but its.
    const u32 own = s.highs[lane % kWarps], others = __reduce_max_sync(0xffffffffu, own < bounds.high ? own : 0u);
    if (others > bounds.low) high = value_of(bits_of(others));
  }
  Spread spread(low, high);
  u32 bin = ~0u;
  if (spread.usable() && high < infinity) {
    for_each_held<Vec>(last, held, [&](u32, float x, bool) { atomicAdd(&sh.bins[spread.bin_of(x)], 1u); });
    __syncthreads();
    find_bin(sh.bins, K, s);
    bin = s.digit != 0 ? s.digit : ~0u;  // there lies what is no number, or below all
  }
  u32 members = 0, candidates = 0;  // bits: which of the thread's elements
  bool equal = false;
  if (bin != ~0u) {
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      const u32 own = spread.four_bins_of(x);
      members |= own > 4 * bin ? 1u << which : 0u;
      candidates |= own == 4 * bin ? 1u << which : 0u;
    });
    if (kRegisters < 64 && s.count > kRanked) bin = ~0u;  // no registers for what follows
#pragma unroll 1
    while (kRegisters >= 64 && s.count > kRanked) {  // the same again within the bin
      low = infinity, high = -infinity;
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        low = candidates >> which & 1 ? fminf(low, x) : low;
        high = candidates >> which & 1 ? fmaxf(high, x) : high;
      });
      clear_bins(sh.bins);
      const Interval within = shared_bounds(key_of_value(low), key_of_value(high), s);
      low = value_of(bits_of(within.low)), high = value_of(bits_of(within.high));
      equal = !kTies && !kNanHighest && low == high;
      if (equal) break;
      spread = Spread(low, high);
      if (kNanHighest || low == high || !spread.usable()) {
        bin = ~0u;
        break;
      }
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        const u32 own = spread.bin_of(x);
        if (candidates >> which & 1) atomicAdd(&sh.bins[own], 1u);
      });
      __syncthreads();
      find_bin(sh.bins, s.need, s);
      bin = s.digit;
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        const u32 own = spread.four_bins_of(x), one = candidates & 1u << which;
        members |= own > 4 * bin ? one : 0u;
        candidates ^= own != 4 * bin ? one : 0u;
      });
    }
  }
  if (bin == ~0u) {
    // Too few count, and the rest is -inf or NaN; or there are no bins between such bounds; or ties are told apart.
    if (row.n > 2 * p.candidates) return Registers::kNothing;
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      const u32 at = (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec;
      if (at < last && (!kRowStarts || at >= first)) sh.rest[at - first] = key_of_value(x);
    });
    return Registers::kHeld;
  }
  const u32 need = s.need;
  u32 place = warp_places(kMember * __popc(members) + kCandidate * __popc(candidates), &s.tie_count);
  const auto index_of = [&](u32 which) { return (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec - first; };
  for_each_held<Vec>(last, held, [&](u32 which, float, bool) {
    const bool member = members >> which & 1;
    if (member) sh.staged[place >> 16] = static_cast<int>(index_of(which));
    place += member ? kMember : 0u;
  });
  const Candidates waiting(sh.bins);
#pragma unroll 1
  while (candidates && (!equal || (place & 0xffffu) < need)) {
    const u32 which = 31 - __clz(candidates), index = index_of(which), to = place & 0xffffu;
    candidates ^= 1u << which;
    if (equal) {  // any of them
      sh.staged[K - need + to] = static_cast<int>(index);
    } else {
      waiting.keys[to] = ordered_key(row.bits(index));
      waiting.indices[to] = index;
    }
    place += kCandidate;
  }
  __syncthreads();
  finish_ranked(row, p, r, !equal, sh);
  return Registers::kDone;
}
