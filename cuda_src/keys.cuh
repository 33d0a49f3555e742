// A float as an unsigned key that orders the same way. Called wherever a logit is read.
// NaN, whatever its sign and payload, is key 0: below -inf. -0.0 lies just below +0.0; the two compare equal, so
// which of them fills the last places is as unspecified as for any tie.
#pragma once
#include "params.cuh"

__device__ __forceinline__ u32 ordered_key(float x) {
  const u32 bits = __float_as_uint(x);
  const u32 key = bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
  return x != x ? 0u : key;
}
