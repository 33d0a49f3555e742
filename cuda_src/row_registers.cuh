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

// Bounds are ordered as keys of 32 bits, whatever the logits are; they are never NaN.
__device__ __forceinline__ u32 key_of_bound(float x) {
  const int bits = static_cast<int>(__float_as_uint(x));
  return static_cast<u32>(bits ^ (bits >> 31 & 0x7fffffff)) ^ 0x80000000u;
}
__device__ __forceinline__ float bound_of_key(u32 key) {
  const int bits = static_cast<int>(key ^ 0x80000000u);
  return __uint_as_float(static_cast<u32>(bits ^ (bits >> 31 & 0x7fffffff)));
}

// Which of a thread's elements lie above a bin, and which in it: bits.
struct Told {
  u32 above, within;
};
// The units that add and multiply floats have twice as many lanes as those that compare and choose, so no comparison: each
// element becomes a one or a zero of either question, and these are added up as binary digits of a float.
template <int Vec, u32 Packs>
__device__ __forceinline__ Told tell_by_bin(u32 last, const Loaded<Vec> (&held)[Packs], const Spread& spread, u32 bin) {
  if constexpr (Vec == 1) {  // whose loads leave no registers for the sums
    Told told{};
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      const u32 own = spread.four_bins_of(x);
      told.above |= own > 4 * bin ? 1u << which : 0u;
      told.within |= own == 4 * bin ? 1u << which : 0u;
    });
    return told;
  }
  constexpr float kDigits = 8388608.0f;  // 2^23: from here on a float is a whole number, in its lowest bits
  const float four = 4.0f * static_cast<float>(bin) + kDigits;
  float above[2] = {kDigits, kDigits}, reached[2] = {kDigits, kDigits};  // of 16 elements each
  for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
    const float own = spread.quarter_of(x), digit = static_cast<float>(1u << which % 16);
    above[which / 16] = fmaf(__saturatef(fmaf(own, 4.0f, -3.0f - four)), digit, above[which / 16]);
    reached[which / 16] = fmaf(__saturatef(fmaf(own, 4.0f, 1.0f - four)), digit, reached[which / 16]);
  });
  const auto bits = [](const float (&sums)[2]) {
    const u32 low = __float_as_uint(sums[0]) & 0xffffu;
    return Packs * Vec > 16 ? low | __float_as_uint(sums[1]) << 16 : low;
  };
  return {bits(above), bits(reached) & ~bits(above)};
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
  const Logit* const base = Vec == 1 ? row.base : ptx::opaque(row.base);
  Loaded<Vec> held[kPacks];
#pragma unroll
  for (u32 d = 0; d < kPacks; ++d) {
    held[d] = {};
    if (d * kThreads * Vec < last) {
      const u32 at = (d * kThreads + threadIdx.x) * Vec;
      if (at + Vec <= last && (!kRowStarts || at >= first)) {
        held[d].load(base + at);
      } else {
        const int begin = at < first ? static_cast<int>(first - at) : 0;
        held[d].load_some(base + at, begin, at < last ? static_cast<int>(min(last - at, static_cast<u32>(Vec))) : 0,
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
  const auto group_bounds = [&](bool finite) {
    float most[kGroups];
#pragma unroll
    for (u32 g = 0; g < kGroups; ++g) most[g] = -infinity;
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      float& group = most[which % kGroups];
      group = fmaxf(group, finite ? x + (x - x) : x);  // of a NaN and a number the number; of infinities it makes NaN
    });
    low = infinity, high = -infinity;
#pragma unroll
    for (u32 g = 0; g < kGroups; ++g) low = fminf(low, most[g]), high = fmaxf(high, most[g]);
  };
  const auto all_bounds = [&] {
    low = infinity, high = -infinity;
    for_each_held<Vec>(last, held, [&](u32, float x, bool counts) {
      const bool bounds = counts && x < infinity;
      low = bounds ? fminf(low, x) : low;
      high = bounds ? fmaxf(high, x) : high;
    });
  };
  if (kGrouped && last >= kThreads * Vec) {
    group_bounds(false);
  } else {
    all_bounds();
  }
  const u32 lane = threadIdx.x % 32;
  Interval bounds = shared_bounds(key_of_bound(low), key_of_bound(high), s);
  if (kGrouped && bounds.high == key_of_bound(infinity)) {
    group_bounds(true);
    __syncthreads();
    bounds = shared_bounds(key_of_bound(low), key_of_bound(high), s);
  }
  if (kGrouped && bounds.low == key_of_bound(-infinity)) {  // a group of -inf only
    all_bounds();
    __syncthreads();
    bounds = shared_bounds(key_of_bound(low), key_of_bound(high), s);
  }
  low = bound_of_key(bounds.low), high = bound_of_key(bounds.high);
  if (last > kThreads * Vec) {
    // One that is far above all others would leave them to one bin: the bound is the largest of all warps but its.
    const u32 own = s.highs[lane % kWarps], others = __reduce_max_sync(0xffffffffu, own < bounds.high ? own : 0u);
    if (others > bounds.low) high = bound_of_key(others);
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
    const Told told = tell_by_bin<Vec>(last, held, spread, bin);
    members = told.above, candidates = told.within;
    if (kRegisters < 64 && s.count > kRanked) bin = ~0u;  // no registers for what follows
#pragma unroll 1
    while (kRegisters >= 64 && s.count > kRanked) {  // the same again within the bin
      low = infinity, high = -infinity;
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        low = candidates >> which & 1 ? fminf(low, x) : low;
        high = candidates >> which & 1 ? fmaxf(high, x) : high;
      });
      clear_bins(sh.bins);
      const Interval within = shared_bounds(key_of_bound(low), key_of_bound(high), s);
      low = bound_of_key(within.low), high = bound_of_key(within.high);
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
      const Told told = tell_by_bin<Vec>(last, held, spread, bin);
      members |= candidates & told.above, candidates &= told.within;
    }
  }
  if (bin == ~0u) {
    // Too few count, and the rest is -inf or NaN; or there are no bins between such bounds; or ties are told apart.
    if (row.n > 2 * p.candidates) return Registers::kNothing;
    for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
      const u32 at = (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec;
      const u32 key = ordered_key(__float_as_uint(x) >> (sizeof(Logit) == 2 ? 16 : 0));
      if (at < last && (!kRowStarts || at >= first)) sh.rest[at - first] = key;
    });
    return Registers::kHeld;
  }
  const u32 need = s.need, count = s.count;
  const Out out = out_of(p, r);
  const u32 places = warp_places(kMember * __popc(members) + kCandidate * __popc(candidates), &s.tie_count);
  u32 place = places >> 16, among = places & 0xffffu;
  const auto index_of = [&](u32 which) { return (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec - first; };
  for_each_held<Vec>(last, held, [&](u32 which, float, bool) {
    const bool member = members >> which & 1;
    if (member) sh.staged[place] = static_cast<int>(index_of(which));
    place += member;
  });
  const Candidates waiting(sh.bins);
#pragma unroll 1
  while (candidates && (!equal || among < need)) {
    const u32 which = 31 - __clz(candidates), index = index_of(which);
    candidates ^= 1u << which;
    if (equal) {  // any of them
      sh.staged[K - need + among] = static_cast<int>(index);
    } else {
      waiting.keys[among] = ordered_key(row.bits(index));
      waiting.indices[among] = index;
    }
    ++among;
  }
  __syncthreads();
  finish_ranked(row, out, equal ? 0 : need, equal ? 0 : count, sh);
  return Registers::kDone;
}
