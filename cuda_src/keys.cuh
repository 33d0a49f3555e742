// A logit's bits as an unsigned key that orders the same way. Called wherever a logit is read. NaN, whatever its sign
// and payload, is the lowest or the highest key. -0.0 lies just below +0.0; the two compare equal, so which of them
// fills the last places is as unspecified as for any tie. Where indices tell ties apart, or values are sorted, the two
// are one key.
#pragma once
#include "params.cuh"

constexpr u32 kKeyBits = 8 * sizeof(Logit);
constexpr bool kOneZero = kTies || kOrder == Order::kValue;

__device__ __forceinline__ u32 ordered_key(u32 bits) {
  if constexpr (kDtype == Dtype::kFloat32) {
    float x = __uint_as_float(bits);
    if constexpr (kOneZero) bits = x == 0.0f ? 0u : bits;
    const u32 key = bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
    return x != x ? (kNanHighest ? 0xffffffffu : 0u) : key;
  } else {
    constexpr u32 kInfinity = kDtype == Dtype::kBfloat16 ? 0x7f80u : 0x7c00u;
    const u32 magnitude = bits & 0x7fffu;
    if constexpr (kOneZero) bits = magnitude == 0 ? 0u : bits;
    const u32 key = bits & 0x8000u ? ~bits & 0xffffu : bits | 0x8000u;
    return magnitude > kInfinity ? (kNanHighest ? 0xffffu : 0u) : key;
  }
}

// The bits of -inf, which fill the values of a row with fewer elements than places.
constexpr u32 kFill = kDtype == Dtype::kFloat32 ? 0xff800000u : kDtype == Dtype::kBfloat16 ? 0xff80u : 0xfc00u;

constexpr u32 kHighest = kNanHighest ? 0xffffffffu >> (32 - kKeyBits) : kFill;  // the key of NaN, or of +inf
constexpr u32 kLowestNumber = kFill ^ 0xffffffffu >> (32 - kKeyBits);           // the key of -inf

// The bits of a logit with this key (of -0.0's the one that has it).
__device__ __forceinline__ u32 bits_of(u32 key) {
  constexpr u32 kSign = 1u << (kKeyBits - 1);
  return key & kSign ? key ^ kSign : ~key & (kSign | (kSign - 1));
}

constexpr bool kQuickValue = kDtype != Dtype::kFloat16;  // a float is one instruction away from the bits

__device__ __forceinline__ float value_of(u32 bits) {
  return __uint_as_float(kDtype == Dtype::kBfloat16 ? bits << 16 : bits);
}

// The cheapest test there is: a pivot's value may not be NaN.
__device__ __forceinline__ bool float_reaches(u32 bits, float value) {
  const float x = value_of(bits);
  return kNanHighest ? !(x < value) : x >= value;
}

// A test that every logit passes whose key reaches a pivot, and few others: cheaper than the key.
class Reaches {
 public:
  __device__ __forceinline__ explicit Reaches(u32 pivot)
      : pivot_(pivot), value_(value_of(bits_of(pivot))), all_(value_ != value_) {}

  __device__ __forceinline__ bool operator()(u32 bits) const {
    if constexpr (!kQuickValue) return ordered_key(bits) >= pivot_;
    return all_ | float_reaches(bits, value_);  // a pivot that is NaN tells nothing apart
  }

 private:
  u32 pivot_;
  float value_;
  bool all_;
};

// Bins of equal width in value between two of them: what selections of logits are usually told apart by at once, where
// digits of the key crowd into a few exponents. The lower one falls into bin 1, what is far below it into bin 0, and
// what is above the upper one into the last.
template <u32 Bins>
class SpreadOver {
 public:
  // Of one value: its own bin, and the last for what is larger by one.
  __device__ __forceinline__ SpreadOver(float low, float high) : low_(low) {
    width_ = low == high ? 1.0f - 2.0f * kEach : high - low;
    scale_ = low == high ? 1.0f : __fdividef(1.0f - 2.0f * kEach, high - low);
    shift_ = fmaf(-low, scale_, 1.5f * kEach);
  }
  static __device__ __forceinline__ SpreadOver of_keys(u32 low, u32 high) {
    return {value_of(bits_of(low)), value_of(bits_of(high))};
  }
  static __device__ __forceinline__ SpreadOver none() { return {0.0f, -1.0f}; }
  // Not between NaN or infinities, nor where they are too near to each other or too far apart.
  __device__ __forceinline__ bool usable() const { return kQuickValue && scale_ > 0.0f && scale_ < 1e38f; }
  __device__ __forceinline__ u32 bin(u32 key) const { return bin_of(value_of(bits_of(key))); }
  __device__ __forceinline__ u32 bin_of(float x) const { return four_bins_of(x) / 4; }
  // 2^21 and the bin's number, to a quarter: the same order as the values', since a fused multiply-add is monotonic however
  // it is rounded, and floats from 2^21 on are the quarters.
  __device__ __forceinline__ float quarter_of(float x) const {
    // Of a NaN it makes zero. (Compilers take a minimum and a maximum for the same and get NaN wrong.)
    const float saturated = __saturatef(fmaf(x, scale_, shift_)), part = kNanHighest && x != x ? 1.0f : saturated;
    return fmaf(part, static_cast<float>(Bins - 1), 2097152.0f);
  }
  // The bin's number times four.
  __device__ __forceinline__ u32 four_bins_of(float x) const { return __float_as_uint(quarter_of(x)) & 4 * (Bins - 1); }

  // The key of a value about where a bin begins.
  __device__ __forceinline__ u32 edge(u32 bin) const {
    const float x = fmaf((static_cast<float>(bin) - 1.625f) * (kEach / (1.0f - 2.0f * kEach)), width_, low_);
    return ordered_key(__float_as_uint(x) >> (kDtype == Dtype::kBfloat16 ? 16 : 0));
  }

 private:
  static constexpr float kEach = 1.0f / static_cast<float>(Bins - 1);
  float low_, width_, scale_, shift_;
};
using Spread = SpreadOver<kBins>;
