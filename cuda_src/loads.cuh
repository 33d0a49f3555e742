// One block walks a stretch of a row: f(key, index, valid) for every element, the widest loads that the plan allows.
// Before: row.base + begin is aligned to Vec logits, unless rows begin anywhere (kRowStarts). Nothing at or past `end`
// is read; before `begin` at most what lies in the same load. No shared memory, no barrier.
#pragma once
#include "keys.cuh"
#include "ptx.cuh"

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

// Vec consecutive logits as they lie in registers.
template <int Vec>
struct Loaded {
  static constexpr int kBytes = Vec * static_cast<int>(sizeof(Logit));
  using P = typename Pack<kBytes>::type;
  u32 words[kBytes < 4 ? 1 : kBytes / 4];

  __device__ __forceinline__ void take(const P& pack) {
    if constexpr (kBytes <= 4) {
      words[0] = pack;
    } else if constexpr (kBytes == 8) {
      words[0] = pack.x, words[1] = pack.y;
    } else {
      words[0] = pack.x, words[1] = pack.y, words[2] = pack.z, words[3] = pack.w;
    }
  }
  __device__ __forceinline__ void load(const Logit* from) { take(__ldg(reinterpret_cast<const P*>(from))); }
  // Those from `begin` to before `end` only; the others are `fill`.
  __device__ __forceinline__ void load_some(const Logit* from, int begin, int end, u32 fill) {
    *this = Loaded{};
#pragma unroll
    for (int v = 0; v < Vec; ++v) {
      const u32 bits = begin <= v && v < end ? __ldg(from + v) : fill;
      words[v * sizeof(Logit) / 4] |= sizeof(Logit) == 4 ? bits : bits << v % 2 * 16;
    }
  }
  __device__ __forceinline__ void set(int v, u32 bits) {
    if constexpr (sizeof(Logit) == 4) {
      words[v] = bits;
    } else {
      words[v / 2] = v % 2 ? (words[v / 2] & 0xffffu) | bits << 16 : (words[v / 2] & 0xffff0000u) | bits;
    }
  }
  __device__ __forceinline__ u32 bits(int v) const {
    if constexpr (sizeof(Logit) == 4) return words[v];
    return v % 2 ? words[v / 2] >> 16 : words[v / 2] & 0xffffu;
  }
  // The same where v is not known when the kernel is compiled.
  __device__ __forceinline__ u32 picked(u32 v) const {
    constexpr u32 kEach = 4 / sizeof(Logit);
    constexpr u32 kLast = sizeof(words) / 4 - 1;
    const u32 which = v / kEach;
    const u32 low = which & 1 ? words[kLast & 1] : words[0], high = which & 1 ? words[kLast] : words[kLast & 2];
    const u32 word = which & 2 ? high : low;
    if constexpr (sizeof(Logit) == 4) return word;
    return v % 2 ? word >> 16 : word & 0xffffu;
  }
};

// All threads call f equally often, so f may use warp votes; lanes past the end come with valid == false.
template <int Vec, class F>
__device__ __forceinline__ void for_each_key(const Row& row, u32 begin, u32 end, F f) {
  // Positions count from row.base. `at` may pass the last by less than one step; widths end at 2^31 - 1, so 32 unsigned
  // bits hold it.
  const u32 first = begin + row.lead(), last = end + row.lead();
#pragma unroll 1
  for (u32 base = kRowStarts ? first / Vec * Vec : first; base < last; base += kThreads * Vec) {
    const u32 at = base + threadIdx.x * Vec;
    const u32 there = at < last ? min(last - at, static_cast<u32>(Vec)) : 0;
    Loaded<Vec> pack{};
    if (there == Vec) {
      pack.load(row.base + at);
    } else {
      pack.load_some(row.base + at, 0, static_cast<int>(there), 0);
    }
#pragma unroll
    for (int v = 0; v < Vec; ++v) {
      f(ordered_key(pack.bits(v)), at + v - row.lead(),
        v < static_cast<int>(there) && (!kRowStarts || at + v >= first));
    }
  }
}

