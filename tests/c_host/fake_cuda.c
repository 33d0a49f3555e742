// libcuda for a machine without a GPU: memory is malloc's, a launch selects by sorting what the parameter block says.
// As strict as a driver where a host may go wrong: limits that were not raised, grids that are not resident, addresses.
// It reads the cubins only so far as to find their kernel.
//
//   FAKE_CUDA_NAME, _CC (90), _SMS, _OPTIN, _PER_SM, _THREADS   the device; an H200 unless set
//   FAKE_CUDA_LOG     a file that each launch adds a line to: the call, the kernel, grid, block, shared memory
//   FAKE_CUDA_FAULT   refuse: no cooperative grid and no cluster can be resident; full: no block of any kernel fits an
//                     SM; sizes: no size of clusters is known; missed: the largest element of each row is overlooked;
//                     behind: the output's end is overrun; memory: no memory is left; late: a launch fails when it is
//                     waited for
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_min.h"

#define API __attribute__((visibility("default")))

enum { DEFAULT_SMEM = 48 * 1024, RESERVED = 1024, PORTABLE = 8, MODULES = 64, ALLOCATIONS = 64 };

struct CUfunc_st {
  char entry[256];
  size_t smem_limit;
  int large_clusters;
};
struct CUmod_st {
  struct CUfunc_st function;
};
struct CUstream_st {
  int open;
};
struct CUctx_st {
  int retained;
};

typedef struct params {
  const uint32_t* logits;
  const int32_t* lengths;
  int32_t* out;
  void* workspace;
  int64_t logits_stride, out_stride;
  uint32_t rows, width, group, groups, chunk, candidates, cooperative, reserved;
  uint32_t* values;
  const int32_t* row_starts;
  const void* page_table;
  int64_t values_stride, page_table_stride;
  uint32_t page_size, rows_per_table;
} params;

typedef struct allocation {
  char* at;
  size_t size;
} allocation;

static struct CUctx_st context;
static CUcontext current;
static int initialised;
static CUresult sticky;  // what the next wait answers
static allocation allocations[ALLOCATIONS];

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

static int fault(const char* name) {
  const char* text = getenv("FAKE_CUDA_FAULT");
  return text && !strcmp(text, name);
}

static int sms(void) { return setting("FAKE_CUDA_SMS", 132); }

API CUresult cuInit(unsigned int flags) {
  initialised = flags == 0;
  return initialised ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == CUDA_ERROR_INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
                                                : "CUDA_ERROR";
  return CUDA_SUCCESS;
}

API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  const char* given = getenv("FAKE_CUDA_NAME");
  (void)device;
  (void)snprintf(name, (size_t)size, "%s", given ? given : "NVIDIA H200");
  return CUDA_SUCCESS;
}

