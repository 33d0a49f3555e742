// drvtopk in a C99 or C++17 host: plan and launch exported kernels with the CUDA driver API and nothing else.
//
// Include "drvtopk_kernels.h", which every export writes. It has the kernels, the numbers, and the types of what they
// are listed in, and includes this. Link with -lm. Nothing here allocates, calls CUDA or keeps state: every function is
// pure but for the callbacks it is given, and safe to call from several threads. A host
//
//   1. fills a `drvtopk_device` from the driver's attributes,
//   2. answers `drvtopk_driver`'s two questions with the driver's own answers for the very function it will launch,
//   3. calls `drvtopk_make_plan`: the same plan as Python's for the same inputs,
//   4. lends each launch `plan.workspace_bytes` bytes, calls `drvtopk_fill_params`, and launches `plan.kernel` with
//      plan.grid x plan.kernel->threads threads and plan.smem_bytes of dynamic shared memory (not where grid is 0):
//        plan.cooperative   cuLaunchCooperativeKernel, and nothing else: its blocks wait for each other.
//        plan.kernel->pdl   cuLaunchKernelEx with CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 1
//        else               cuLaunchKernel. The size of a cluster is compiled in.
//   5. launches the plan of `drvtopk_after_refusal` instead where `drvtopk_is_refusal` knows the answer of a launch.
//      Nothing was launched then. Inside a capture no launch is refused, so plan for the SMs of the capturing stream: a
//      graph with a cluster that never fits cannot be instantiated, one with a cooperative grid that never fits hangs.
//
// Names that end in an underscore are this file's own.
#ifndef DRVTOPK_H
#define DRVTOPK_H

#ifndef DRVTOPK_VERSION
#error "include drvtopk_kernels.h, which defines the kernels' numbers and includes this file"
#endif

#include <math.h>
#include <stdio.h>
#include <string.h>

#define DRVTOPK_DIGITS_(number) #number
#define DRVTOPK_TEXT_(number) DRVTOPK_DIGITS_(number)
#define DRVTOPK_COUNT_(array) (sizeof(array) / sizeof *(array))

enum { DRVTOPK_NAME_SIZE = 256, DRVTOPK_ARCH_SIZE = 16 };

// What is asked for -------------------------------------------------------------------------------------------------

// One call's shape, and how it shall be solved. Start from drvtopk_problem_of: a zero is not "not given" everywhere.
typedef struct drvtopk_problem {
  int64_t rows;         // 0..DRVTOPK_MAX_ROWS
  int64_t width;        // elements of each row, 0..DRVTOPK_MAX_WIDTH; nothing past them is read
  int64_t k;            // 1..DRVTOPK_MAX_K
  int64_t stride;       // elements from one row's start to the next, 0 to DRVTOPK_MAX_STRIDE / rows
  int64_t offset;       // the base address in elements, modulo 8 (0: aligned to the widest load)
  int64_t max_seq_len;  // a hint: no length is expected to exceed it, elements; a wrong one costs time only. It counts
                        // as the next power of two, or as the width
  int64_t sm_budget;    // at most as many blocks as fit on so many SMs at once; 0: the whole device
  int64_t chunk;        // elements that one block of the route persistent holds; 0: the planner's choice
  int64_t group;        // blocks of a cluster, only with the route clustered; 0: the planner's choice
  drvtopk_route route;  // a named route has to fit
  bool waits_never;     // only launches in which no block waits for another
  bool pdl;             // programmatic dependent launch, where the device and the route have it
  drvtopk_options options;
} drvtopk_problem;

// The limits of one device, or of the part of it that a context or a stream may use (a green context's SMs).
typedef struct drvtopk_device {
  char name[DRVTOPK_NAME_SIZE];  // cuDeviceGetName; measured times are looked up by it
  char arch[DRVTOPK_ARCH_SIZE];  // of the kernels to use: drvtopk_arch_of the compute capability
  int32_t sms;                   // MULTIPROCESSOR_COUNT
  int32_t smem_optin;            // bytes, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
  int32_t smem_per_sm;           // bytes, MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
  int32_t smem_reserved;         // bytes, RESERVED_SHARED_MEMORY_PER_BLOCK
  int32_t max_threads_per_sm;    // MAX_THREADS_PER_MULTIPROCESSOR
} drvtopk_device;

// What is planned ---------------------------------------------------------------------------------------------------

// Asked of the driver. A negative answer says that asking failed, and ends the planning.
typedef int (*drvtopk_question)(void* user, const drvtopk_kernel* kernel, uint32_t smem_bytes);

// The driver's answers for a kernel with so much dynamic shared memory. A cluster above 8 blocks first needs
// CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED. The function's limit
// (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) has to be raised to it before, or the driver answers 0, and must
// not be lowered afterwards. Each is asked at most once of a kernel in one planning.
typedef struct drvtopk_driver {
  void* user;                  // handed to both
  drvtopk_question occupancy;  // cuOccupancyMaxActiveBlocksPerMultiprocessor with kernel->threads
  drvtopk_question clusters;   // cuOccupancyMaxActiveClusters with kernel->cluster, and the stream's handle where it is
                               // one of a green context; 0 where that answers 912 (INVALID_CLUSTER_SIZE); may be null
                               // where no kernel with clusters is exported
} drvtopk_driver;

// A launch that does not fit or was refused.
typedef struct drvtopk_rejected {
  drvtopk_route route;  // DRVTOPK_ROUTE_AUTO: nothing was rejected
  int32_t vec_size;     // elements
  int64_t group;        // blocks
  int64_t chunk;        // elements
  int64_t smem_bytes;
  int64_t occupancy;     // blocks an SM
  int64_t resident_cap;  // blocks
} drvtopk_rejected;

// Kernels of the problem's k and options that a planning wanted and the export lacks.
typedef struct drvtopk_missing {
  int32_t count;  // of all; the rest says which was the first
  drvtopk_route route;
  int32_t vec_size, residency, cluster;
  bool pdl;
} drvtopk_missing;