// f(key, index, valid) with `Deep` loads of each thread under way before the first is looked at. f may not use warp
// votes.
template <int Vec, int Deep, class F>
__device__ __forceinline__ void for_each_key_deep(const Row& row, u32 begin, u32 end, F f) {
  const u32 first = begin + row.lead(), last = end + row.lead();
  const u32 base = kRowStarts ? first / Vec * Vec : first, packs = (last - base) / Vec;
  const Logit* const from = row.base + base;
#pragma unroll 1
  for (u32 pack = threadIdx.x; pack < packs; pack += Deep * kThreads) {
    Loaded<Vec> loaded[Deep];
    // Past the end the last load is made again: without a branch the loads stay together.
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) loaded[d].load(from + static_cast<u64>(min(pack + d * kThreads, packs - 1)) * Vec);
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) {
#pragma unroll
      for (int v = 0; v < Vec; ++v) {
        const u32 at = base + (pack + d * kThreads) * Vec + v;
        f(ordered_key(loaded[d].bits(v)), at - row.lead(), pack + d * kThreads < packs && (!kRowStarts || at >= first));
      }
    }
  }
  const u32 at = base + packs * Vec + threadIdx.x;  // what fills no load
  if (at < last) f(ordered_key(__ldg(row.base + at)), at - row.lead(), !kRowStarts || at >= first);
}

// Places for `mine` things of each lane, from a counter in shared memory: one atomic a warp. All 32 lanes must call it.
__device__ __forceinline__ u32 warp_places(u32 mine, u32* counter) {
  const u32 lane = threadIdx.x % 32;
  const u32 sum = ptx::sum_upto(mine);
  u32 place = 0;
  if (lane == 31 && sum) place = atomicAdd(counter, sum);
  return __shfl_sync(0xffffffffu, place, 31) + sum - mine;
}

// Loads of one thread that are under way at once.
template <int Vec, u32 Deep>
struct Batch {
  Loaded<Vec> loaded[Deep];

  // Loads `pack`, pack + kThreads, ... of a stretch of `packs` loads, at least one. Past the end the last load is made
  // again: without a branch the loads stay together.
  __device__ __forceinline__ void load(const Logit* from, u32 pack, u32 packs) {
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) loaded[d].load(from + static_cast<u64>(min(pack + d * kThreads, packs - 1)) * Vec);
  }
};

// A stretch of a row as whole loads, and what is left.
template <int Vec>
struct Stretch {
  u32 first, last, base, packs;  // positions from row.base
  const Logit* from;

  __device__ __forceinline__ Stretch(const Row& row, u32 begin, u32 end)
      : first(begin + row.lead()),
        last(end + row.lead()),
        base(kRowStarts ? first / Vec * Vec : first),
        packs((last - base) / Vec),
        from(row.base + base) {}
};

// The first loads of a stretch, made before it is known what they are for; none is made again.
template <int Vec, u32 Deep>
__device__ __forceinline__ void load_ahead(const Row& row, u32 begin, u32 end, Batch<Vec, Deep>& batch) {
  const Stretch<Vec> stretch(row, begin, end);
#pragma unroll
  for (u32 d = 0; d < Deep; ++d) {
    const u32 pack = threadIdx.x + d * kThreads;
    batch.loaded[d] = {};  // or the compiler keeps what an earlier row left there
    if (pack < stretch.packs) batch.loaded[d].load(stretch.from + static_cast<u64>(pack) * Vec);
  }
}

// Whether an element of a load is at least `value`. Two bfloat16 are compared at once.
template <int Vec>
__device__ __forceinline__ bool any_reaches(const Loaded<Vec>& pack, float value) {
  if constexpr (kDtype == Dtype::kBfloat16 && Vec > 1) {
    u32 largest = pack.words[0];
#pragma unroll
    for (int w = 1; w < Vec / 2; ++w) largest = ptx::max_of_pairs(largest, pack.words[w]);
    return float_reaches(largest & 0xffffu, value) | float_reaches(largest >> 16, value);
  }
  bool one = false;
#pragma unroll
  for (int v = 0; v < Vec; ++v) one |= float_reaches(pack.bits(v), value);
  return one;
}

// Queues the loads in which something is at least `value`, which should be few: their numbers, from base on, as many as
// there is room for; all are counted. Not those elements that fill no load. Whole warps call it: places are taken a
// warp at a time, so that nothing waits in the loop but for memory.
template <int Vec, u32 Deep>
__device__ __forceinline__ void queue_reaching(const Stretch<Vec>& stretch, float value, u32* queue, u32 room,
                                               u32* counter) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll 1
  for (u32 begin = threadIdx.x - lane; begin < stretch.packs; begin += Deep * kThreads) {
    const u32 pack = begin + lane;
    Batch<Vec, Deep> batch;
    batch.load(stretch.from, pack, stretch.packs);
    u32 some = 0;
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) {
      const bool one = any_reaches(batch.loaded[d], value);
      some |= one && pack + d * kThreads < stretch.packs ? 1u << d : 0u;
    }
    if (!__ballot_sync(0xffffffffu, some != 0)) continue;
    u32 place = warp_places(__popc(some), counter);
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) {
      if (some >> d & 1) {
        if (place < room) queue[place] = pack + d * kThreads;
        ++place;
      }
    }
  }
}