API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = sms();
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      *value = setting("FAKE_CUDA_THREADS", 2048);
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = setting("FAKE_CUDA_CC", 90) / 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = setting("FAKE_CUDA_CC", 90) % 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = setting("FAKE_CUDA_PER_SM", 228 * 1024);
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = setting("FAKE_CUDA_OPTIN", 227 * 1024);
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
      *value = RESERVED;
      return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext* made, CUdevice device) {
  (void)device;
  ++context.retained;
  *made = &context;
  return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  (void)device;
  return --context.retained < 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

API CUresult cuCtxSetCurrent(CUcontext wanted) {
  current = wanted;
  return CUDA_SUCCESS;
}

API CUresult cuCtxSynchronize(void) { return current ? sticky : CUDA_ERROR_INVALID_CONTEXT; }

// Modules: an ELF file whose kernel is the one section ".text.<entry>" ----------------------------------------------

static uint64_t word(const unsigned char* at, int bytes) {
  uint64_t value = 0;
  int i;
  for (i = bytes - 1; i >= 0; --i) value = value << 8 | at[i];
  return value;
}

API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const unsigned char* elf = (const unsigned char*)image;
  const unsigned char *sections, *names;
  uint64_t i, size, count, of_names;
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (memcmp(elf, "\177ELF\2\1", 6) != 0) return CUDA_ERROR_INVALID_IMAGE;
  sections = elf + word(elf + 40, 8);
  size = word(elf + 58, 2);
  count = word(elf + 60, 2);
  of_names = word(elf + 62, 2);
  names = elf + word(sections + of_names * size + 24, 8);
  for (i = 0; i < count; ++i) {
    const char* name = (const char*)names + word(sections + i * size, 4);
    if (strncmp(name, ".text.", 6)) continue;
    *module = (CUmodule)calloc(1, sizeof **module);
    if (!*module) return CUDA_ERROR_OUT_OF_MEMORY;
    (void)snprintf((*module)->function.entry, sizeof(*module)->function.entry, "%s", name + 6);
    (*module)->function.smem_limit = DEFAULT_SMEM;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_IMAGE;
}

API CUresult cuModuleUnload(CUmodule module) {
  free(module);
  return CUDA_SUCCESS;
}

API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = &module->function;
  return strcmp(name, module->function.entry) ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
    function->large_clusters = value;
    return CUDA_SUCCESS;
  }
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
      value > setting("FAKE_CUDA_OPTIN", 227 * 1024)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  function->smem_limit = (size_t)value;
  return CUDA_SUCCESS;
}

static int resident(const struct CUfunc_st* function, int threads, size_t smem) {
  const int by_threads = setting("FAKE_CUDA_THREADS", 2048) / threads;
  const int each = (int)((smem + 127) / 128 * 128) + RESERVED;
  const int by_memory = setting("FAKE_CUDA_PER_SM", 228 * 1024) / each;
  if (smem > function->smem_limit || fault("full")) return 0;  // and no error: as the driver answers
  return by_threads < by_memory ? by_threads : by_memory;
}

API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, size_t smem) {
  *blocks = resident(function, threads, smem);
  return CUDA_SUCCESS;
}

API CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction function, const CUlaunchConfig* config) {
  const CUlaunchAttribute* size = config->attrs;
  if (config->numAttrs != 1 || size->id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION || size->value.clusterDim.y != 1 ||
      size->value.clusterDim.z != 1 || config->gridDimX % size->value.clusterDim.x) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (fault("sizes") || (size->value.clusterDim.x > PORTABLE && !function->large_clusters)) {
    return CUDA_ERROR_INVALID_CLUSTER_SIZE;  // as an H200 answers
  }
  *clusters =
      sms() * resident(function, (int)config->blockDimX, config->sharedMemBytes) / (int)size->value.clusterDim.x;
  return CUDA_SUCCESS;
}

// Memory -------------------------------------------------------------------------------------------------------------

static int inside(const void* at, size_t size) {
  int i;
  for (i = 0; i < ALLOCATIONS; ++i) {
    const allocation* a = &allocations[i];
    if (a->at && (const char*)at >= a->at && (const char*)at + size <= a->at + a->size) return 1;
  }
  return 0;
}

API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t size) {
  int i;
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  for (i = 0; i < ALLOCATIONS && allocations[i].at; ++i) {
  }
  if (i == ALLOCATIONS || fault("memory") ||
      !(allocations[i].at = (char*)aligned_alloc(256, (size + 255) / 256 * 256))) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  allocations[i].size = size;
  *address = (CUdeviceptr)(uintptr_t)allocations[i].at;
  return CUDA_SUCCESS;
}

