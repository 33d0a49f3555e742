// A short row by one block that holds it in registers: read once, the loads under way while the block makes itself
// ready; then one histogram of bins of equal width in value between the row's bounds, and a handful of candidates to
// rank. Works on the values themselves. What nearly all rows take stands in one piece, and the rest behind it, since the
// first row's time is also that of fetching instructions. The rest: too few that count are filled up with -inf and NaN; of a
// bin that holds too many, one element of a sample is tried, since many there are usually equal, and what is left is divided
// again. What cannot be placed so is narrowed in shared memory (held.cuh), or left to others where it does not fit. Called
// by row_alone.cuh. Shared memory: Shared<K>, of `rest` as much as there is.
#pragma once
#include "held.cuh"

constexpr u32 kHeldWords = kThreads == 512 ? 32 : kRegisters >= 64 ? 16 : 4;  // of each thread's registers
static_assert(32 * kThreads <= kMostCounted,
              "a thread's elements are bits of a word; all threads' are counted in 16 bits");

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

// Loads a thread's parts from From to before `whole`. The others have no value, and then a compiler keeps their registers
// from row to row; where there are too few of those, they are cleared, which the loads have to wait for.
constexpr bool kClears = kRegisters < 64 || 4 * kHeldWords > kRegisters;
template <u32 From, int Vec, u32 Packs>
__device__ __forceinline__ void load_whole(const Logit* own, u32 whole, Loaded<Vec> (&held)[Packs]) {
  if constexpr (From < Packs) {
    if (From < whole) {
      held[From].load(own + From * kThreads * Vec);
      load_whole<From + 1>(own, whole, held);
    } else if constexpr (kClears) {
#pragma unroll
      for (u32 d = From; d < Packs; ++d) held[d] = {};
    }
  }
}

// What became of a row: nothing, its keys lie in shared memory, or it is done.
enum class Registers { kNothing, kHeld, kDone };

