// One block walks a stretch of a row: f(key, index, valid) for every element, the widest loads that the plan allows.
// All threads call f equally often, so f may use warp votes; lanes past the end come with valid == false.
// Before: row + begin is aligned to Vec floats. Nothing at or past `end` is read. No shared memory, no barrier.
#pragma once
#include "keys.cuh"

template <int Vec>
struct Pack;
template <>
struct Pack<1> {
  using type = float;
};
template <>
struct Pack<2> {
  using type = float2;
};
template <>
struct Pack<4> {
  using type = float4;
};

// The first `valid` of Vec consecutive floats, the others as zeros.
template <int Vec>
__device__ __forceinline__ void load_pack(const float* from, u32 valid, float (&x)[Vec]) {
  using P = typename Pack<Vec>::type;
  if (valid == Vec) {
    const P pack = __ldg(reinterpret_cast<const P*>(from));
    if constexpr (Vec == 1) {
      x[0] = pack;
    } else if constexpr (Vec == 2) {
      x[0] = pack.x, x[1] = pack.y;
    } else {
      x[0] = pack.x, x[1] = pack.y, x[2] = pack.z, x[3] = pack.w;
    }
  } else {
#pragma unroll
    for (int v = 0; v < Vec; ++v) x[v] = v < static_cast<int>(valid) ? __ldg(from + v) : 0.0f;
  }
}

template <int Vec, class F>
__device__ __forceinline__ void for_each_key(const float* row, u32 begin, u32 end, F f) {
  // `at` may pass `end` by less than one step; widths end at 2^31 - 1, so 32 unsigned bits hold it.
#pragma unroll 1
  for (u32 base = begin; base < end; base += kThreads * Vec) {
    const u32 at = base + threadIdx.x * Vec;
    const u32 valid = at < end ? min(end - at, static_cast<u32>(Vec)) : 0;
    float x[Vec];
    load_pack<Vec>(row + at, valid, x);
#pragma unroll
    for (int v = 0; v < Vec; ++v) f(ordered_key(x[v]), at + v, v < static_cast<int>(valid));
  }
}