API CUresult cuMemFree_v2(CUdeviceptr address) {
  int i;
  for (i = 0; i < ALLOCATIONS; ++i) {
    if (allocations[i].at && (CUdeviceptr)(uintptr_t)allocations[i].at == address) {
      free(allocations[i].at);
      allocations[i].at = NULL;
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
  if (!inside((void*)(uintptr_t)to, size)) return CUDA_ERROR_INVALID_VALUE;
  memcpy((void*)(uintptr_t)to, from, size);
  return CUDA_SUCCESS;
}

API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
  if (!inside((void*)(uintptr_t)from, size)) return CUDA_ERROR_INVALID_VALUE;
  memcpy(to, (void*)(uintptr_t)from, size);
  return CUDA_SUCCESS;
}

API CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char byte, size_t size) {
  if (!inside((void*)(uintptr_t)to, size)) return CUDA_ERROR_INVALID_VALUE;
  memset((void*)(uintptr_t)to, byte, size);
  return CUDA_SUCCESS;
}

API CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  *stream = (CUstream)calloc(1, sizeof **stream);
  return flags <= CU_STREAM_NON_BLOCKING && *stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuStreamSynchronize(CUstream stream) {
  (void)stream;
  return sticky;
}

API CUresult cuStreamDestroy_v2(CUstream stream) {
  free(stream);
  return CUDA_SUCCESS;
}

// Launches -----------------------------------------------------------------------------------------------------------

typedef struct ranked {
  uint32_t key;
  int32_t index;
} ranked;

// The largest first, equal ones by descending index: another order than the kernels' own.
static int by_rank(const void* a, const void* b) {
  const ranked *x = (const ranked*)a, *y = (const ranked*)b;
  if (x->key != y->key) return x->key < y->key ? 1 : -1;
  return x->index < y->index ? 1 : -1;
}

// The largest first, equal ones by ascending index.
static int by_rank_smallest(const void* a, const void* b) {
  const ranked *x = (const ranked*)a, *y = (const ranked*)b;
  return x->key != y->key ? by_rank(a, b) : by_rank(b, a);
}

static int by_index(const void* a, const void* b) {
  const ranked *x = (const ranked*)a, *y = (const ranked*)b;
  return x->index < y->index ? -1 : 1;
}

