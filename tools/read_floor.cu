// Reads bytes once with all SMs and 16-byte loads, and keeps nothing: the floor that every selection is held against.
extern "C" __global__ void __launch_bounds__(1024) read_floor(const float4* from, unsigned long long packs, float* sink) {
  float sum = 0.0f;
  const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
#pragma unroll 4
  for (unsigned long long i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x; i < packs; i += step) {
    const float4 x = __ldg(from + i);
    sum += x.x + x.y + x.z + x.w;
  }
  if (sum == 1.2345e38f) *sink = sum;  // never true of finite data; keeps the loads
}