// One launch, as plain data. grid == groups * group; a cooperative grid never exceeds resident_cap.
typedef struct drvtopk_plan {
  const drvtopk_kernel* kernel;  // to launch; null: there is no plan
  drvtopk_problem problem;       // max_seq_len as it counts
  drvtopk_device device;         // sms of the budget
  drvtopk_tuning tuning;
  drvtopk_reason reason;
  uint32_t grid;         // blocks; 0: there is nothing to launch
  uint32_t group;        // blocks that share one row
  uint32_t groups;       // rows in flight
  uint32_t chunk;        // elements of a row that one block of the group holds (the whole row where no block waits)
  uint32_t candidates;   // keys of one threshold bin that a block can keep in shared memory
  uint32_t smem_bytes;   // dynamic shared memory of one block
  int32_t occupancy;     // resident blocks per SM of this very kernel with this very shared memory
  int64_t resident_cap;  // sms x occupancy
  int64_t headroom;      // resident blocks that a cooperative plan wants to leave to others
  int64_t workspace_bytes;
  bool needs_cooperation;
  bool headroom_kept;
  bool cooperative;           // goes out by cuLaunchCooperativeKernel only
  bool fallback;              // of `rejected`
  drvtopk_rejected rejected;  // the launch that a fallback stands for, or the last one tried where there is no plan
  drvtopk_missing missing;
} drvtopk_plan;

