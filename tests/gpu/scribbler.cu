// Overwrites words again and again, until told to stop or its patience ends: with lengths from 0 to `width` and a little
// beyond on either side, many of them at the limits where rows change their path.
typedef unsigned u32;
typedef unsigned long long u64;

extern "C" __global__ void __launch_bounds__(128)
    scribbler(int* words, u64 count, u64 width, u64 k, const u32* stop, u32* turns, u64 patience_ns) {
  const int n = static_cast<int>(width), few = static_cast<int>(k);
  const int limits[16] = {0,     1,     few,   few + 1, 8192,       8193, 16384, 16385,
                          32768, 32769, n / 2, n - 1,   0x7fffffff, -1,   n,     n};
  u32 state = (blockIdx.x * blockDim.x + threadIdx.x) * 2654435761u + 12345u, turn = 0;
  u64 begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do {
    for (u64 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
      state = state * 1664525u + 1013904223u;
      const u32 drawn = state >> 4;
      const int any = static_cast<int>(drawn % (static_cast<u32>(n) + 1));
      *reinterpret_cast<volatile int*>(words + i) = state >> 31 ? any : limits[drawn >> 20 & 15];
    }
    ++turn;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (*reinterpret_cast<const volatile u32*>(stop) == 0 && now - begin < patience_ns);
  if (threadIdx.x == 0) atomicAdd(turns, turn);
}