// Orders as the floats do; -0.0 equals +0.0, NaN is below all.
static uint32_t key_of(uint32_t bits) {
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0;
  if (bits == 0x80000000u) bits = 0;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static int64_t clamped(int64_t value, int64_t most) { return value < 0 ? 0 : value > most ? most : value; }

// What the kernel would do, but for memory outside of allocations, which is an error that shows later.
static CUresult select_rows(const struct CUfunc_st* function, const params* p, int64_t k) {
  const int values = strstr(function->entry, "_values") != NULL,
            starts = strstr(function->entry, "_row_starts") != NULL;
  ranked* row = (ranked*)malloc(((size_t)p->width + 1) * sizeof *row);
  int64_t r, i;
  if (!row) return CUDA_ERROR_OUT_OF_MEMORY;
  for (r = 0; r < p->rows; ++r) {
    const uint32_t* from = p->logits + r * p->logits_stride;
    int32_t* to = p->out + r * p->out_stride;
    int64_t start = 0, n = p->width;
    if ((p->lengths && !inside(p->lengths, p->rows * sizeof *p->lengths)) ||
        (starts && !inside(p->row_starts, p->rows * sizeof *p->row_starts)) ||
        (p->width && !inside(from, p->width * sizeof *from)) || !inside(to, (size_t)k * sizeof *to) ||
        (values && !inside(p->values + r * p->values_stride, (size_t)k * sizeof *p->values))) {
      free(row);
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    if (starts) start = clamped(p->row_starts[r], p->width);
    if (p->lengths) n = clamped(p->lengths[r], p->width);
    n = clamped(n, p->width - start);
    for (i = 0; i < n; ++i) {
      row[i].key = key_of(from[start + i]);
      row[i].index = (int32_t)i;
    }
    qsort(row, (size_t)n, sizeof *row, strstr(function->entry, "_smallest") ? by_rank_smallest : by_rank);
    if (strstr(function->entry, "_by_index")) qsort(row, (size_t)(n < k ? n : k), sizeof *row, by_index);
    for (i = 0; i < k; ++i) {
      const int64_t at = fault("missed") && i == 0 && n > k ? k : i;
      to[i] = at < n ? row[at].index : -1;
      if (values) p->values[r * p->values_stride + i] = at < n ? from[start + row[at].index] : 0xFF800000u;
    }
    if (fault("behind")) to[(p->rows - 1 - r) * p->out_stride + k] = 0;
  }
  free(row);
  return CUDA_SUCCESS;
}

static void note(const char* call, const struct CUfunc_st* function, unsigned grid, unsigned block, unsigned smem) {
  const char* path = getenv("FAKE_CUDA_LOG");
  FILE* file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  (void)fprintf(file, "%s %s %u %u %u\n", call, function->entry, grid, block, smem);
  (void)fclose(file);
}

static CUresult run(const char* call, CUfunction function, unsigned grid, unsigned block, unsigned smem,
                    CUstream stream, void** parameters, int cooperative) {
  const int extras = strstr(function->entry, "_values") || strstr(function->entry, "_row_starts");
  const char* k = getenv("FAKE_CUDA_K");  // which the real kernel has compiled in
  params p;
  CUresult failed;
  memset(&p, 0, sizeof p);
  memcpy(&p, parameters[0], extras ? 128 : 80);
  note(call, function, grid, block, smem);
  if (!stream || !k || !grid || (block != 512 && block != 1024) || smem > function->smem_limit || p.reserved ||
      grid != p.group * p.groups || (int)p.cooperative != cooperative || (cooperative && !p.workspace) ||
      (cooperative && (uintptr_t)p.workspace % 128)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (strstr(function->entry, "16") || strstr(function->entry, "_by_value") || strstr(function->entry, "int64") ||
      strstr(function->entry, "_largest") || strstr(function->entry, "_nan_") ||
      strstr(function->entry, "_page_table")) {
    return CUDA_ERROR_NOT_SUPPORTED;  // only float32 to int32 here
  }
  failed = select_rows(function, &p, atoi(k));
  if (failed || fault("late")) sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
  return CUDA_SUCCESS;
}

// A launch in clusters where none can be resident.
static int refused(CUfunction function, unsigned int grid, unsigned int block, unsigned int smem) {
  if (!fault("refuse") || !strstr(function->entry, "clustered")) return 0;
  note("refused", function, grid, block, smem);
  return 1;
}

API CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z, unsigned int block_x,
                            unsigned int block_y, unsigned int block_z, unsigned int smem, CUstream stream,
                            void** parameters, void** extra) {
  if (y != 1 || z != 1 || block_y != 1 || block_z != 1 || extra) return CUDA_ERROR_INVALID_VALUE;
  if (refused(function, x, block_x, smem)) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  return run("cuLaunchKernel", function, x, block_x, smem, stream, parameters, 0);
}

API CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z,
                                       unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                       unsigned int smem, CUstream stream, void** parameters) {
  if (y != 1 || z != 1 || block_y != 1 || block_z != 1) return CUDA_ERROR_INVALID_VALUE;
  if (fault("refuse") || x > (unsigned)(sms() * resident(function, (int)block_x, smem))) {
    note("refused", function, x, block_x, smem);
    return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  }
  return run("cuLaunchCooperativeKernel", function, x, block_x, smem, stream, parameters, 1);
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  const CUlaunchAttribute* overlap = config->attrs;
  if (config->gridDimY != 1 || config->gridDimZ != 1 || config->blockDimY != 1 || config->blockDimZ != 1 || extra ||
      config->numAttrs != 1 || overlap->id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION ||
      overlap->value.programmaticStreamSerializationAllowed != 1) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (refused(function, config->gridDimX, config->blockDimX, config->sharedMemBytes)) {
    return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  }
  return run("cuLaunchKernelEx", function, config->gridDimX, config->blockDimX, config->sharedMemBytes, config->hStream,
             parameters, 0);
}
