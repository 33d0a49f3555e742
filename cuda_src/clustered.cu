// drvtopk_clustered<TopK, VecSize>: the blocks of a hardware cluster share each long row; every other row belongs to
// one block of the cluster. For few rows, on GPUs that have clusters. Grid: groups x kCluster; cluster c takes rows c,
// c + groups, ... Dynamic shared memory: Shared<K> up to `rest`, then `candidates` pairs.
#include "row_alone.cuh"
#include "row_cluster.cuh"

extern "C" __global__ void __cluster_dims__(DRVTOPK_CLUSTER, 1, 1)
    __launch_bounds__(DRVTOPK_THREADS, DRVTOPK_MIN_BLOCKS) DRVTOPK_ENTRY(const __grid_constant__ Params p) {
  constexpr int K = DRVTOPK_K, Vec = DRVTOPK_VEC;
  extern __shared__ __align__(16) unsigned char dynamic[];
  ptx::wait_for_predecessor();
  Shared<K>& sh = ptx::shared_as<Shared<K>>(dynamic);
  const u32 rank = ptx::cluster_rank();
  u32 met = 0;  // rows that this cluster has shared
#pragma unroll 1
  for (u32 row = blockIdx.x / kCluster; row < p.rows; row += p.groups) {
    const Row from = row_of<Vec>(p, row);
    if (from.n > kClusterThreshold && from.n > K) {
      if constexpr (kGathers) {
        const bool gathers = from.n >= 32 * kCluster;
        if (!gathers || !row_gather<K, Vec>(from, p, row, rank, met, sh)) {
          cluster_by_digits<K, Vec>(from, Part(from.n, rank), rank, out_of(p, row), sh);
        }
        met += gathers;
      } else {
        row_cluster<K, Vec>(from, p, row, rank, met != 0, sh);
        ++met;
      }
    } else if (row / p.groups % kCluster == rank) {
      row_alone<K, Vec, false>(from, p, row, sh);
    }
  }
  ptx::let_successor_begin();
}