// put(place, bits, position) for the elements that are at least `value`, which should be few, out of the registers that
// they were loaded into. Not for those that fill no load. Places come from `counter`. Whole warps call it, as above.
template <int Vec, u32 Deep, class Put>
__device__ __forceinline__ void pick_reaching(const Stretch<Vec>& stretch, float value, u32* counter, Put put) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll 1
  for (u32 begin = threadIdx.x - lane; begin < stretch.packs; begin += Deep * kThreads) {
    const u32 pack = begin + lane;
    const u32 before = kRowStarts && pack == 0 ? stretch.first - stretch.base : 0u;  // the window, in the first load
    Batch<Vec, Deep> batch;
    batch.load(stretch.from, pack, stretch.packs);
    u32 some = 0;  // loads in which something reaches it
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) {
      bool one = any_reaches(batch.loaded[d], value);
      if (kRowStarts && d == 0 && before != 0) {
        one = false;
#pragma unroll
        for (u32 v = 1; v < Vec; ++v) one |= v >= before && float_reaches(batch.loaded[0].bits(v), value);
      }
      some |= one && pack + d * kThreads < stretch.packs ? 1u << d : 0u;
    }
    if (!__ballot_sync(0xffffffffu, some != 0)) continue;
    u32 place = warp_places(__popc(some), counter);
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) {
      if (some >> d & 1) {
        u32 hits = 0;
#pragma unroll
        for (u32 v = 0; v < Vec; ++v) hits |= float_reaches(batch.loaded[d].bits(v), value) ? 1u << v : 0u;
        if (kRowStarts && d == 0) hits &= ~0u << before;
        const u32 position = stretch.base + (pack + d * kThreads) * Vec;
        u32 to = place++;
        while (true) {
          const u32 v = 31 - __clz(hits);
          put(to, batch.loaded[d].picked(v), position + v);
          hits ^= 1u << v;
          if (hits == 0) break;
          to = atomicAdd(counter, 1u);  // seldom two in one load
        }
      }
    }
  }
}

// f(key, index) for the elements whose key is at least `pivot`, which should be few; once enough(), only for those
// above it. f may not use warp votes. `Ahead`: the first loads are in `batch` already (load_ahead).
template <int Vec, u32 Deep, class F, class Enough>
__device__ __forceinline__ void for_each_reaching(const Row& row, u32 begin, u32 end, u32 pivot, F f, Enough enough) {
  const Stretch<Vec> stretch(row, begin, end);
  Reaches reaches(pivot);
  bool raised = false;
  u32 left = ~0u;  // of the batch's loads, bits
  const auto look = [&](u32 bits, u32 at) {
    if (reaches(bits)) {
      const u32 key = ordered_key(bits);
      if (key >= pivot && (!kRowStarts || at >= stretch.first)) f(key, at - row.lead());
    }
  };
#pragma unroll 1
  for (u32 pack = threadIdx.x; pack < stretch.packs;) {
    Batch<Vec, Deep> batch;
    batch.load(stretch.from, pack, stretch.packs);
    if (!raised && enough()) {
      if (pivot >= kHighest) break;
      raised = true;
      pivot = max(pivot + 1, kLowestNumber);
      reaches = Reaches(pivot);
    }
    u32 some = 0;  // loads in which something reaches it
#pragma unroll
    for (u32 d = 0; d < Deep; ++d) {
      bool one = false;
#pragma unroll
      for (int v = 0; v < Vec; ++v) one |= reaches(batch.loaded[d].bits(v));
      some |= one ? 1u << d : 0u;
    }
    some &= left;
    left = ~0u;
    // They are few, and still in a cache: made again, they need no choice among registers.
#pragma unroll 1
    while (some) {
      const u32 d = 31 - __clz(some);
      some ^= 1u << d;
      const u32 which = pack + d * kThreads;
      if (which < stretch.packs) {
        Loaded<Vec> again;
        again.load(stretch.from + static_cast<u64>(which) * Vec);
#pragma unroll
        for (int v = 0; v < Vec; ++v) look(again.bits(v), stretch.base + which * Vec + v);
      }
      if (!raised && some != 0 && enough()) {  // then most of the others need no look
        left = some;
        break;
      }
    }
    if (left == ~0u) pack += Deep * kThreads;
  }
  const u32 at = stretch.base + stretch.packs * Vec + threadIdx.x;  // what fills no load
  if (at < stretch.last) look(__ldg(row.base + at), at);
}
