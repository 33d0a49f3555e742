// Lets its successor begin at once, and only then, after a while, writes what that reads: a successor that does not wait
// for it reads what was there before. Element i becomes i.
extern "C" __global__ void producer(float* row, unsigned long long count, unsigned long long wait_ns) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  unsigned long long begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < wait_ns);
  for (unsigned long long i = threadIdx.x; i < count; i += blockDim.x) row[i] = static_cast<float>(i);
}
