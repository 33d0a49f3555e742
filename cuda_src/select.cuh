// The state of a radix selection, and how its members reach the output.
// Called by every row path. A key is resolved from the top in digits of 11, 11 and 10 bits; members are staged in
// shared memory and leave coalesced. Barriers: none here but in clear_bins' callers' hands.
#pragma once
#include "ptx.cuh"
#include "scan.cuh"

// A block's dynamic shared memory. `rest` holds keys (held.cuh) or candidates with their
// indices (row_alone.cuh).
template <int K>
struct Shared {
  u32 bins[kBins];
  union {
    Scratch scratch;
    u32 scratch_words[DRVTOPK_SCRATCH_BYTES / 4];
  };
  int staged[(K + 3) / 4 * 4];
  u32 rest[1];
};

// What is known so far of the k-th largest key: keys with key >> shift above `prefix` are members; Scratch has the
// `count` of keys that equal it and says how many of those, `need`, are members too.
struct Threshold {
  u32 prefix;
  u32 shift;

  __device__ __forceinline__ bool above(u32 key) const { return key >> shift > prefix; }
  __device__ __forceinline__ bool tied(u32 key) const { return key >> shift == prefix; }
  // Nothing more can be told apart: all tied keys are members, or they are equal to the last bit.
  __device__ __forceinline__ bool decided(const Scratch& s) const { return shift == 0 || s.count == s.need; }
  __device__ __forceinline__ u32 next_shift() const { return shift > kDigitBits ? shift - kDigitBits : 0; }
  // The digit of a tied key that the next round counts: 11 bits, in the last round 10.
  __device__ __forceinline__ u32 next_digit(u32 key) const {
    const u32 next = next_shift();
    return key >> next & ((1u << (shift - next)) - 1);
  }
  __device__ __forceinline__ void refine(const Scratch& s) {
    const u32 next = next_shift();
    prefix = prefix << (shift - next) | s.digit;
    shift = next;
  }
};

constexpr u32 kOpeningShift = 32 - kDigitBits;

__device__ __forceinline__ u32 opening_digit(u32 key) { return key >> kOpeningShift; }

__device__ __forceinline__ void clear_bins(u32* bins) {
  bins[threadIdx.x] = 0;
  bins[threadIdx.x + kThreads] = 0;
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

// The k staged indices to a row's output. Before: a barrier since the last stage().
template <int K>
__device__ __forceinline__ void write_staged(const int* staged, int* out) {
#pragma unroll 1
  for (u32 i = threadIdx.x; i < K; i += kThreads) out[i] = staged[i];
}
