// Which of a few hundred bins holds the need-th largest of some keys? Fewer bins than scan.cuh has, so that one warp
// finds it alone: what block-wide scans cost is their steps, each of which waits for the one before. Shared memory:
// coarse_words<Bins> of the bins.
#pragma once
#include "narrow.cuh"

// Words from the bins of one lane of the warp that finds to the next lane's: odd, so that no two lanes read from one bank.
template <u32 Bins>
constexpr u32 kCoarseStride = Bins / 32 + 1;

template <u32 Bins>
__device__ __forceinline__ void clear_coarse(u32* words) {
  constexpr u32 kWords = 32 * kCoarseStride<Bins>;
#pragma unroll
  for (u32 i = 0; i < kWords; i += kThreads) {
    if (i + kThreads <= kWords || i + threadIdx.x < kWords) words[i + threadIdx.x] = 0;
  }
}

// Where `bin` is counted; it counts from the top: bin 0 has the largest keys.
template <u32 Bins>
__device__ __forceinline__ u32* coarse_bin(u32* words, u32 bin) {
  constexpr u32 kEach = Bins / 32;
  return words + bin / kEach * kCoarseStride<Bins> + bin % kEach;
}

// Leaves the bin, from the top, in s.digit, which of its keys it is in s.need, and its keys in s.count: zero if there are
// fewer keys than `need`. Before: a barrier since the keys were counted. After: a barrier.
template <u32 Bins>
__device__ __forceinline__ void find_coarse(const u32* words, u32 need, Scratch& s) {
  if (threadIdx.x < 32) {
    constexpr u32 kEach = Bins / 32;
    const u32 lane = threadIdx.x;
    const u32* const mine = words + lane * kCoarseStride<Bins>;
    u32 upper = 0, lower = 0;  // halves of the lane's bins
#pragma unroll
    for (u32 j = 0; j < kEach / 2; ++j) upper += mine[j], lower += mine[j + kEach / 2];
    const u32 upto = ptx::sum_upto(upper + lower);
    if (lane == 31 && upto < need) s.count = 0;
    u32 seen = upto - upper - lower;
    if (seen < need && need <= upto) {
      const bool behind = need - seen > upper;
      const u32 first = behind ? kEach / 2 : 0;
      seen += behind ? upper : 0u;
      u32 counts[kEach / 2];
#pragma unroll
      for (u32 j = 0; j < kEach / 2; ++j) counts[j] = mine[first + j];
      u32 bin = 0, count = 0, above = 0;
#pragma unroll
      for (u32 j = 0; j < kEach / 2; ++j) {
        if (seen < need) bin = j, count = counts[j], above = seen;  // the last one for which this holds
        seen += counts[j];
      }
      s.digit = lane * kEach + first + bin;
      s.need = need - above;
      s.count = count;
    }
  }
  __syncthreads();
}

// One round of bins of equal width in key for at least one number that each(f) calls f(number, how often) for; numbers
// above `high`, which may be any, fall into the topmost bin. Leaves the bin in `in`, and in Scratch what find_coarse does;
// returns its count. Before: the coarse bins are cleared; a barrier since. After: a barrier.
template <u32 Bins, class Each>
__device__ __forceinline__ u32 coarse_round(Interval& in, u32 low, u32 high, u32 need, u32* words, Scratch& s,
                                            const Each& each) {
  constexpr u32 kBits = Bins == 512 ? 9 : 8;
  static_assert(1u << kBits == Bins, "bins by the bits of a key");
  const u32 bits = high > low ? 32 - __clz(high - low) : 0, shift = bits > kBits ? bits - kBits : 0;
  each([&](u32 x, u32 often) {
    if (x >= low) atomicAdd(coarse_bin<Bins>(words, Bins - 1 - min((x - low) >> shift, Bins - 1)), often);
  });
  __syncthreads();
  find_coarse<Bins>(words, need, s);
  if (s.count == 0) return 0;
  in.low = low + (Bins - 1 - s.digit << shift);
  in.high = s.digit == 0 ? ~0u : in.low + min((1u << shift) - 1, ~0u - in.low);
  return s.count;
}
