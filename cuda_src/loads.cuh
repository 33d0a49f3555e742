// One block walks a stretch of a row: f(key, index, valid) for every element, the widest loads that the plan allows.
// All threads call f equally often, so f may use warp votes; lanes past the end come with valid == false.
// Before: row.base + begin is aligned to Vec logits, unless rows begin anywhere (kRowStarts). Nothing at or past `end` is
// read; before `begin` at most what lies in the same load. No shared memory, no barrier.
#pragma once
#include "keys.cuh"

// The elements of one row that count: its window.
struct Row {
  const Logit* base;  // aligned to Vec logits
  u32 n;
  u32 skip;  // logits between base and the window's first, fewer than Vec; zero unless kRowStarts

  __device__ __forceinline__ u32 lead() const { return kRowStarts ? skip : 0u; }
  __device__ __forceinline__ u32 bits(u32 index) const { return __ldg(base + lead() + index); }
};

template <int Bytes>
struct Pack;
template <>
struct Pack<2> {
  using type = unsigned short;
};
template <>
struct Pack<4> {
  using type = u32;
};
template <>
struct Pack<8> {
  using type = uint2;
};
template <>
struct Pack<16> {
  using type = uint4;
};

// The bits of the first `valid` of Vec consecutive logits, the others as zeros.
template <int Vec>
__device__ __forceinline__ void load_pack(const Logit* from, u32 valid, u32 (&bits)[Vec]) {
  constexpr int kBytes = Vec * static_cast<int>(sizeof(Logit));
  using P = typename Pack<kBytes>::type;
  if (valid == Vec) {
    const P pack = __ldg(reinterpret_cast<const P*>(from));
    u32 words[kBytes < 4 ? 1 : kBytes / 4];
    if constexpr (kBytes <= 4) {
      words[0] = pack;
    } else if constexpr (kBytes == 8) {
      words[0] = pack.x, words[1] = pack.y;
    } else {
      words[0] = pack.x, words[1] = pack.y, words[2] = pack.z, words[3] = pack.w;
    }
#pragma unroll
    for (int v = 0; v < Vec; ++v) {
      if constexpr (sizeof(Logit) == 4) {
        bits[v] = words[v];
      } else {
        bits[v] = v % 2 ? words[v / 2] >> 16 : words[v / 2] & 0xffffu;
      }
    }
  } else {
#pragma unroll
    for (int v = 0; v < Vec; ++v) bits[v] = v < static_cast<int>(valid) ? __ldg(from + v) : 0u;
  }
}

template <int Vec, class F>
__device__ __forceinline__ void for_each_key(const Row row, u32 begin, u32 end, F f) {
  // Positions count from row.base. `at` may pass the last by less than one step; widths end at 2^31 - 1, so 32 unsigned
  // bits hold it.
  const u32 first = begin + row.lead(), last = end + row.lead();
  const Logit* const from = row.base;
#pragma unroll 1
  for (u32 base = kRowStarts ? first / Vec * Vec : first; base < last; base += kThreads * Vec) {
    const u32 at = base + threadIdx.x * Vec;
    const u32 there = at < last ? min(last - at, static_cast<u32>(Vec)) : 0;
    u32 bits[Vec];
    load_pack<Vec>(from + at, there, bits);
#pragma unroll
    for (int v = 0; v < Vec; ++v) {
      f(ordered_key(bits[v]), at + v - row.lead(), v < static_cast<int>(there) && (!kRowStarts || at + v >= first));
    }
  }
}
