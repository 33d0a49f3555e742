// Between which numbers does the need-th largest lie? An interval that holds it is made smaller in rounds: to the
// bounds of what is left, then to one of 2048 bins of equal width between those, whatever the numbers are: keys of
// infinities, of few values or of an outlier, and ranks of indices. For what bins of equal width in value (keys.cuh)
// did not tell apart. Barriers inside. The numbers stay where they are and are walked again, in three rounds at most.
#pragma once
#include "rank.cuh"

struct Interval {
  u32 low, high;

  __device__ __forceinline__ bool contains(u32 x) const { return low <= x && x <= high; }
};

constexpr u32 kUncounted = ~0u;

// The smallest and the largest of all threads' numbers. Before: a barrier since the latest bounds were read. After: a
// barrier.
__device__ __forceinline__ Interval shared_bounds(u32 low, u32 high, Scratch& s) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (lane == 0) s.lows[warp] = low, s.highs[warp] = high;
  __syncthreads();
  return {__reduce_min_sync(0xffffffffu, s.lows[lane % kWarps]),
          __reduce_max_sync(0xffffffffu, s.highs[lane % kWarps])};
}

// The bounds of those numbers for which each(f) calls f that lie in an interval; and the bins cleared. No barrier is
// needed before. After: a barrier.
template <class Each>
__device__ __forceinline__ Interval bounds_of(const Interval& in, u32* bins, Scratch& s, const Each& each) {
  u32 low = ~0u, high = 0;
  each([&](u32 x, u32 = 1) {
    if (in.contains(x)) low = min(low, x), high = max(high, x);
  });
  clear_bins(bins);
  __syncthreads();  // the bounds of whoever came here before have been read
  return shared_bounds(low, high, s);
}

// Of the numbers in `in`, the bounds of those that are there, for which each(f) calls f (with how often, if more than
// once): leaves a smaller interval in `in`, in s.need how many of those in it are among the
// s.need largest, and in s.count how many it holds: at most `few`, or, where `whole` is set, wanted ones only, or one
// number however often. Returns s.count, zero if there are fewer than s.need numbers, or kUncounted where all are one and
// nothing was counted. Before: the bins are cleared; a barrier since. After: a barrier; the bins may be overwritten.
template <class Each>
__device__ __forceinline__ u32 narrow_from(Interval& in, u32 few, bool whole, u32* bins, Scratch& s, const Each& each) {
  u32 count = kUncounted;
#pragma unroll 1
  while (in.low != in.high) {
    const u32 bits = 32 - __clz(in.high - in.low), shift = bits > kDigitBits ? bits - kDigitBits : 0;
    each([&](u32 x, u32 often = 1) {
      if (in.contains(x)) atomicAdd(&bins[(x - in.low) >> shift], often);
    });
    __syncthreads();
    find_bin(bins, s.need, s);
    count = s.count;
    if (count == 0) break;  // there are fewer than s.need
    in.low += s.digit << shift;
    in.high = in.low + min(in.high - in.low, (1u << shift) - 1);
    if (count <= few || (whole && count == s.need)) break;
    in = bounds_of(in, bins, s, each);
  }
  return count;
}

// The same of all numbers. No barrier is needed before.
template <class Each>
__device__ __forceinline__ u32 narrow(Interval& in, u32 few, bool whole, u32* bins, Scratch& s, const Each& each) {
  in = bounds_of({0, ~0u}, bins, s, each);
  return narrow_from(in, few, whole, bins, s, each);
}

// What is left to decide: the keys in an interval, and where ties are told apart those of one key whose ranks are in
// another.
struct Open {
  Interval keys, ranks;

  __device__ __forceinline__ bool holds(u32 key, u32 index) const {
    return keys.contains(key) && (!kTies || ranks.contains(Threshold::rank(index)));
  }
  // All of it is a member.
  __device__ __forceinline__ bool below(u32 key, u32 index) const {
    return key > keys.high || (kTies && key == keys.high && Threshold::rank(index) > ranks.high);
  }
};

// Of what each(f) calls f(key, index) for, only the keys.
template <class Each>
struct Keys {
  const Each& each;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
    each([&](u32 key, u32) { f(key); });
  }
};

// Of those with this key, the ranks.
template <class Each>
struct Ranks {
  const Each& each;
  u32 wanted;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
    each([&](u32 key, u32 index) {
      if (key == wanted) f(Threshold::rank(index));
    });
  }
};

// Of what each(f) calls f(key, index) for, which are the s.need largest? Those above `open` are, and s.need of the
// s.count in it: the first of few if they are ranked (then this returns true), otherwise any. Barriers as in `narrow`.
template <class Each>
__device__ __forceinline__ bool decide(Open& open, u32* bins, Scratch& s, const Each& each) {
  u32 count = narrow(open.keys, kRanked, true, bins, s, Keys<Each>{each});
  open.ranks = {0, ~0u};
  if (kTies && count > kRanked && (count == kUncounted || count != s.need)) {  // of one key
    count = narrow(open.ranks, kRanked, true, bins, s, Ranks<Each>{each, open.keys.low});
  }
  return count <= kRanked && count != s.need;
}
