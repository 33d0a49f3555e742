// The device code of one variant. The runner copies cuda_src/ beside this build and replaces two things: ptx.cuh, and
// the line that declares dynamic shared memory.
#include "shim.h"

#include HARNESS_ENTRY_FILE

void run_kernel(const void* params) {
  Params p;
  std::memcpy(&p, params, sizeof p);
  HARNESS_ENTRY(p);
}
