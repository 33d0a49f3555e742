// drvtopk_filtered<TopK, VecSize>: the fallback. One block per row, waits for nobody, exact for every input, with as much
// or as little shared memory as there is.
// Grid: one block a row, or fewer that take rows in turn (a budget of SMs). Dynamic shared memory: Shared<K> up to `rest`, then `candidates` pairs (none is allowed).
#include "row_alone.cuh"

extern "C" __global__ void __launch_bounds__(DRVTOPK_THREADS, DRVTOPK_MIN_BLOCKS)
    DRVTOPK_ENTRY(const __grid_constant__ Params p) {
  constexpr int K = DRVTOPK_K, Vec = DRVTOPK_VEC;
  extern __shared__ __align__(16) unsigned char dynamic[];
  ptx::wait_for_predecessor();
  Shared<K>& sh = ptx::shared_as<Shared<K>>(dynamic);
#pragma unroll 1
  for (u32 row = blockIdx.x; row < p.rows; row += gridDim.x) {
    row_alone<K, Vec, true>(row_of<Vec>(p, row), p, row, sh);
  }
  ptx::let_successor_begin();
}
