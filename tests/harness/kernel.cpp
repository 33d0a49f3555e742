// The device code of one variant. The runner copies cuda_src/ beside this file, with two things replaced: ptx.cuh, and
// the line that declares dynamic shared memory. It also writes entry.h: shim.h, then the .cu file, and the kernel's name.
#include "entry.h"

void run_kernel(const void* params) {
  Params p;
  std::memcpy(&p, params, sizeof p);
  HARNESS_ENTRY(p);
}
