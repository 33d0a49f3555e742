// drvtopk_persistent<TopK, VecSize>: groups of blocks, rows dealt to groups round-robin; rows above kRadixThreshold are
// shared by the whole group, which then waits, so it goes out by cuLaunchCooperativeKernel; every other row, and every
// row of a launch that is not cooperative, belongs to one block of the group.
// Grid: groups x group. Dynamic shared memory: Shared<K> up to `rest`, then max(chunk keys, candidates pairs).
#include "row_alone.cuh"
#include "row_group.cuh"

extern "C" __global__ void __launch_bounds__(DRVTOPK_THREADS, DRVTOPK_MIN_BLOCKS)
    drvtopk_persistent(const __grid_constant__ Params p) {
  constexpr int K = DRVTOPK_K, Vec = DRVTOPK_VEC;
  extern __shared__ __align__(16) unsigned char dynamic[];
  Shared<K>& sh = *reinterpret_cast<Shared<K>*>(dynamic);
  const u32 own = blockIdx.x / p.group;
  Member m{{static_cast<u32*>(p.workspace) + static_cast<i64>(own) * GroupState::words_of(p.group), p.group},
           blockIdx.x % p.group,
           0,
           kRounds};
  for (u32 row = own; row < p.rows; row += p.groups) {
    const u32 n = row_length(p, row);
    const float* const from = p.logits + static_cast<i64>(row) * p.logits_stride;
    int* const to = p.out + static_cast<i64>(row) * p.out_stride;
    if (p.cooperative && n > kRadixThreshold && n > K) {
      row_group<K, Vec>(from, n, p.chunk, to, sh, m);
    } else if (row / p.groups % p.group == m.rank) {  // a group's own rows go to its blocks in turn
      row_alone<K, Vec>(from, n, p.candidates, to, sh);
    }
  }
}