// K < n. Where the keys lie in `rest`, tie_count is zero; no barrier since.
template <int K, int Vec>
__device__ __forceinline__ Registers row_registers(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  // Scalar loads need more registers beside the elements; there would be none left.
  constexpr u32 kHeld = Vec == 1 && kHeldWords == 32 ? 28 : kHeldWords;
  constexpr u32 kWords = sizeof(Loaded<Vec>) / 4, kPacks = kHeld / kWords < 32 / Vec ? kHeld / kWords : 32 / Vec;
  // Whether a bin that holds too many is divided here. Narrow loads need more registers.
  constexpr bool kDivides = !kNanHighest && kRegisters >= 64 && (kWords == 4 || 4 * kHeldWords <= kRegisters);
  const u32 first = row.lead(), last = first + row.n;  // positions from row.base
  if (!kQuickValue || last > kPacks * Vec * kThreads) return Registers::kNothing;
  Scratch& s = sh.scratch;
  const Logit* const base = Vec == 1 ? row.base : ptx::opaque(row.base);
  Loaded<Vec> held[kPacks];
  // Loads that all threads make stand together, and so do their instructions: little is in the way of the first ones.
  constexpr u32 kTurn = kThreads * Vec;
  const u32 whole = last / kTurn, own = threadIdx.x * Vec;
  const auto load_part = [&](u32 at, Loaded<Vec>& to) {
    if (at + Vec <= last && (!kRowStarts || at >= first)) {
      to.load(base + at);
    } else {
      to.load_some(base + at, at < first ? static_cast<int>(first - at) : 0,
                   at < last ? static_cast<int>(min(last - at, static_cast<u32>(Vec))) : 0, kFill);
    }
  };
  const bool cut = kRowStarts && first != 0;
  load_whole<0>(base + own, whole, held);
  clear_bins(sh.bins);
  if (threadIdx.x == 0) s.tie_count = 0;
  if (cut) load_part(own, held[0]);
  if (last % kTurn != 0 && (whole != 0 || !cut)) {
    Loaded<Vec> part;
    load_part(whole * kTurn + own, part);
#pragma unroll
    for (u32 d = 0; d < kPacks; ++d) {
      if (d == whole) held[d] = part;
    }
  }
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
  const bool grouped = kGrouped && last >= kTurn;
  if (!grouped) {
    all_bounds();
  } else {
    group_bounds(false);
  }
  const u32 lane = threadIdx.x % 32;
  Interval bounds = shared_bounds(key_of_bound(low), key_of_bound(high), s);
  Spread spread = Spread::none();
  bool divided = false;  // by value between finite bounds
  u32 bin = ~0u;
  u32 members = 0, candidates = 0;  // bits: which of the thread's elements
  const auto index_of = [&](u32 which) { return (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec - first; };
  const auto divide = [&] {
    low = bound_of_key(bounds.low), high = bound_of_key(bounds.high);
    if (last > kTurn) {
      // One that is far above all others would leave them to one bin: the bound is the largest of all warps but its.
      const u32 own = s.highs[lane % kWarps], others = __reduce_max_sync(0xffffffffu, own < bounds.high ? own : 0u);
      if (others > bounds.low) high = bound_of_key(others);
    }
    spread = Spread(low, high);
    divided = spread.usable() && high < infinity;
    if (!divided) return;
    for_each_held<Vec>(last, held, [&](u32, float x, bool) { atomicAdd(&sh.bins[spread.bin_of(x)], 1u); });
    __syncthreads();
    find_bin(sh.bins, K, s);
    if (s.digit == 0) return;  // there lies what is no number, or below all
    bin = s.digit;
    const Told told = tell_by_bin<Vec>(last, held, spread, bin);
    members = told.above, candidates = told.within;
  };
  // Of `count` candidates in all threads `need` are members: any, where they are equal.
  const auto complete = [&](bool equal, u32 need, u32 count) {
    const Out out = out_of(p, r);
    const u32 places = warp_places(kMember * __popc(members) + kCandidate * __popc(candidates), &s.tie_count);
    u32 place = places >> 16, among = places & 0xffffu;
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
      if (equal) {
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
  };
  const bool infinite = grouped && (bounds.high == key_of_bound(infinity) || bounds.low == key_of_bound(-infinity));
  if (!infinite) {
    divide();
    // What nearly all rows end with stands by itself, so that instructions are fetched one after the other.
    if (bin != ~0u && s.count <= kRanked) return complete(false, s.need, s.count);
  } else {
    if (bounds.high == key_of_bound(infinity)) {
      group_bounds(true);
      __syncthreads();
      bounds = shared_bounds(key_of_bound(low), key_of_bound(high), s);
    }
    if (bounds.low == key_of_bound(-infinity)) {  // a group of -inf only
      all_bounds();
      __syncthreads();
      bounds = shared_bounds(key_of_bound(low), key_of_bound(high), s);
    }
    divide();
  }
  if constexpr (kDivides) {
    bool equal = false;
    u32 need = divided ? s.need : K, count = divided ? s.count : 0, larger, same;
    // Which candidates are larger than a number, and which are the same: how many, as kMember and kCandidate. A barrier.
    const auto compare = [&](float with) {
      larger = same = 0;
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        larger |= x > with ? 1u << which : 0u;
        same |= x == with ? 1u << which : 0u;
      });
      larger &= candidates, same &= candidates;
      return block_sum(kMember * __popc(larger) + kCandidate * __popc(same), s);
    };
    if (bin == ~0u && !kTies) {
      bool filled = divided;  // all that count are members, if they are too few
      const bool finite = bounds.low <= bounds.high;
      if (!filled && (!finite || __popc(__ballot_sync(0xffffffffu, s.highs[lane % kWarps] == bounds.high)) >= 4)) {
        // No bins between such bounds. If several warps have the upper one, many elements may.
        candidates = ~0u;
        const u32 sums = compare(finite ? bound_of_key(bounds.high) : infinity);
        const u32 above = sums >> 16, reached = above + (sums & 0xffffu);
        equal = above < K && K <= reached, filled = !equal && !finite;
        members = larger, candidates = same, need = K - above;
      }
      if (filled) {  // with -inf, then NaN
        members = candidates = 0;
        for_each_held<Vec>(last, held, [&](u32 which, float x, bool counts) {
          members |= counts ? 1u << which : 0u;
          candidates |= x == -infinity && index_of(which) < row.n ? 1u << which : 0u;
        });
        __syncthreads();
        const u32 sums = block_sum(kMember * __popc(members) + kCandidate * __popc(candidates), s);
        const u32 counted = sums >> 16, lowest = sums & 0xffffu;
        need = K - counted;
        equal = counted < K;  // they may be enough: bins are rounded, so the lowest may lie in bin 0
        if (equal && lowest < need) {
          members |= candidates, candidates = 0, need -= lowest;
          for_each_held<Vec>(last, held, [&](u32 which, float x, bool) { candidates |= x != x ? 1u << which : 0u; });
        }
      }
      bin = equal ? 0 : ~0u;
    }
#pragma unroll 1
    while (bin != ~0u && !equal && count > kRanked) {
      // One of them is tried, since where a bin holds many they are often equal; then bins between their bounds.
      low = infinity, high = -infinity;
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        low = candidates >> which & 1 ? fminf(low, x) : low;
        high = candidates >> which & 1 ? fmaxf(high, x) : high;
      });
      clear_bins(sh.bins);
      // Zeros of both signs compare equal, and fmaxf and fminf may return either: the highest is +0.0 then, and what lies
      // below the lowest is in its bin.
      bounds = shared_bounds(key_of_bound(low), key_of_bound(high + 0.0f), s);
      low = bound_of_key(bounds.low), high = bound_of_key(bounds.high);
      equal = low == high;
      if (equal) break;
      if (threadIdx.x < 32) {  // a sample of them, and of that the one in the place of the one looked for
        float some = 0.0f;
        for_each_held<Vec>(last, held, [&](u32 which, float x, bool) { some = candidates >> which & 1 ? x : some; });
        const u32 key = candidates != 0 ? key_of_bound(some + 0.0f) : 0u;
        const u32 have = max(__popc(__ballot_sync(0xffffffffu, key != 0)), 1);
        const u32 wanted = min(need * have / count, have - 1);
        u32 before = 0;
#pragma unroll 4
        for (u32 j = 0; j < 32; ++j) {
          const u32 other = __shfl_sync(0xffffffffu, key, j);
          before += other > key || (other == key && j < lane) ? 1u : 0u;
        }
        if (before == wanted) s.pivot = key;
      }
      __syncthreads();
      const float tried = bound_of_key(max(s.pivot, bounds.low));
      const u32 sums = compare(tried), above = sums >> 16, reached = above + (sums & 0xffffu);
      if (above >= need) {
        candidates = larger, count = above;
        bounds.low = key_of_bound(tried);
      } else {
        members |= larger;
        if (need <= reached) {
          candidates = same, need -= above, equal = true;
          break;
        }
        members |= same, need -= reached;
        candidates &= ~(larger | same), count -= reached;
        bounds.high = key_of_bound(tried);
      }
      if (count <= kRanked) break;
      // Within a bin, or between neighbours of a sample, keys are spread about as evenly as values.
      const u32 bits = 32 - __clz(bounds.high - bounds.low), shift = bits > kDigitBits ? bits - kDigitBits : 0;
      const auto digit_of = [&](float x) { return (max(key_of_bound(x), bounds.low) - bounds.low) >> shift; };
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        if (candidates >> which & 1) atomicAdd(&sh.bins[digit_of(x)], 1u);
      });
      __syncthreads();
      find_bin(sh.bins, need, s);
      need = s.need, count = s.count, bin = s.digit;
      larger = same = 0;
      for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
        const u32 own = digit_of(x);
        larger |= own > bin ? 1u << which : 0u;
        same |= own == bin ? 1u << which : 0u;
      });
      members |= candidates & larger, candidates &= same;
    }
    if (bin != ~0u && !(kTies && equal)) return complete(equal, need, count);
  }
  // Nothing is told apart by value, or ties are, or NaN is the highest, or there are no registers to go on here.
  if (row.n > 2 * p.candidates) return Registers::kNothing;
  for_each_held<Vec>(last, held, [&](u32 which, float x, bool) {
    const u32 at = (threadIdx.x + which / Vec * kThreads) * Vec + which % Vec;
    const u32 key = ordered_key(__float_as_uint(x) >> (sizeof(Logit) == 2 ? 16 : 0));
    if (at < last && (!kRowStarts || at >= first)) sh.rest[at - first] = key;
  });
  return Registers::kHeld;
}
