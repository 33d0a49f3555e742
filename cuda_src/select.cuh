// The state of a radix selection, and how its members are staged. A key is resolved from the top in digits of 11 bits
// (32-bit keys: 11, 11 and 10; 16-bit keys: 11 and 5); where ties are told apart, the index follows as further digits
// of the same key (9, 11 and 11, the ones that the row's length needs). Members are staged in shared memory and leave
// coalesced. Barriers: none here but in clear_bins' callers' hands.
#pragma once
#include "keys.cuh"
#include "ptx.cuh"
#include "scan.cuh"

// The smallest power of two that holds K members for the sort, at least what two registers of a warp hold.
template <int K>
__host__ __device__ constexpr int sorted_places() {
  int places = 64;
  while (places < K) places *= 2;
  return places;
}

// A block's dynamic shared memory. `rest` holds keys (held.cuh) or candidates with their
// indices (row_alone.cuh). A sort by value puts its keys where the bins were.
template <int K>
struct Shared {
  u32 bins[kOrder == Order::kValue && sorted_places<K>() > static_cast<int>(kBins) ? sorted_places<K>() : kBins];
  union {
    Scratch scratch;
    u32 scratch_words[DRVTOPK_SCRATCH_BYTES / 4];
  };
  int staged[kSorts ? sorted_places<K>() : (K + 3) / 4 * 4];
  u32 rest[1];
};

constexpr u32 kOpeningShift = kKeyBits - kDigitBits;

// What is known so far of the k-th largest key: keys with key >> shift above `prefix` are members; Scratch has the
// `count` of keys that equal it and says how many of those, `need`, are members too.
// With kTies the key goes on below its last bit with the index, turned around where the smallest is wanted.
struct Threshold {
  u32 prefix;
  u32 shift;
  u32 index_prefix;
  u32 index_shift;

  static __device__ __forceinline__ u32 rank(u32 index) { return kTieBreak == TieBreak::kSmallest ? ~index : index; }

  // After the first round over n elements, which found `digit`.
  __device__ __forceinline__ Threshold(u32 digit, u32 n) : prefix(digit), shift(kOpeningShift) {
    if constexpr (kTies) {
      index_shift = n > 1u << 2 * kDigitBits ? 31 : n > 1u << kDigitBits ? 2 * kDigitBits : kDigitBits;
      index_prefix = rank(0) >> index_shift;  // the same for every index below n
    }
  }
  __device__ __forceinline__ bool above(u32 key, u32 index) const {
    const u32 top = key >> shift;
    if constexpr (kTies) {
      return top > prefix || (top == prefix && rank(index) >> index_shift > index_prefix);
    }
    return top > prefix;
  }
  __device__ __forceinline__ bool tied(u32 key, u32 index) const {
    if constexpr (kTies) return key >> shift == prefix && rank(index) >> index_shift == index_prefix;
    return key >> shift == prefix;
  }
  // Nothing more can be told apart: all tied keys are members, or they are equal to the last bit.
  __device__ __forceinline__ bool decided(const Scratch& s) const {
    return s.count == s.need || (shift == 0 && (!kTies || index_shift == 0));
  }
  __device__ __forceinline__ u32 next_shift() const { return shift > kDigitBits ? shift - kDigitBits : 0; }
  __device__ __forceinline__ u32 next_index_shift() const {
    return index_shift > 2 * kDigitBits ? 2 * kDigitBits : index_shift > kDigitBits ? kDigitBits : 0;
  }
  // The digit of a tied key that the next round counts.
  __device__ __forceinline__ u32 next_digit(u32 key, u32 index) const {
    if constexpr (kTies) {
      if (shift == 0) {
        const u32 next = next_index_shift();
        return rank(index) >> next & ((1u << (index_shift - next)) - 1);
      }
    }
    const u32 next = next_shift();
    return key >> next & ((1u << (shift - next)) - 1);
  }
  __device__ __forceinline__ void refine(const Scratch& s) {
    if constexpr (kTies) {
      if (shift == 0) {
        const u32 next = next_index_shift();
        index_prefix = index_prefix << (index_shift - next) | s.digit;
        index_shift = next;
        return;
      }
    }
    const u32 next = next_shift();
    prefix = prefix << (shift - next) | s.digit;
    shift = next;
  }
};

__device__ __forceinline__ u32 opening_digit(u32 key) { return key >> kOpeningShift; }

__device__ __forceinline__ void clear_bins(u32* bins) {
#pragma unroll
  for (u32 b = 0; b < kBins; b += kThreads) bins[threadIdx.x + b] = 0;
}

// A place for each lane whose `wanted` is set, from a counter in shared memory: one atomic a warp.
// All 32 lanes must call it.
__device__ __forceinline__ u32 take_place(u32* counter, bool wanted) {
  const u32 votes = __ballot_sync(0xffffffffu, wanted);
  if (votes == 0) return 0;
  const u32 below = ptx::lanes_below();
  u32 base = 0;
  if (below == 0) base = atomicAdd(counter, static_cast<u32>(__popc(votes)));
  return __shfl_sync(0xffffffffu, base, 0) + __popc(votes & below);
}

// Members above the threshold fill `staged` from the front, tied ones the last `need` of its k places; ties beyond
// those are counted and left out. `index()` is asked of members only. All 32 lanes must call it.
template <class Index>
__device__ __forceinline__ void stage(int* staged, Scratch& s, u32 k, bool above, bool tied, Index index) {
  const u32 place = take_place(&s.above_count, above);
  if (above) staged[place] = static_cast<int>(index());
  const u32 tie = take_place(&s.tie_count, tied);
  if (tied && tie < s.need) staged[k - s.need + tie] = static_cast<int>(index());
}
