// A pivot from the elements that a block holds in registers anyway: that value which as many of its threads' largest
// elements reach as should be the block's share of the row's members, and a few more. Shared memory: the bins, Scratch.
// Barriers inside.
#pragma once
#include "coarse.cuh"
#include "deal.cuh"

constexpr u32 kOwnBins = 256;  // that a pivot is found in: it need not be exact

// The largest bound of all warps but for those that are the largest, so that one outlier stretches no bins.
__device__ __forceinline__ u32 next_highest(u32 own, u32 highest) {
  const u32 next = __reduce_max_sync(0xffffffffu, own < highest ? own : 0u);
  return next != 0 ? next : highest;
}

// The largest elements of a thread's groups, as keys; zero: none.
struct Largest {
  u32 keys[4];
  u32 groups;

  template <class F>
  __device__ __forceinline__ void operator()(F f) const {
    if (keys[0] != 0) f(keys[0], 1u);
    if (groups < 2) return;  // the same for all threads
#pragma unroll
    for (u32 g = 1; g < 4; ++g) {
      if (keys[g] != 0) f(keys[g], 1u);
    }
  }
};

// The key that about `wanted` groups of this block's held elements reach with their largest; whether many equal it; and
// about the largest key. Barriers inside.
template <int K, int Vec, u32 Loads>
__device__ __forceinline__ u32 own_pivot(const Share<Vec>& share, const Loaded<Vec> (&held)[Loads], u32 wanted,
                                         bool& many, u32& top, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  const float least = value_of(kFill), none = __uint_as_float(0x7fffffffu);
  float most[4] = {none, none, none, none};
  share.each(0, held, [&](u32 which, float x) { most[which % 4] = fmaxf(most[which % 4], x); });
  // As few groups as are enough, since each costs an update of a bin.
  const u32 threads = min(kThreads, (share.last / Vec + kCluster - 1) / kCluster);
  const u32 groups = 9 * wanted <= 4 * threads ? 1 : 9 * wanted <= 8 * threads ? 2 : 4;
  if (groups < 4) most[0] = fmaxf(most[0], most[2]), most[1] = fmaxf(most[1], most[3]);
  if (groups < 2) most[0] = fmaxf(most[0], most[1]);
  Largest largest{{}, groups};
  u32 low = ~0u, high = 0;
#pragma unroll
  for (u32 g = 0; g < 4; ++g) {
    largest.keys[g] = 0;
    if (g < groups) {  // the same for all threads
      const u32 key = ordered_key(__float_as_uint(most[g] + 0.0f) >> (sizeof(Logit) == 2 ? 16 : 0));
      if (most[g] > least) largest.keys[g] = key, low = min(low, key);  // groups of -inf, or of nothing, are none
      high = max(high, key);                                            // of a NaN, zero
    }
  }
  clear_coarse<kOwnBins>(sh.bins);
  if (threadIdx.x == 0) s.gathered = s.gathered_ties = s.candidate_count = 0;
  const Interval bounds = shared_bounds(low, high, s);
#if DRVTOPK_CLUSTER > 1
  ptx::cluster_wait();  // the other blocks are there by now; earlier, the first loads would wait for it
#endif
  const u32 lane = threadIdx.x % 32;
  many = true;
  top = bounds.high;
  if (bounds.low > bounds.high) return bounds.high;  // only -inf and NaN; or NaN alone, whose key is zero
  top = max(next_highest(s.highs[lane % kWarps], bounds.high), bounds.low);
  const u32 few = 16 + wanted / 16;
  const auto spread = SpreadOver<kOwnBins>::of_keys(bounds.low, top);
  if (spread.usable()) {
    largest([&](u32 key, u32) { atomicAdd(coarse_bin<kOwnBins>(sh.bins, kOwnBins - 1 - spread.bin(key)), 1u); });
    __syncthreads();
    find_coarse<kOwnBins>(sh.bins, wanted, s);
    if (s.count == 0) return kLowestNumber;  // too few groups
    many = s.count > few;
    if (!many && s.digit != kOwnBins - 1) return max(spread.edge(kOwnBins - 1 - s.digit), kLowestNumber + 1);
  }
  // Where many are equal, it is often the smallest that many threads have nothing above.
  u32 sums = 0;
  largest([&](u32 key, u32) { sums += key > bounds.low ? kMember + kCandidate : kCandidate; });
  sums = block_sum(sums, s);
  if (sums >> 16 < wanted && wanted <= (sums & 0xffffu)) {
    many = true;
    return bounds.low;
  }
  if (threadIdx.x == 0) s.need = wanted;
  Interval in;
  const u32 count = narrow(in, few, false, sh.bins, s, largest);
  if (count == 0) return kLowestNumber;
  many = count > few;  // or all are one value
  return in.low;
}