// X(name, text): every error, and what it means.
#define DRVTOPK_ERRORS_(X)                                                                                       \
  X(OK, "no error")                                                                                              \
  X(BAD_ROWS, "rows: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_ROWS))                                            \
  X(BAD_WIDTH, "width: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " elements")                             \
  X(BAD_K, "k: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_K))                                                     \
  X(BAD_STRIDE, "stride: allowed is 0 to " DRVTOPK_TEXT_(DRVTOPK_MAX_STRIDE) " / rows elements")                 \
  X(BAD_OFFSET, "offset: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_OFFSET) " elements")                          \
  X(BAD_MAX_SEQ_LEN, "max_seq_len: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " elements")                 \
  X(BAD_SM_BUDGET, "sm_budget: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_ROWS) ", or 0: the whole device")       \
  X(BAD_ROUTE, "route: allowed is a DRVTOPK_ROUTE_")                                                             \
  X(BAD_CHUNK, "chunk: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " elements, or 0: the planner's")        \
  X(BAD_GROUP, "group: allowed is one of DRVTOPK_CLUSTERS with the route clustered, or 0: the planner's")        \
  X(BAD_TUNING, "tuning: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) "; what is compiled in: the export's") \
  X(BAD_DEVICE, "device: allowed are limits of at least 1 and texts that end")                                   \
  X(BAD_POINTER, "a pointer that is needed is null")                                                             \
  X(BAD_PLAN, "plan: allowed is one with a kernel")                                                              \
  X(BAD_LOGITS, "logits: allowed is a device address aligned to plan.vec_size elements")                         \
  X(BAD_LENGTHS, "lengths: allowed is a device address aligned to 4 bytes, or 0")                                \
  X(BAD_OUT, "out: allowed is a device address aligned to an index")                                             \
  X(BAD_WORKSPACE,                                                                                               \
    "workspace: allowed is a device address aligned to " DRVTOPK_TEXT_(DRVTOPK_WORKSPACE_ALIGNMENT) " bytes")    \
  X(BAD_OUT_STRIDE, "out_stride: allowed is at least k elements")                                                \
  X(BAD_VALUES, "values: allowed is a device address aligned to a logit; 0 without the option")                  \
  X(BAD_VALUES_STRIDE, "values_stride: allowed is at least k elements")                                          \
  X(BAD_ROW_STARTS, "row_starts: allowed is a device address aligned to 4 bytes; 0 without the option")          \
  X(BAD_PAGE_TABLE, "page_table: allowed is a device address aligned to 4 bytes; 0 without the option")          \
  X(BAD_PAGE_TABLE_STRIDE, "page_table_stride: allowed is at least 0 elements")                                  \
  X(BAD_PAGE_SIZE, "page_size: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH))                                 \
  X(BAD_ROWS_PER_TABLE, "rows_per_table: allowed is 1..rows")                                                    \
  X(DOES_NOT_FIT, "the route does not fit this device")                                                          \
  X(NOT_EXPORTED, "the kernels that this problem needs are not exported")                                        \
  X(ARCH_NOT_EXPORTED, "no kernel is exported for device.arch")                                                  \
  X(K_NOT_EXPORTED, "no kernel is exported with this k and these options")                                       \
  X(QUESTION_FAILED, "a question to the driver failed, or its answer is impossible")

#define DRVTOPK_ENUMERATOR_(name, text) DRVTOPK_##name,
typedef enum drvtopk_error { DRVTOPK_ERRORS_(DRVTOPK_ENUMERATOR_) } drvtopk_error;

// "rows: allowed is 0..2147483647". Never null.
static inline const char* drvtopk_error_text(drvtopk_error error) {
#define DRVTOPK_ERROR_TEXT_(name, text) text,
  static const char* const texts[] = {DRVTOPK_ERRORS_(DRVTOPK_ERROR_TEXT_)};
  return (size_t)error < DRVTOPK_COUNT_(texts) ? texts[error] : "unknown error";
}

// "persistent" and "short_rows", as Python has them. Never null.
static inline const char* drvtopk_route_name(drvtopk_route route) {
  static const char* const names[] = DRVTOPK_ROUTE_NAMES;
  return (size_t)route < DRVTOPK_COUNT_(names) ? names[route] : "unknown";
}
static inline const char* drvtopk_reason_name(drvtopk_reason reason) {
  static const char* const names[] = DRVTOPK_REASON_NAMES;
  return (size_t)reason < DRVTOPK_COUNT_(names) ? names[reason] : "unknown";
}

// A plain problem in dense rows, with nothing given that a planner may choose. Change what differs.
static inline drvtopk_problem drvtopk_problem_of(int64_t rows, int64_t width, int64_t k) {
  drvtopk_problem made;
  memset(&made, 0, sizeof made);
  made.rows = rows;
  made.width = made.stride = made.max_seq_len = width;
  made.k = k;
  return made;
}

// Writes the target that kernels for a compute capability are exported for, "sm_90a", into `text`.
static inline void drvtopk_arch_of(int major, int minor, char text[DRVTOPK_ARCH_SIZE]) {
  (void)snprintf(text, DRVTOPK_ARCH_SIZE, "sm_%d%d%s", major, minor, major >= 9 ? "a" : "");
}

// The planner's own parts -------------------------------------------------------------------------------------------

// What one planning knows.
typedef struct drvtopk_planning_ {
  drvtopk_problem problem;  // max_seq_len: the longest row that the hint lets us expect
  drvtopk_device device;    // with the budget's SMs
  drvtopk_tuning tuning;
  const drvtopk_export* exported;
  const drvtopk_driver* driver;
  const drvtopk_arch* arch;
  const drvtopk_kernel* like;  // any kernel of this k and these options: their sizes are the same for all routes
  drvtopk_missing missing;
  int missing_seen;  // a bit for each kernel that is counted
} drvtopk_planning_;

static inline bool drvtopk_in_(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }
static inline int64_t drvtopk_min_(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t drvtopk_max_(int64_t a, int64_t b) { return a > b ? a : b; }
// Rounded down, also below 0; `by` is positive.
static inline int64_t drvtopk_floor_(int64_t value, int64_t by) { return value / by - (value % by < 0 ? 1 : 0); }
// Rounded up; `value` is not negative.
static inline int64_t drvtopk_ceil_(int64_t value, int64_t by) { return value / by + (value % by > 0 ? 1 : 0); }
static inline int64_t drvtopk_align_(int64_t value, int64_t to) { return drvtopk_ceil_(value, to) * to; }

// Whether a kernel has the problem's k and options, for the device's architecture.
static inline bool drvtopk_is_like_(const drvtopk_planning_* p, const drvtopk_kernel* kernel) {
  const drvtopk_options *a = &kernel->options, *b = &p->problem.options;
  return kernel->k == p->problem.k && a->dtype == b->dtype && a->index_dtype == b->index_dtype &&
         a->order == b->order && a->tie_break == b->tie_break && a->nan == b->nan && a->values == b->values &&
         a->row_starts == b->row_starts && a->page_table == b->page_table && !strcmp(kernel->arch, p->arch->arch);
}

// The instantiation, or null, which counts as missing. Within one planning, route and cluster identify it.
static inline const drvtopk_kernel* drvtopk_kernel_of_(drvtopk_planning_* p, drvtopk_route route, int64_t vec_size,
                                                       int residency, int cluster, bool pdl) {
  const int bit = cluster > 1 ? cluster : route == DRVTOPK_ROUTE_FILTERED ? 1 : 0x100;
  for (size_t i = 0; i < p->exported->kernel_count; ++i) {
    const drvtopk_kernel* kernel = &p->exported->kernels[i];
    if (kernel->route == route && kernel->vec_size == vec_size && kernel->residency == residency &&
        kernel->cluster == cluster && kernel->pdl == pdl && drvtopk_is_like_(p, kernel)) {
      return kernel;
    }
  }
  const drvtopk_missing first = {1, route, (int32_t)vec_size, residency, cluster, pdl};
  if (!p->missing.count) {
    p->missing = first;
  } else if (!(p->missing_seen & bit)) {
    ++p->missing.count;
  }
  p->missing_seen |= bit;
  return NULL;
}

// The widest load, in elements, that the base address, the row stride and every chunk start allow. A single row has no
// stride.
static inline int64_t drvtopk_vec_size_(const drvtopk_planning_* p, int64_t chunk) {
  const int64_t step = p->problem.options.row_starts ? 0 : chunk;
  const int64_t stride = p->problem.rows > 1 ? p->problem.stride : 0;
  int64_t vec = p->like->widest;
  while (vec > 1 && (p->problem.offset % vec || stride % vec || step % vec)) vec /= 2;
  return vec;
}

static inline int drvtopk_candidate_bytes_(int cluster) {
  return cluster > 1 ? DRVTOPK_CLUSTER_CANDIDATE_BYTES : DRVTOPK_CANDIDATE_BYTES;
}

// Shared memory a block may take without costing the SM a second block that its threads would have had room for.
static inline int64_t drvtopk_smem_budget_(const drvtopk_device* device, int threads) {
  const int64_t blocks = drvtopk_max_(1, drvtopk_min_(2, device->max_threads_per_sm / threads));
  const int64_t share = (int64_t)device->smem_per_sm / blocks - device->smem_reserved;
  return drvtopk_min_(device->smem_optin, drvtopk_floor_(share, 128) * 128);
}

// Candidates that one block keeps in shared memory.
static inline int64_t drvtopk_candidates_(const drvtopk_planning_* p, drvtopk_route route, int residency, int cluster) {
  const int64_t k = p->problem.k, fixed = p->like->fixed_smem_bytes, most = p->tuning.max_candidates;
  const int64_t each = drvtopk_candidate_bytes_(cluster);
  const bool narrow = cluster > 1 || (route == DRVTOPK_ROUTE_FILTERED && residency > 1);
  const int threads = narrow ? DRVTOPK_NARROW_THREADS : DRVTOPK_THREADS;
  const int64_t room = p->device.smem_optin - fixed;  // with an SM to itself
  int64_t fit = drvtopk_min_(most, drvtopk_floor_(drvtopk_smem_budget_(&p->device, threads) - fixed, each));
  if (cluster > 1 && (residency == 1 || fit < 2 * k)) {
    const int64_t wanted = drvtopk_min_(most, drvtopk_max_(6144, 4 * k));
    fit = drvtopk_max_(fit, drvtopk_min_(wanted, drvtopk_floor_(room, each)));
  } else if (narrow && fit < k) {  // rather one block on an SM than too little room
    fit = drvtopk_min_(most, drvtopk_floor_(room, each));
  }
  return drvtopk_max_(0, fit);
}

// Elements one block holds: few rows spread over all SMs, many rows take as few blocks each as memory allows.
static inline int64_t drvtopk_chunk_(const drvtopk_planning_* p) {
  const int64_t step = p->like->widest, rows = drvtopk_max_(p->problem.rows, 1);
  const int64_t room = drvtopk_smem_budget_(&p->device, DRVTOPK_THREADS) - p->like->fixed_smem_bytes;
  const int64_t largest = drvtopk_max_(step, drvtopk_floor_(drvtopk_floor_(room, 4), step) * step);
  const int64_t blocks_per_sm = drvtopk_max_(1, p->device.max_threads_per_sm / DRVTOPK_THREADS);
  const int64_t courtesy = blocks_per_sm > 1 ? p->device.sms : 1;
  const int64_t blocks_per_row = drvtopk_max_(1, (p->device.sms * blocks_per_sm - courtesy) / rows);
  const int64_t even = drvtopk_align_(drvtopk_ceil_(p->problem.width, blocks_per_row), step);
  const int64_t least = drvtopk_min_(drvtopk_align_(p->tuning.min_chunk, step), largest);
  return drvtopk_max_(drvtopk_min_(even, largest), least);
}

// Begins an attempt: no plan, and figures that would be rejected.
static inline drvtopk_rejected* drvtopk_try_(drvtopk_plan* plan, drvtopk_route route, int64_t vec_size, int64_t group,
                                             int64_t chunk) {
  const drvtopk_rejected tried = {route, (int32_t)vec_size, group, chunk, 0, 0, 0};
  memset(plan, 0, sizeof *plan);
  plan->reason = DRVTOPK_REASON_DOES_NOT_FIT;
  plan->rejected = tried;
  return &plan->rejected;
}

// Asks for the resident blocks per SM. No block may opt in to more than smem_optin, so that is not asked.
static inline drvtopk_error drvtopk_occupancy_(const drvtopk_planning_* p, const drvtopk_kernel* kernel, int64_t smem,
                                               drvtopk_rejected* tried) {
  const bool allowed = kernel->static_smem_bytes + smem <= p->device.smem_optin;
  const int answer = allowed ? p->driver->occupancy(p->driver->user, kernel, (uint32_t)smem) : 0;
  tried->smem_bytes = smem;
  tried->occupancy = answer;
  tried->resident_cap = (int64_t)p->device.sms * answer;
  return drvtopk_in_(tried->resident_cap, 0, DRVTOPK_MAX_ROWS) ? DRVTOPK_OK : DRVTOPK_QUESTION_FAILED;
}

// Makes the plan of an attempt that fits.
static inline drvtopk_error drvtopk_accept_(const drvtopk_planning_* p, const drvtopk_kernel* kernel, int64_t groups,
                                            int64_t candidates, drvtopk_reason reason, drvtopk_plan* plan) {
  const drvtopk_rejected made = plan->rejected;
  memset(&plan->rejected, 0, sizeof plan->rejected);
  plan->kernel = kernel;
  plan->reason = reason;
  plan->problem = p->problem;
  plan->device = p->device;
  plan->tuning = p->tuning;
  plan->grid = p->problem.rows ? (uint32_t)(groups * made.group) : 0;
  plan->group = (uint32_t)made.group;
  plan->groups = (uint32_t)groups;
  plan->chunk = (uint32_t)made.chunk;
  plan->candidates = (uint32_t)candidates;
  plan->smem_bytes = (uint32_t)made.smem_bytes;
  plan->occupancy = (int32_t)made.occupancy;
  plan->resident_cap = made.resident_cap;
  return DRVTOPK_OK;
}

// Plans filtered (group 1), or clusters of `group` blocks. A launch that does not fit, or whose kernel is not exported,
// is left in plan->rejected; so it is by drvtopk_persistent_.
static inline drvtopk_error drvtopk_clustered_(drvtopk_planning_* p, int group, drvtopk_reason reason,
                                               drvtopk_plan* plan) {
  const drvtopk_problem* problem = &p->problem;
  const drvtopk_route route = group > 1 ? DRVTOPK_ROUTE_CLUSTERED : DRVTOPK_ROUTE_FILTERED;
  const int64_t vec = drvtopk_vec_size_(p, 0), part = drvtopk_max_(drvtopk_ceil_(problem->width, group), 1);
  const int residency = problem->rows * group <= p->device.sms ? 1 : 2;
  const int64_t candidates = drvtopk_candidates_(p, route, residency, group);
  drvtopk_rejected* tried = drvtopk_try_(plan, route, vec, group, part);
  int64_t smem = p->like->fixed_smem_bytes + candidates * drvtopk_candidate_bytes_(group);
  if (group > 1 && residency == 1) {  // an SM for each block: else two of a cluster might share one while others idle
    smem = drvtopk_min_(drvtopk_max_(smem, p->device.smem_per_sm / 2), p->device.smem_optin);
  }
  tried->smem_bytes = smem;
  if (group > 1 && (group > p->arch->max_cluster || candidates < problem->k)) return DRVTOPK_DOES_NOT_FIT;
  const bool pdl = problem->pdl && p->arch->has_pdl;
  const drvtopk_kernel* kernel = drvtopk_kernel_of_(p, route, vec, residency, group, pdl);
  if (!kernel) return DRVTOPK_NOT_EXPORTED;
  const drvtopk_error error = drvtopk_occupancy_(p, kernel, smem, tried);
  if (error) return error;
  int64_t together = tried->resident_cap;  // rows
  if (group > 1 && together > 0) {
    together = p->driver->clusters ? p->driver->clusters(p->driver->user, kernel, (uint32_t)smem) : 0;
  }
  if (together < 0) return DRVTOPK_QUESTION_FAILED;
  if (problem->sm_budget) together = drvtopk_min_(together, tried->resident_cap / group);  // the budget's SMs
  if (together < 1) return DRVTOPK_DOES_NOT_FIT;
  // Without a budget all rows: the hardware starts them as room comes free.
  const int64_t groups = drvtopk_min_(problem->rows, problem->sm_budget ? together : DRVTOPK_MAX_ROWS / group);
  return drvtopk_accept_(p, kernel, groups, candidates, reason, plan);
}

// `given_chunk` 0: the planner's choice.
static inline drvtopk_error drvtopk_persistent_(drvtopk_planning_* p, int64_t given_chunk, drvtopk_reason reason,
                                                drvtopk_plan* plan) {
  const int64_t rows = p->problem.rows, width = p->problem.width;
  const bool waits = p->problem.max_seq_len > p->tuning.radix_threshold;
  // Where no block waits, none holds a part: the row is one block's.
  const int64_t whole = drvtopk_align_(drvtopk_max_(width, 1), 4);
  const int64_t chunk = given_chunk ? given_chunk : waits ? drvtopk_chunk_(p) : whole;
  const int64_t group = drvtopk_max_(1, drvtopk_ceil_(width, chunk));
  const int64_t vec = drvtopk_vec_size_(p, group > 1 ? chunk : 0);
  const int64_t chunk_bytes = waits ? drvtopk_align_(chunk * 4, 16) : 0;
  drvtopk_rejected* tried = drvtopk_try_(plan, DRVTOPK_ROUTE_PERSISTENT, vec, group, chunk);
  const drvtopk_kernel* kernel = drvtopk_kernel_of_(p, DRVTOPK_ROUTE_PERSISTENT, vec, 2, 1, false);
  if (!kernel) return DRVTOPK_NOT_EXPORTED;
  // The same bytes hold a chunk of keys in one row and a bin's candidates in the next.
  const int64_t candidates =
      drvtopk_max_(chunk_bytes / kernel->candidate_bytes, drvtopk_candidates_(p, DRVTOPK_ROUTE_PERSISTENT, 2, 1));
  const int64_t smem = kernel->fixed_smem_bytes + drvtopk_max_(chunk_bytes, candidates * kernel->candidate_bytes);
  const drvtopk_error error = drvtopk_occupancy_(p, kernel, smem, tried);
  if (error) return error;
  const int64_t cap = tried->resident_cap;
  const int64_t headroom = !waits ? 0 : tried->occupancy > 1 ? p->device.sms : 1;
  const bool kept = waits && cap - headroom >= group;
  const int64_t groups = drvtopk_max_(1, drvtopk_min_((cap - (kept ? headroom : 0)) / group, rows));
  if (tried->occupancy < 1 || (waits && groups * group > cap)) return DRVTOPK_DOES_NOT_FIT;
  plan->needs_cooperation = plan->cooperative = waits;
  plan->headroom = headroom;
  plan->headroom_kept = kept;
  if (waits &&
      rows) {  // of each group: barrier line, rotating histograms, two handshake words a block, members to sort
    const int64_t words = DRVTOPK_ROUNDS * DRVTOPK_ROUND_WORDS + 2 * group + kernel->sorted_members,
                  line = DRVTOPK_WORKSPACE_ALIGNMENT;
    plan->workspace_bytes = groups * drvtopk_align_(line + 4 * words, line);
  }
  return drvtopk_accept_(p, kernel, groups, candidates, reason, plan);
}

// Times -------------------------------------------------------------------------------------------------------------

enum { DRVTOPK_WAYS_ = 8 };  // ways to launch, and one that always fits

typedef struct drvtopk_way_ {
  int cluster;  // blocks; 1: filtered; 0: persistent
  double us;    // microseconds
  drvtopk_reason reason;
} drvtopk_way_;

typedef struct drvtopk_ways_ {
  int count;
  drvtopk_way_ way[DRVTOPK_WAYS_];  // the fastest first
} drvtopk_ways_;

// Equal ones keep their order.
static inline void drvtopk_add_way_(drvtopk_ways_* ways, int cluster, double us, drvtopk_reason reason) {
  const drvtopk_way_ way = {cluster, us, reason};
  int at = ways->count;
  if (at >= DRVTOPK_WAYS_) return;
  for (; at > 0 && us < ways->way[at - 1].us; --at) ways->way[at] = ways->way[at - 1];
  ways->way[at] = way;
  ++ways->count;
}

// The known numbers around a value, and how far it is from the first to the second, by their logarithms.
static inline double drvtopk_neighbours_(const int64_t* known, int count, int64_t value, int* low, int* high) {
  int at = 0;
  while (at < count && known[at] <= value) ++at;
  *low = *high = at == 0 ? 0 : at - 1;
  if (at == 0 || at == count || known[at - 1] == value) return 0.0;
  *high = at;
  return log((double)value / (double)known[*low]) / log((double)known[*high] / (double)known[*low]);
}

// Times between the shapes that were measured on this device; whether they are for all that a choice needs.
static inline bool drvtopk_measured_ways_(const drvtopk_planning_* p, drvtopk_ways_* ways) {
  const drvtopk_measured* found = NULL;
  bool filtered = false;
  for (size_t i = 0; i < p->exported->measured_count && !found; ++i) {
    const drvtopk_measured* one = &p->exported->measured[i];
    if (one->sms == p->device.sms && !strcmp(one->name, p->device.name)) found = one;
  }
  if (!found) return false;
  int fewer, more, below, above;
  const double share = drvtopk_neighbours_(found->row, found->rows, p->problem.rows, &fewer, &more);
  const double part = drvtopk_neighbours_(found->length, found->lengths, p->problem.max_seq_len, &below, &above);
  for (int c = 0; c < found->choices; ++c) {
    const double* less = found->us + (c * found->rows + fewer) * found->lengths;
    const double* greater = found->us + (c * found->rows + more) * found->lengths;
    if (less[below] > 0 && less[above] > 0 && greater[below] > 0 && greater[above] > 0) {
      const double low = log(less[below]) * (1 - part) + log(less[above]) * part;
      const double high = log(greater[below]) * (1 - part) + log(greater[above]) * part;
      const int cluster = found->choice[c].route == DRVTOPK_ROUTE_PERSISTENT ? 0 : found->choice[c].cluster;
      drvtopk_add_way_(ways, cluster, exp(low * (1 - share) + high * share), DRVTOPK_REASON_MEASURED);
      filtered = filtered || cluster == 1;
    }
  }
  return filtered;
}

static inline double drvtopk_modelled_(const drvtopk_planning_* p, double fixed, int64_t blocks_of_a_row,
                                       int64_t slots) {
  const int64_t blocks = p->problem.rows * blocks_of_a_row;
  const int64_t waves = drvtopk_ceil_(blocks, drvtopk_max_(slots, 1));
  const int64_t busy = drvtopk_max_(drvtopk_min_(blocks, slots), 1);
  const double all = DRVTOPK_MODEL_DEVICE_BYTES_OF_AN_SM * p->device.sms / (double)busy;
  const double rate = all < DRVTOPK_MODEL_SM_BYTES ? all : DRVTOPK_MODEL_SM_BYTES;
  return (double)waves * (fixed + 4.0 * (double)p->problem.max_seq_len / (double)blocks_of_a_row / rate);
}

// The same by a model, for a device that was never measured: good for comparing only.
static inline void drvtopk_modelled_ways_(const drvtopk_planning_* p, drvtopk_ways_* ways) {
  static const int sizes[] = DRVTOPK_CLUSTERS;
  const drvtopk_reason reason = DRVTOPK_REASON_MODELLED;
  const int64_t sms = p->device.sms, rows = p->problem.rows;
  const double one = p->problem.max_seq_len <= DRVTOPK_MODEL_SHORT ? DRVTOPK_MODEL_SHORT_US : DRVTOPK_MODEL_FILTERED_US;
  drvtopk_add_way_(ways, 1, drvtopk_modelled_(p, one, 1, sms), reason);
  for (size_t i = 0; i < DRVTOPK_COUNT_(sizes); ++i) {
    const int64_t slots = (sizes[i] == 2 ? sms : sms * 7 / 8) / sizes[i] * sizes[i];
    if (sizes[i] > p->arch->max_cluster) continue;
    drvtopk_add_way_(ways, sizes[i], drvtopk_modelled_(p, DRVTOPK_MODEL_CLUSTERED_US, sizes[i], slots), reason);
  }
  if (rows * p->tuning.sms_to_share <= sms) {
    const int64_t blocks = sms / drvtopk_max_(rows, 1);
    drvtopk_add_way_(ways, 0, drvtopk_modelled_(p, DRVTOPK_MODEL_PERSISTENT_US, blocks, sms), reason);
  }
}

// The ways to launch, the best first. The last is one that always fits, or persistent.
static inline void drvtopk_rank_(const drvtopk_planning_* p, drvtopk_ways_* ways) {
  const drvtopk_problem* problem = &p->problem;
  drvtopk_reason last = DRVTOPK_REASON_FEW_ROWS;
  if (problem->rows * p->tuning.sms_to_share > p->device.sms) last = DRVTOPK_REASON_MANY_ROWS;
  if (p->problem.max_seq_len <= p->tuning.radix_threshold) last = DRVTOPK_REASON_SHORT_ROWS;
  ways->count = 0;
  if (p->arch->max_cluster > 1 && p->problem.max_seq_len > p->tuning.cluster_threshold && !problem->waits_never &&
      problem->rows && !drvtopk_measured_ways_(p, ways)) {
    ways->count = 0;
    drvtopk_modelled_ways_(p, ways);
  }
  drvtopk_add_way_(ways, last == DRVTOPK_REASON_FEW_ROWS ? 0 : 1, HUGE_VAL, last);
}

// Planning ----------------------------------------------------------------------------------------------------------

static inline drvtopk_rejected drvtopk_attempt_(const drvtopk_plan* made) {
  const drvtopk_kernel* kernel = made->kernel;
  const drvtopk_rejected attempt = {kernel->route,    kernel->vec_size, made->group,       made->chunk,
                                    made->smem_bytes, made->occupancy,  made->resident_cap};
  return attempt;
}

static inline drvtopk_error drvtopk_check_(const drvtopk_problem* problem, const drvtopk_device* device,
                                           const drvtopk_tuning* tuning, const drvtopk_tuning* compiled) {
  static const int sizes[] = DRVTOPK_CLUSTERS;
  const int32_t tuned[] = {tuning->radix_threshold, tuning->cluster_threshold, tuning->sms_to_share, tuning->min_chunk,
                           tuning->max_candidates};
  bool size = false, fair = tuning->radix_threshold == compiled->radix_threshold &&
                            tuning->cluster_threshold == compiled->cluster_threshold;
  for (size_t i = 0; i < DRVTOPK_COUNT_(sizes); ++i) size = size || problem->group == sizes[i];
  for (size_t i = 0; i < DRVTOPK_COUNT_(tuned); ++i) fair = fair && drvtopk_in_(tuned[i], 1, DRVTOPK_MAX_WIDTH);
  if (!drvtopk_in_(problem->rows, 0, DRVTOPK_MAX_ROWS)) return DRVTOPK_BAD_ROWS;
  if (!drvtopk_in_(problem->width, 0, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_WIDTH;
  if (!drvtopk_in_(problem->k, 1, DRVTOPK_MAX_K)) return DRVTOPK_BAD_K;
  if (!drvtopk_in_(problem->stride, 0, DRVTOPK_MAX_STRIDE / drvtopk_max_(problem->rows, 1))) return DRVTOPK_BAD_STRIDE;
  if (!drvtopk_in_(problem->offset, 0, DRVTOPK_MAX_OFFSET)) return DRVTOPK_BAD_OFFSET;
  if (!drvtopk_in_(problem->max_seq_len, 0, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_MAX_SEQ_LEN;
  if (!drvtopk_in_(problem->sm_budget, 0, DRVTOPK_MAX_ROWS)) return DRVTOPK_BAD_SM_BUDGET;
  if (!drvtopk_in_((int64_t)problem->route, DRVTOPK_ROUTE_AUTO, DRVTOPK_ROUTE_CLUSTERED)) return DRVTOPK_BAD_ROUTE;
  if (!drvtopk_in_(problem->chunk, 0, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_CHUNK;
  if (problem->group && (!size || problem->route != DRVTOPK_ROUTE_CLUSTERED)) return DRVTOPK_BAD_GROUP;
  if (!fair) return DRVTOPK_BAD_TUNING;
  if (device->sms < 1 || device->smem_optin < 1 || device->smem_per_sm < 1 || device->max_threads_per_sm < 1 ||
      device->smem_reserved < 0 || !memchr(device->name, 0, sizeof device->name) ||
      !memchr(device->arch, 0, sizeof device->arch)) {
    return DRVTOPK_BAD_DEVICE;
  }
  return DRVTOPK_OK;
}

// Checks everything and looks up what a planning needs.
static inline drvtopk_error drvtopk_begin_(drvtopk_planning_* p, const drvtopk_problem* problem,
                                           const drvtopk_device* device, const drvtopk_tuning* tuning,
                                           const drvtopk_export* exported, const drvtopk_driver* driver,
                                           drvtopk_plan* plan) {
  memset(p, 0, sizeof *p);
  memset(plan, 0, sizeof *plan);
  if (!problem || !device || !exported || !driver || !driver->occupancy) return DRVTOPK_BAD_POINTER;
  p->problem = *problem;
  p->device = *device;
  p->tuning = tuning ? *tuning : exported->tuning;
  p->exported = exported;
  p->driver = driver;
  const drvtopk_error error = drvtopk_check_(problem, device, &p->tuning, &exported->tuning);
  if (error) return error;
  int64_t longest = problem->max_seq_len > 0;
  while (longest < problem->max_seq_len) longest *= 2;
  p->problem.max_seq_len = drvtopk_min_(longest, problem->width);
  if (problem->sm_budget) p->device.sms = (int32_t)drvtopk_min_(device->sms, problem->sm_budget);
  for (size_t i = 0; i < exported->arch_count && !p->arch; ++i) {
    if (!strcmp(exported->archs[i].arch, device->arch)) p->arch = &exported->archs[i];
  }
  if (!p->arch) return DRVTOPK_ARCH_NOT_EXPORTED;
  for (size_t i = 0; i < exported->kernel_count && !p->like; ++i) {
    if (drvtopk_is_like_(p, &exported->kernels[i])) p->like = &exported->kernels[i];
  }
  return p->like ? DRVTOPK_OK : DRVTOPK_K_NOT_EXPORTED;
}

// The clusters of a named route, the largest first.
static inline drvtopk_error drvtopk_clusters_(drvtopk_planning_* p, drvtopk_plan* plan) {
  static const int sizes[] = DRVTOPK_CLUSTERS;
  if (p->problem.waits_never) {
    plan->reason = DRVTOPK_REASON_WAITS_FORBIDDEN;
    return DRVTOPK_DOES_NOT_FIT;
  }
  for (size_t i = DRVTOPK_COUNT_(sizes); i > 0; --i) {
    if (p->problem.group && p->problem.group != sizes[i - 1]) continue;
    const drvtopk_error error = drvtopk_clustered_(p, sizes[i - 1], DRVTOPK_REASON_ASKED, plan);
    if (error != DRVTOPK_DOES_NOT_FIT && error != DRVTOPK_NOT_EXPORTED) return error;
  }
  return p->missing.count ? DRVTOPK_NOT_EXPORTED : DRVTOPK_DOES_NOT_FIT;
}

// One block per row, and none waits, for a launch that was rejected.
static inline drvtopk_error drvtopk_fallback_(drvtopk_planning_* p, drvtopk_reason reason, drvtopk_rejected rejected,
                                              drvtopk_plan* plan) {
  const drvtopk_error error = drvtopk_clustered_(p, 1, reason, plan);
  plan->fallback = !error;
  if (!error) plan->rejected = rejected;
  return error;
}

// drvtopk_make_plan, after everything was checked.
static inline drvtopk_error drvtopk_plan_(drvtopk_planning_* p, drvtopk_plan* plan) {
  const drvtopk_problem* problem = &p->problem;
  const bool choose = problem->route == DRVTOPK_ROUTE_AUTO && !problem->chunk;
  drvtopk_ways_ ways;
  drvtopk_error error = DRVTOPK_DOES_NOT_FIT;  // of persistent, as the next two
  drvtopk_rejected rejected;
  bool tried = false;
  if (problem->route == DRVTOPK_ROUTE_FILTERED) return drvtopk_clustered_(p, 1, DRVTOPK_REASON_ASKED, plan);
  if (problem->route == DRVTOPK_ROUTE_CLUSTERED) return drvtopk_clusters_(p, plan);
  memset(&rejected, 0, sizeof rejected);
  ways.count = 0;
  if (choose) drvtopk_rank_(p, &ways);
  for (int i = 0; i < ways.count; ++i) {
    const drvtopk_way_ way = ways.way[i];
    if (way.cluster > 0) {
      const drvtopk_error made = way.cluster == 1 && tried
                                     ? drvtopk_fallback_(p, DRVTOPK_REASON_DOES_NOT_FIT, rejected, plan)
                                     : drvtopk_clustered_(p, way.cluster, way.reason, plan);
      if (made != DRVTOPK_NOT_EXPORTED && (made != DRVTOPK_DOES_NOT_FIT || way.cluster == 1)) return made;
    } else if (!tried) {
      error = drvtopk_persistent_(p, 0, way.reason, plan);
      rejected = plan->rejected;
      tried = true;
      if (error != DRVTOPK_DOES_NOT_FIT && error != DRVTOPK_NOT_EXPORTED) break;
    }
  }
  if (!tried) {
    error = drvtopk_persistent_(p, problem->chunk, choose ? DRVTOPK_REASON_FEW_ROWS : DRVTOPK_REASON_ASKED, plan);
    rejected = plan->rejected;
  }
  if (error == DRVTOPK_QUESTION_FAILED || (!error && !(plan->cooperative && problem->waits_never))) return error;
  const drvtopk_reason reason = error ? DRVTOPK_REASON_DOES_NOT_FIT : DRVTOPK_REASON_WAITS_FORBIDDEN;
  if (!error) rejected = drvtopk_attempt_(plan);
  if (problem->route != DRVTOPK_ROUTE_PERSISTENT) return drvtopk_fallback_(p, reason, rejected, plan);
  memset(plan, 0, sizeof *plan);
  plan->reason = reason;
  plan->rejected = rejected;
  return error ? error : DRVTOPK_DOES_NOT_FIT;
}

static inline drvtopk_error drvtopk_end_(const drvtopk_planning_* p, drvtopk_error error, drvtopk_plan* plan) {
  if (error && error != DRVTOPK_DOES_NOT_FIT) plan->reason = DRVTOPK_REASON_NONE;
  plan->missing = p->missing;
  return error;
}

// Plans `problem` on `device` with the kernels of `exported`: the plan that Python makes of the same inputs. A kernel
// that would be best and is not exported counts as one that does not fit, and the next is taken; `missing` then says
// which. `tuning` may be null: the export's own. Returns DRVTOPK_OK with *plan filled; or, with plan->kernel null,
// DRVTOPK_DOES_NOT_FIT (a named route, or a device too small for any; plan->reason and plan->rejected),
// DRVTOPK_NOT_EXPORTED (plan->missing), DRVTOPK_ARCH_NOT_EXPORTED, DRVTOPK_K_NOT_EXPORTED, DRVTOPK_QUESTION_FAILED, or a
// DRVTOPK_BAD_ that names the argument.
static inline drvtopk_error drvtopk_make_plan(const drvtopk_problem* problem, const drvtopk_device* device,
                                              const drvtopk_tuning* tuning, const drvtopk_export* exported,
                                              const drvtopk_driver* driver, drvtopk_plan* plan) {
  drvtopk_planning_ p;
  if (!plan) return DRVTOPK_BAD_POINTER;
  const drvtopk_error error = drvtopk_begin_(&p, problem, device, tuning, exported, driver, plan);
  return drvtopk_end_(&p, error ? error : drvtopk_plan_(&p, plan), plan);
}

// Whether the driver's answer to a launch (a CUresult) says that blocks which wait for each other can never be resident
// together: 720 (COOPERATIVE_LAUNCH_TOO_LARGE), of clusters 912 (INVALID_CLUSTER_SIZE), of cooperative grids 801
// (NOT_SUPPORTED). Nothing was launched then, and the plan of `drvtopk_after_refusal` can be, from then on.
static inline bool drvtopk_is_refusal(const drvtopk_plan* plan, int answer) {
  const bool clustered = plan->kernel && plan->kernel->route == DRVTOPK_ROUTE_CLUSTERED;
  return clustered ? answer == 720 || answer == 912 : plan->cooperative && (answer == 720 || answer == 801);
}

// The fallback for a plan, cooperative or clustered, that the driver would not launch (`drvtopk_is_refusal`): one block
// per row, and none waits. `plan` may be `refused` itself. Returns as drvtopk_make_plan does, and DRVTOPK_BAD_PLAN if
// `refused` is no plan.
static inline drvtopk_error drvtopk_after_refusal(const drvtopk_plan* refused, const drvtopk_export* exported,
                                                  const drvtopk_driver* driver, drvtopk_plan* plan) {
  drvtopk_planning_ p;
  if (!plan || !refused) return DRVTOPK_BAD_POINTER;
  if (!refused->kernel) return DRVTOPK_BAD_PLAN;
  const drvtopk_plan before = *refused;
  drvtopk_error error = drvtopk_begin_(&p, &before.problem, &before.device, &before.tuning, exported, driver, plan);
  if (!error) error = drvtopk_fallback_(&p, DRVTOPK_REASON_REFUSED, drvtopk_attempt_(&before), plan);
  return drvtopk_end_(&p, error, plan);
}

// `needed` 1: not null; 0: perhaps null; -1: null.
static inline bool drvtopk_good_(uint64_t address, int64_t alignment, int needed) {
  return address % (uint64_t)alignment == 0 && (address ? needed >= 0 : needed <= 0);
}

// Checks the addresses and strides that a host has set in a parameter block (all others 0), and sets the rest. They
// alone differ between launches of a plan. A plain kernel reads the front only: pass `params` in the kernelParams of
// every launch. Returns DRVTOPK_OK, or the DRVTOPK_BAD_ that names the field; the block is then not to be launched.
// Rows that are 0 need no address. A stride of 0 becomes k.
static inline drvtopk_error drvtopk_fill_params(const drvtopk_plan* plan, drvtopk_extended_params* params) {
  if (!plan || !params) return DRVTOPK_BAD_POINTER;
  if (!plan->kernel) return DRVTOPK_BAD_PLAN;
  const drvtopk_problem* problem = &plan->problem;
  const drvtopk_options* options = &plan->kernel->options;
  const int64_t item = plan->kernel->item_bytes, index = plan->kernel->index_bytes, vec = plan->kernel->vec_size;
  drvtopk_params* plain = &params->plain;
  if (!plain->out_stride) plain->out_stride = problem->k;
  if (!params->values_stride) params->values_stride = problem->k;
  if (!options->page_table || !problem->rows) {
    params->page_table_stride = 0;
    params->page_size = params->rows_per_table = 1;  // rows are divided by both
  }
  if (problem->rows > 1 && plain->out_stride < problem->k) return DRVTOPK_BAD_OUT_STRIDE;
  if (problem->rows > 0) {
    const bool waits = plan->workspace_bytes > 0;
    if (!drvtopk_good_(plain->logits, item * vec, problem->width > 0)) return DRVTOPK_BAD_LOGITS;
    if (!drvtopk_good_(plain->lengths, 4, 0)) return DRVTOPK_BAD_LENGTHS;
    if (!drvtopk_good_(plain->out, index, 1)) return DRVTOPK_BAD_OUT;
    if (waits && !drvtopk_good_(plain->workspace, DRVTOPK_WORKSPACE_ALIGNMENT, 1)) return DRVTOPK_BAD_WORKSPACE;
    if (!drvtopk_good_(params->values, item, options->values ? 1 : -1)) return DRVTOPK_BAD_VALUES;
    if (!drvtopk_good_(params->row_starts, 4, options->row_starts ? 1 : -1)) return DRVTOPK_BAD_ROW_STARTS;
    if (!drvtopk_good_(params->page_table, 4, options->page_table ? 1 : -1)) return DRVTOPK_BAD_PAGE_TABLE;
    if (options->values && problem->rows > 1 && params->values_stride < problem->k) return DRVTOPK_BAD_VALUES_STRIDE;
    if (!drvtopk_in_(params->page_size, 1, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_PAGE_SIZE;
    if (!drvtopk_in_(params->rows_per_table, 1, problem->rows)) return DRVTOPK_BAD_ROWS_PER_TABLE;
    if (params->page_table_stride < 0) return DRVTOPK_BAD_PAGE_TABLE_STRIDE;
  }
  plain->logits_stride = problem->stride;
  plain->rows = (uint32_t)problem->rows;
  plain->width = (uint32_t)problem->width;
  plain->group = plan->group;
  plain->groups = plan->groups;
  plain->chunk = plan->chunk;
  plain->candidates = plan->candidates;
  plain->cooperative = plan->cooperative ? 1 : 0;
  plain->reserved = 0;
  return DRVTOPK_OK;
}

#endif  // DRVTOPK_H
