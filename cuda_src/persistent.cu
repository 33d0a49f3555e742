// drvtopk_persistent<TopK, VecSize>: groups of blocks, rows dealt to groups round-robin; rows above kRadixThreshold are
// shared by the whole group, which then waits, so it goes out by cuLaunchCooperativeKernel; every other row, and every
// row of a launch that is not cooperative, belongs to one block of the group.
// Grid: groups x group. Dynamic shared memory: Shared<K> up to `rest`, then max(chunk keys, candidates pairs).
#include "row_alone.cuh"
#include "row_group.cuh"

extern "C" __global__ void __launch_bounds__(DRVTOPK_THREADS, DRVTOPK_MIN_BLOCKS)
    DRVTOPK_ENTRY(const __grid_constant__ Params p) {
  constexpr int K = DRVTOPK_K, Vec = DRVTOPK_VEC;
  extern __shared__ __align__(16) unsigned char dynamic[];
  Shared<K>& sh = ptx::shared_as<Shared<K>>(dynamic);
  const u32 own = blockIdx.x / p.group;
  Member m{{static_cast<u32*>(p.workspace) + static_cast<i64>(own) * GroupState::words_of(p.group), p.group},
           blockIdx.x % p.group,
           0,
           kRounds};
  for (u32 row = own; row < p.rows; row += p.groups) {
    const Row from = row_of<Vec>(p, row);
    const auto my_turn = [&] { return row / p.groups % p.group == m.rank; };  // at what one block does for a row
    if (p.cooperative && from.n > kRadixThreshold && from.n > K) {
      row_group<K, Vec>(from, p, row, my_turn, sh, m);
    } else if (my_turn()) {
      row_alone<K, Vec, false>(from, p, row, sh);
    }
  }
}
