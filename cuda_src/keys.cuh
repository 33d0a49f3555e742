// A logit's bits as an unsigned key that orders the same way. Called wherever a logit is read.
// NaN, whatever its sign and payload, is the lowest or the highest key. -0.0 lies just below +0.0; the two compare equal, so
// which of them fills the last places is as unspecified as for any tie. Where indices tell ties apart, or values are
// sorted, the two are one key.
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
