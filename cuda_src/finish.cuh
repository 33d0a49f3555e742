// From a row's members to its output: sorted if asked for, as what the caller reads (a wider type, pages, values
// beside). Sorting networks: Batcher (1968). Strides below a warp's 64 elements stay in registers. Barriers inside of
// sort_staged and finish; put and fill have none.
#pragma once
#include "loads.cuh"
#include "select.cuh"

// Where one row goes.
struct Out {
  Index* indices;
#if DRVTOPK_EXTRAS
  Logit* values;
  const int* pages;
  u32 page_size;
#endif

  __device__ __forceinline__ void put(const Row& row, u32 place, u32 index) const {
#if DRVTOPK_VALUES
    values[place] = static_cast<Logit>(row.bits(index));
#endif
#if DRVTOPK_PAGE_TABLE
    const int page = __ldg(pages + index / page_size);
    const i64 at = static_cast<i64>(page) * page_size + index % page_size;
    indices[place] = page < 0 ? static_cast<Index>(-1) : static_cast<Index>(at);
#else
    indices[place] = static_cast<Index>(index);
#endif
  }
  __device__ __forceinline__ void fill(u32 place) const {
#if DRVTOPK_VALUES
    values[place] = static_cast<Logit>(kFill);
#endif
    indices[place] = static_cast<Index>(-1);
  }
};

__device__ __forceinline__ Out out_of(const Params& p, u32 row) {
  Out to;
  to.indices = p.out + static_cast<i64>(row) * p.out_stride;
  if constexpr (kRegisters >= 64) to.indices = ptx::opaque(to.indices);  // now, not when the row is done
#if DRVTOPK_VALUES
  to.values = p.values + static_cast<i64>(row) * p.values_stride;
#endif
#if DRVTOPK_PAGE_TABLE
  to.pages = p.page_table + static_cast<i64>(row / p.rows_per_table) * p.page_table_stride;
  to.page_size = p.page_size;
#endif
  return to;
}

// What the sort compares: ascending. By value, `high` is the key turned around.
struct Item {
  u32 high, low;

  __device__ __forceinline__ bool before(const Item& other) const {
    if constexpr (kOrder == Order::kValue) return high < other.high || (high == other.high && low < other.low);
    return low < other.low;
  }
};

// Sorts the first `places` (a power of two, at least 64) of staged, with `keys` beside it where values decide.
// Before: a barrier since they were written. After: a barrier.
__device__ __forceinline__ void sort_items(u32* keys, int* staged, u32 places) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto get = [&](u32 i) { return Item{kOrder == Order::kValue ? keys[i] : 0u, static_cast<u32>(staged[i])}; };
  const auto set = [&](u32 i, const Item& item) {
    if constexpr (kOrder == Order::kValue) keys[i] = item.high;
    staged[i] = static_cast<int>(item.low);
  };
  // Each warp sorts stretches of 64, two elements a lane; from then on only strides of 64 and more cross warps.
#pragma unroll 1
  for (u32 size = 64; size <= places; size *= 2) {
#pragma unroll 1
    for (u32 stride = size / 2; stride >= 64; stride /= 2) {
#pragma unroll 1
      for (u32 t = threadIdx.x; t < places / 2; t += kThreads) {
        const u32 i = 2 * t - (t & (stride - 1)), j = i + stride;
        const Item a = get(i), b = get(j);
        if (b.before(a) == ((i & size) == 0)) set(i, b), set(j, a);
      }
      __syncthreads();
    }
#pragma unroll 1
    for (u32 at = warp * 64; at < places; at += kWarps * 64) {
      Item a = get(at + lane), b = get(at + 32 + lane);
#pragma unroll 1
      for (u32 inner = size == 64 ? 2 : 64; inner <= 64; inner *= 2) {
        // Within the last merge of 64 the direction is that of the whole `size`.
        const u32 turn = inner == 64 ? size : inner;
        const bool a_up = ((at + lane) & turn) == 0, b_up = ((at + 32 + lane) & turn) == 0;
        if (inner == 64 && b.before(a) == a_up) {
          const Item swapped = a;
          a = b, b = swapped;
        }
#pragma unroll 1
        for (u32 stride = inner == 64 ? 16 : inner / 2; stride > 0; stride /= 2) {
          const bool lower = (lane & stride) == 0;
          const auto exchange = [&](Item& mine, bool up) {
            Item other;
            other.high = kOrder == Order::kValue ? __shfl_xor_sync(0xffffffffu, mine.high, stride) : 0u;
            other.low = __shfl_xor_sync(0xffffffffu, mine.low, stride);
            if (other.before(mine) == (lower == up)) mine = other;
          };
          exchange(a, a_up);
          exchange(b, b_up);
        }
      }
      set(at + lane, a);
      set(at + 32 + lane, b);
    }
    __syncthreads();
  }
}

// The first m (at most K) staged members to the row's output, the rest filled. Before: a barrier since they were staged, but
// for those at places that are this thread's here.
template <int K>
__device__ __forceinline__ void finish(const Row& row, u32 m, const Out& to, Shared<K>& sh) {
  if constexpr (kSorts) {
    constexpr u32 kPlaces = sorted_places<K>();
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kPlaces; i += kThreads) {
      if constexpr (kOrder == Order::kValue) {
        sh.bins[i] = i < m ? ~ordered_key(row.bits(static_cast<u32>(sh.staged[i]))) : 0xffffffffu;
      }
      if (i >= m) sh.staged[i] = 0x7fffffff;  // behind every index
    }
    __syncthreads();
    sort_items(sh.bins, sh.staged, kPlaces);
  }
#pragma unroll 1
  for (u32 i = threadIdx.x; i < K; i += kThreads) {
    if (i < m) {
      to.put(row, i, static_cast<u32>(sh.staged[i]));
    } else {
      to.fill(i);
    }
  }
}
