// A C host of drvtopk: exported cubins, the CUDA driver API by dlopen, no Python, no NVRTC, no CUDA runtime.
//
//   host CUBINS LOGITS OUT rows=4 width=50000 k=1024 [more]
//
// CUBINS is the folder that was exported. LOGITS holds `offset` elements, then rows of `width`, `stride` apart.
// OUT receives the indices, rows x k. Prints the plan that was launched as one line of JSON. More, each NAME=VALUE:
//
//   lengths, row_starts   files of int32, one for each row         stride, offset, max_seq_len, out_stride   elements
//   values                the file that receives the values        sm_budget, chunk, group    see drvtopk.h
//   route                 auto persistent filtered clustered       pdl, waits_never                          0 or 1
//   dtype index_dtype order tie_break nan                          the options, by the numbers of drvtopk.h
//   device                ordinal                                  libcuda          instead of libcuda.so.1
//   repeat                launches, one after the other, 1 unless given
//
// Exit code 0; 1 if the driver or a file fails; 2 for an argument; 3 if nothing can be planned.
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdlib.h>

#include "plan_json.h"

#if defined(__has_include)
#if __has_include(<cuda.h>)
#include <cuda.h>
#define HOST_HAS_CUDA_H
#endif
#endif
#ifndef HOST_HAS_CUDA_H
#include "cuda_min.h"
#endif

enum { FAILED = 1, MISUSED = 2, UNPLANNED = 3, POISON = 0x7B, GUARD = 256, PORTABLE_CLUSTER = 8 };

static void stop(int code, const char* what, const char* about) {
  fprintf(stderr, "host: %s: %s\n", what, about);
  exit(code);
}

// The driver ---------------------------------------------------------------------------------------------------------

static struct {
  CUresult (*init)(unsigned int);
  CUresult (*error_name)(CUresult, const char**);
  CUresult (*device)(CUdevice*, int);
  CUresult (*device_name)(char*, int, CUdevice);
  CUresult (*device_attribute)(int*, CUdevice_attribute, CUdevice);
  CUresult (*retain)(CUcontext*, CUdevice);
  CUresult (*release)(CUdevice);
  CUresult (*set_current)(CUcontext);
  CUresult (*module_load)(CUmodule*, const void*);
  CUresult (*module_unload)(CUmodule);
  CUresult (*module_function)(CUfunction*, CUmodule, const char*);
  CUresult (*set_attribute)(CUfunction, CUfunction_attribute, int);
  CUresult (*max_blocks)(int*, CUfunction, int, size_t);
  CUresult (*max_clusters)(int*, CUfunction, const CUlaunchConfig*);
  CUresult (*mem_alloc)(CUdeviceptr*, size_t);
  CUresult (*mem_free)(CUdeviceptr);
  CUresult (*to_device)(CUdeviceptr, const void*, size_t);
  CUresult (*to_host)(void*, CUdeviceptr, size_t);
  CUresult (*memset8)(CUdeviceptr, unsigned char, size_t);
  CUresult (*stream_create)(CUstream*, unsigned int);
  CUresult (*stream_synchronize)(CUstream);
  CUresult (*stream_destroy)(CUstream);
  CUresult (*synchronize)(void);
  CUresult (*launch)(CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
                     unsigned int, CUstream, void**, void**);
  CUresult (*launch_cooperative)(CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
                                 unsigned int, unsigned int, CUstream, void**);
  CUresult (*launch_ex)(const CUlaunchConfig*, CUfunction, void**, void**);
} cu;

// A symbol of the driver; `function` stays null where an older driver lacks one that need not be there.
static void symbol(void* library, const char* name, void* function, bool needed) {
  void* found = dlsym(library, name);
  if (!found && needed) stop(FAILED, "the driver lacks", name);
  memcpy(function, &found, sizeof found);  // ISO C has no cast from an object's address to a function's
}

