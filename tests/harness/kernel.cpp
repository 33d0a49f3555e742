// The device code of one variant. The runner copies cuda_src/ beside this build and replaces two things: ptx.cuh, and
// the line that declares dynamic shared memory.
#include "shim.h"

#include "entry.h"  // written by the runner: which .cu file, which kernel

void run_kernel(const void* params) {
  Params p;
  std::memcpy(&p, params, sizeof p);
  HARNESS_ENTRY(p);
}
