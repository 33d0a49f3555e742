// Writes up to three arrays late, after SMs have read what was there before: first every block reads the old words, the
// way of constant data and the usual one, and lets the successor begin; after a while, in which that comes up to where
// it waits, each of the first `writers` blocks reads the old words again, if `late`, and when all have read, writes the
// part that another one has read. The other blocks end before, so that a successor finds whole SMs free. A block reads
// `window` words of array a, which the cache of an SM has room for, and all of b and c. Arrays without words are left
// out. `counter` counts arrivals over all rounds; `gave_up` becomes 1 if some never came.
typedef unsigned u32;
typedef unsigned long long u64;

__device__ __forceinline__ u64 now() {
  u64 ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

__device__ u32 read_old(const u32* at, u64 words, u64 from, u64 count) {
  u32 sum = 0, word;
  for (u64 i = threadIdx.x; i < count; i += blockDim.x) {
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(word) : "l"(at + (from + i) % words) : "memory");
    sum += word;
  }
  for (u64 i = threadIdx.x; i < count; i += blockDim.x) {
    asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(word) : "l"(at + (from + i) % words) : "memory");
    sum += word;
  }
  return sum;
}

// Whole lines of 32 words, and not those that would be this block's if parts were given out in order.
__device__ void write_part(u32* to, const u32* from, u64 words, u64 writers) {
  const u64 each = (words + writers * 32 - 1) / (writers * 32) * 32, first = (blockIdx.x + 1) % writers * each;
  for (u64 i = first + threadIdx.x; i < first + each && i < words; i += blockDim.x) to[i] = from[i];
}

extern "C" __global__ void __launch_bounds__(128)
    stale_producer(u32* a, const u32* new_a, u64 words_a, u32* b, const u32* new_b, u64 words_b, u32* c,
                   const u32* new_c, u64 words_c, u64 window, u64 round, u64 wait_ns, u64 writers, u64 late,
                   u32* counter, u32* gave_up) {
  u64 mixed = (blockIdx.x + 1) * 0x9E3779B97F4A7C15ull + (round + 1) * 0xC2B2AE3D27D4EB4Full;
  mixed ^= mixed >> 29;
  const u64 count = window < words_a ? window : words_a;
  const u64 from = count == words_a ? 0 : mixed % words_a / 32 * 32;
  const auto read_all = [&] {
    u32 sum = read_old(a, words_a, from, count);
    if (words_b) sum += read_old(b, words_b, 0, words_b);
    if (words_c) sum += read_old(c, words_c, 0, words_c);
    return sum;
  };
  u32 sum = read_all();
  __syncthreads();
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  const bool writes = blockIdx.x < writers;
  const u64 begin = now();
  if (writes) {
    while (now() - begin < wait_ns) {
    }
    if (late) sum += read_all();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    const u32 all = gridDim.x * static_cast<u32>(round + 1);
    while (writes && *reinterpret_cast<volatile u32*>(counter) < all && now() - begin < 1000000000ull) {
    }
    if (writes && *reinterpret_cast<volatile u32*>(counter) < all) *gave_up = 1;
    if (sum == 0x12345678) *gave_up = 2;  // so that what is read is used; a test sees it if it ever happens
  }
  __syncthreads();
  if (!writes) return;
  write_part(a, new_a, words_a, writers);
  if (words_b) write_part(b, new_b, words_b, writers);
  if (words_c) write_part(c, new_c, words_c, writers);
}