// Ends the program if a call failed.
static void check(CUresult code, const char* call) {
  char text[160];
  const char* name = NULL;
  if (code == CUDA_SUCCESS) return;
  if (cu.error_name(code, &name) != CUDA_SUCCESS || !name) name = "unknown";
  (void)snprintf(text, sizeof text, "%s returned %d (%s)", call, (int)code, name);
  stop(FAILED, "the driver failed", text);
}

static void load_driver(const char* path) {
  void* library = dlopen(path, RTLD_NOW);
  if (!library) stop(FAILED, "no CUDA driver", dlerror());
  symbol(library, "cuInit", &cu.init, true);
  symbol(library, "cuGetErrorName", &cu.error_name, true);
  symbol(library, "cuDeviceGet", &cu.device, true);
  symbol(library, "cuDeviceGetName", &cu.device_name, true);
  symbol(library, "cuDeviceGetAttribute", &cu.device_attribute, true);
  symbol(library, "cuDevicePrimaryCtxRetain", &cu.retain, true);
  symbol(library, "cuDevicePrimaryCtxRelease_v2", &cu.release, true);
  symbol(library, "cuCtxSetCurrent", &cu.set_current, true);
  symbol(library, "cuModuleLoadData", &cu.module_load, true);
  symbol(library, "cuModuleUnload", &cu.module_unload, true);
  symbol(library, "cuModuleGetFunction", &cu.module_function, true);
  symbol(library, "cuFuncSetAttribute", &cu.set_attribute, true);
  symbol(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", &cu.max_blocks, true);
  symbol(library, "cuOccupancyMaxActiveClusters", &cu.max_clusters, false);
  symbol(library, "cuMemAlloc_v2", &cu.mem_alloc, true);
  symbol(library, "cuMemFree_v2", &cu.mem_free, true);
  symbol(library, "cuMemcpyHtoD_v2", &cu.to_device, true);
  symbol(library, "cuMemcpyDtoH_v2", &cu.to_host, true);
  symbol(library, "cuMemsetD8_v2", &cu.memset8, true);
  symbol(library, "cuStreamCreate", &cu.stream_create, true);
  symbol(library, "cuStreamSynchronize", &cu.stream_synchronize, true);
  symbol(library, "cuStreamDestroy_v2", &cu.stream_destroy, true);
  symbol(library, "cuCtxSynchronize", &cu.synchronize, true);
  symbol(library, "cuLaunchKernel", &cu.launch, true);
  symbol(library, "cuLaunchCooperativeKernel", &cu.launch_cooperative, true);
  symbol(library, "cuLaunchKernelEx", &cu.launch_ex, false);
  check(cu.init(0), "cuInit");
}

static int32_t limit(CUdevice device, CUdevice_attribute attribute) {
  int value = 0;
  check(cu.device_attribute(&value, attribute, device), "cuDeviceGetAttribute");
  return value;
}

// The whole device's limits. A host in a green context or an MPS share would ask cuCtxGetDevResource for its SMs.
static void limits_of(CUdevice device, drvtopk_device* limits) {
  memset(limits, 0, sizeof *limits);
  check(cu.device_name(limits->name, (int)sizeof limits->name - 1, device), "cuDeviceGetName");
  drvtopk_arch_of(limit(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                  limit(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR), limits->arch);
  limits->sms = limit(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  limits->smem_optin = limit(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  limits->smem_per_sm = limit(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  limits->smem_reserved = limit(device, CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
  limits->max_threads_per_sm = limit(device, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
}

// Files --------------------------------------------------------------------------------------------------------------

// A whole file, from malloc.
static void* contents(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  long end;
  void* bytes;
  if (!file || fseek(file, 0, SEEK_END) || (end = ftell(file)) < 0 || fseek(file, 0, SEEK_SET)) {
    stop(FAILED, "cannot read", path);
    return NULL;
  }
  bytes = malloc((size_t)end + 1);
  if (!bytes || fread(bytes, 1, (size_t)end, file) != (size_t)end) stop(FAILED, "cannot read", path);
  (void)fclose(file);
  *size = (size_t)end;
  return bytes;
}

static void store(const char* path, const void* bytes, size_t size) {
  FILE* file = fopen(path, "wb");
  if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) stop(FAILED, "cannot write", path);
}

// Kernels: loaded when first asked about -----------------------------------------------------------------------------

enum { KERNELS = sizeof drvtopk_kernels / sizeof *drvtopk_kernels };

typedef struct loaded {
  CUmodule module;
  CUfunction function;
  uint32_t smem_bytes;  // its limit; it only ever rises, as a plan that was asked about may be launched
} loaded;

typedef struct kernels {
  const char* folder;
  loaded known[KERNELS];
} kernels;

// The function, allowed to take so much shared memory: without that the driver answers that no block fits.
static CUfunction raised(kernels* all, const drvtopk_kernel* kernel, uint32_t smem_bytes) {
  loaded* one = &all->known[kernel - drvtopk_kernels];
  if (!one->module) {
    char path[4096];
    size_t size;
    void* cubin;
    (void)snprintf(path, sizeof path, "%s/%s", all->folder, kernel->file);
    cubin = contents(path, &size);
    check(cu.module_load(&one->module, cubin), "cuModuleLoadData");
    free(cubin);
    check(cu.module_function(&one->function, one->module, kernel->entry), "cuModuleGetFunction");
    if (kernel->cluster > PORTABLE_CLUSTER) {
      check(cu.set_attribute(one->function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
            "cuFuncSetAttribute(NON_PORTABLE_CLUSTER_SIZE_ALLOWED)");
    }
  }
  if (smem_bytes > one->smem_bytes) {
    check(cu.set_attribute(one->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)smem_bytes),
          "cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES)");
    one->smem_bytes = smem_bytes;
  }
  return one->function;
}

static void configure(CUlaunchConfig* config, uint32_t grid, uint32_t block, uint32_t smem_bytes, CUstream stream,
                      CUlaunchAttribute* attribute) {
  memset(config, 0, sizeof *config);
  memset(attribute, 0, sizeof *attribute);
  config->gridDimX = grid;
  config->blockDimX = block;
  config->gridDimY = config->gridDimZ = config->blockDimY = config->blockDimZ = 1;
  config->sharedMemBytes = smem_bytes;
  config->hStream = stream;
  config->attrs = attribute;
  config->numAttrs = 1;
}

static int occupancy(void* user, const drvtopk_kernel* kernel, uint32_t smem_bytes) {
  int blocks = 0;
  const CUfunction function = raised((kernels*)user, kernel, smem_bytes);
  check(cu.max_blocks(&blocks, function, kernel->threads, smem_bytes), "cuOccupancyMaxActiveBlocksPerMultiprocessor");
  return blocks;
}

static int clusters(void* user, const drvtopk_kernel* kernel, uint32_t smem_bytes) {
  int found = 0;
  const CUfunction function = raised((kernels*)user, kernel, smem_bytes);
  const uint32_t size = (uint32_t)kernel->cluster;
  CUlaunchConfig config;
  CUlaunchAttribute attribute;
  CUresult code;
  configure(&config, size, (uint32_t)kernel->threads, smem_bytes, NULL, &attribute);
  attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attribute.value.clusterDim.x = size;
  attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1;
  code = cu.max_clusters(&found, function, &config);
  if (code == CUDA_ERROR_INVALID_CLUSTER_SIZE) return 0;
  check(code, "cuOccupancyMaxActiveClusters");
  return found;
}

// One launch. False: blocks that wait for each other can never be resident here together; nothing was launched.
static bool launch(kernels* all, const drvtopk_plan* plan, drvtopk_extended_params* params, CUstream stream) {
  const CUfunction function = raised(all, plan->kernel, plan->smem_bytes);
  const uint32_t block = (uint32_t)plan->kernel->threads;
  const char* call = "cuLaunchKernel";
  void* parameters[1];
  CUresult code;
  parameters[0] = params;
  if (plan->cooperative) {
    call = "cuLaunchCooperativeKernel";
    code = cu.launch_cooperative(function, plan->grid, 1, 1, block, 1, 1, plan->smem_bytes, stream, parameters);
  } else if (plan->kernel->pdl) {
    CUlaunchConfig config;
    CUlaunchAttribute attribute;
    configure(&config, plan->grid, block, plan->smem_bytes, stream, &attribute);
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    call = "cuLaunchKernelEx";
    if (!cu.launch_ex) stop(FAILED, "the driver lacks", call);
    code = cu.launch_ex(&config, function, parameters, NULL);
  } else {
    code = cu.launch(function, plan->grid, 1, 1, block, 1, 1, plan->smem_bytes, stream, parameters, NULL);
  }
  if (drvtopk_is_refusal(plan, (int)code)) return false;
  check(code, call);
  return true;
}

// Memory -------------------------------------------------------------------------------------------------------------

static CUdeviceptr allocated(size_t size) {
  CUdeviceptr address = 0;
  check(cu.mem_alloc(&address, size ? size : 1), "cuMemAlloc_v2");
  return address;
}

static CUdeviceptr uploaded(const char* path, size_t least, bool exact) {
  size_t size;
  void* bytes = contents(path, &size);
  CUdeviceptr address;
  if (size < least || (exact && size != least)) stop(MISUSED, "not the size that the arguments say", path);
  address = allocated(size);
  if (size) check(cu.to_device(address, bytes, size), "cuMemcpyHtoD_v2");
  free(bytes);
  return address;
}

// Memory for results, poisoned, with a guard behind it.
static CUdeviceptr poisoned(size_t size) {
  const CUdeviceptr address = allocated(size + GUARD);
  check(cu.memset8(address, POISON, size + GUARD), "cuMemsetD8_v2");
  return address;
}

// Stores (rows, k) results whose rows lie `stride` elements apart; nothing beside or behind them may have been written.
static void fetch(const char* path, CUdeviceptr address, int64_t rows, int64_t k, int64_t stride, size_t item) {
  const size_t size = (size_t)(rows * stride) * item;
  unsigned char *bytes = (unsigned char*)malloc(size + GUARD),
                *dense = (unsigned char*)malloc((size_t)(rows * k) * item + 1);
  int64_t row;
  size_t i;
  if (!bytes || !dense) stop(FAILED, "out of memory", path);
  check(cu.to_host(bytes, address, size + GUARD), "cuMemcpyDtoH_v2");
  for (i = size; i < size + GUARD; ++i) {
    if (bytes[i] != POISON) stop(FAILED, "memory was written behind", path);
  }
  for (row = 0; row < rows; ++row) {
    const unsigned char* from = bytes + (size_t)(row * stride) * item;
    memcpy(dense + (size_t)(row * k) * item, from, (size_t)k * item);
    for (i = (size_t)k * item; i < (size_t)stride * item; ++i) {
      if (from[i] != POISON) stop(FAILED, "memory was written beside", path);
    }
  }
  store(path, dense, (size_t)(rows * k) * item);
  free(bytes);
  free(dense);
}

// Arguments ----------------------------------------------------------------------------------------------------------

static int argument_count;
static char** argument;

// The text behind NAME=, or null.
static const char* given(const char* name) {
  const size_t length = strlen(name);
  int i;
  for (i = 4; i < argument_count; ++i) {
    if (!strncmp(argument[i], name, length) && argument[i][length] == '=') return argument[i] + length + 1;
  }
  return NULL;
}

static int64_t number(const char* name, int64_t otherwise) {
  const char* text = given(name);
  char* end;
  long long value;
  if (!text) return otherwise;
  value = strtoll(text, &end, 10);
  if (!*text || *end) stop(MISUSED, "not a number", name);
  return value;
}

static int64_t choice(const char* name, int64_t count) {
  const int64_t value = number(name, 0);
  if (value < 0 || value >= count) stop(MISUSED, "no such choice", name);
  return value;
}

static void check_names(void) {
  static const char* const names[] = {"rows",       "width",     "k",      "stride",      "offset",  "max_seq_len",
                                      "out_stride", "lengths",   "values", "row_starts",  "route",   "sm_budget",
                                      "chunk",      "group",     "pdl",    "waits_never", "dtype",   "index_dtype",
                                      "order",      "tie_break", "nan",    "device",      "libcuda", "repeat"};
  int i;
  size_t n;
  for (i = 4; i < argument_count; ++i) {
    bool known = false;
    for (n = 0; n < sizeof names / sizeof *names; ++n) {
      const size_t length = strlen(names[n]);
      known = known || (!strncmp(argument[i], names[n], length) && argument[i][length] == '=');
    }
    if (!known) stop(MISUSED, "unknown argument", argument[i]);
  }
}

static drvtopk_route route_of(const char* name) {
  int i;
  for (i = DRVTOPK_ROUTE_AUTO; i <= DRVTOPK_ROUTE_CLUSTERED; ++i) {
    if (!strcmp(name, drvtopk_route_name((drvtopk_route)i))) return (drvtopk_route)i;
  }
  stop(MISUSED, "no such route", name);
  return DRVTOPK_ROUTE_AUTO;
}

static drvtopk_problem problem_of_arguments(void) {
  drvtopk_problem problem = drvtopk_problem_of(number("rows", -1), number("width", -1), number("k", -1));
  problem.stride = number("stride", problem.width);
  problem.offset = number("offset", 0);
  problem.max_seq_len = number("max_seq_len", problem.width);
  problem.sm_budget = number("sm_budget", 0);
  problem.chunk = number("chunk", 0);
  problem.group = number("group", 0);
  problem.route = given("route") ? route_of(given("route")) : DRVTOPK_ROUTE_AUTO;
  problem.waits_never = choice("waits_never", 2) != 0;
  problem.pdl = choice("pdl", 2) != 0;
  problem.options.dtype = (drvtopk_dtype)choice("dtype", 3);
  problem.options.index_dtype = (drvtopk_index_dtype)choice("index_dtype", 2);
  problem.options.order = (drvtopk_order)choice("order", 3);
  problem.options.tie_break = (drvtopk_tie_break)choice("tie_break", 3);
  problem.options.nan = (drvtopk_nan)choice("nan", 2);
  problem.options.values = given("values") != NULL;
  problem.options.row_starts = given("row_starts") != NULL;
  return problem;
}

static void planned(drvtopk_error error, const drvtopk_plan* plan, int64_t k) {
  const drvtopk_rejected* rejected = &plan->rejected;
  char figures[256];
  if (!error) return;
  if (plan->missing.count) {
    missing_name(&plan->missing, k, figures, sizeof figures);
  } else {
    (void)snprintf(figures, sizeof figures,
                   "%s, %s, %" PRId64 " blocks a row, %" PRId64 " bytes of shared memory, %" PRId64 " resident",
                   drvtopk_reason_name(plan->reason), drvtopk_route_name(rejected->route), rejected->group,
                   rejected->smem_bytes, rejected->resident_cap);
  }
  stop(UNPLANNED, drvtopk_error_text(error), figures);
}

static void filled(drvtopk_error error) {
  if (error) stop(MISUSED, "refused", drvtopk_error_text(error));
}

static CUdeviceptr workspace_for(const drvtopk_plan* plan) {
  CUdeviceptr workspace;
  if (!plan->workspace_bytes) return 0;
  workspace = allocated((size_t)plan->workspace_bytes);
  check(cu.memset8(workspace, 0xFF, (size_t)plan->workspace_bytes), "cuMemsetD8_v2");  // its contents are irrelevant
  return workspace;
}

int main(int count, char** arguments) {
  static kernels all;
  const char* library;
  char json[4096];
  CUdevice device;
  CUcontext context;
  CUstream stream;
  drvtopk_problem problem;
  drvtopk_device limits;
  drvtopk_driver driver;
  drvtopk_plan plan;
  drvtopk_extended_params params;
  CUdeviceptr logits;
  size_t elements, item, index;
  int64_t left;
  int i;
  if (count < 4) stop(MISUSED, "usage", "host CUBINS LOGITS OUT rows=4 width=50000 k=1024 [NAME=VALUE ...]");
  argument_count = count;
  argument = arguments;
  check_names();
  problem = problem_of_arguments();

  library = given("libcuda") ? given("libcuda") : getenv("DRVTOPK_LIBCUDA");
  load_driver(library ? library : "libcuda.so.1");
  check(cu.device(&device, (int)number("device", 0)), "cuDeviceGet");
  check(cu.retain(&context, device), "cuDevicePrimaryCtxRetain");
  check(cu.set_current(context), "cuCtxSetCurrent");
  limits_of(device, &limits);

  all.folder = arguments[1];
  driver.user = &all;
  driver.occupancy = occupancy;
  driver.clusters = cu.max_clusters ? clusters : NULL;
  planned(drvtopk_make_plan(&problem, &limits, NULL, &drvtopk_exported, &driver, &plan), &plan, problem.k);

  item = (size_t)plan.kernel->item_bytes;
  index = (size_t)plan.kernel->index_bytes;
  elements = problem.rows ? (size_t)(problem.offset + (problem.rows - 1) * problem.stride + problem.width) : 0;
  memset(&params, 0, sizeof params);
  logits = uploaded(arguments[2], elements * item, false);
  params.plain.logits = logits + (size_t)problem.offset * item;
  params.plain.out_stride = number("out_stride", problem.k);
  if (params.plain.out_stride < problem.k) stop(MISUSED, "less than k", "out_stride");
  params.plain.out = poisoned((size_t)(problem.rows * params.plain.out_stride) * index);
  if (given("lengths")) params.plain.lengths = uploaded(given("lengths"), (size_t)problem.rows * 4, true);
  if (given("row_starts")) params.row_starts = uploaded(given("row_starts"), (size_t)problem.rows * 4, true);
  if (given("values")) params.values = poisoned((size_t)(problem.rows * problem.k) * item);
  params.plain.workspace = workspace_for(&plan);
  filled(drvtopk_fill_params(&plan, &params));

  check(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  check(cu.synchronize(), "cuCtxSynchronize");  // a stream of this kind does not wait for the copies by itself
  for (left = plan.grid ? number("repeat", 1) : 0; left > 0; --left) {
    if (launch(&all, &plan, &params, stream)) continue;
    planned(drvtopk_after_refusal(&plan, &drvtopk_exported, &driver, &plan), &plan, problem.k);
    filled(drvtopk_fill_params(&plan, &params));
    if (!launch(&all, &plan, &params, stream)) stop(FAILED, "refused", plan.kernel->name);
  }
  check(cu.stream_synchronize(stream), "cuStreamSynchronize");

  fetch(arguments[3], params.plain.out, problem.rows, problem.k, params.plain.out_stride, index);
  if (given("values")) fetch(given("values"), params.values, problem.rows, problem.k, problem.k, item);
  plan_as_json(&plan, problem.k, limits.name, json, sizeof json);
  printf("%s\n", json);

  check(cu.stream_destroy(stream), "cuStreamDestroy_v2");
  check(cu.mem_free(logits), "cuMemFree_v2");
  check(cu.mem_free(params.plain.out), "cuMemFree_v2");
  if (params.plain.lengths) check(cu.mem_free(params.plain.lengths), "cuMemFree_v2");
  if (params.row_starts) check(cu.mem_free(params.row_starts), "cuMemFree_v2");
  if (params.values) check(cu.mem_free(params.values), "cuMemFree_v2");
  if (params.plain.workspace) check(cu.mem_free(params.plain.workspace), "cuMemFree_v2");
  for (i = 0; i < KERNELS; ++i) {
    if (all.known[i].module) check(cu.module_unload(all.known[i].module), "cuModuleUnload");
  }
  check(cu.release(device), "cuDevicePrimaryCtxRelease_v2");
  return 0;
}
