// drvtopk in a C99 or C++17 host: plan and launch exported kernels with the CUDA driver API and nothing else.
//
// Include "drvtopk_kernels.h", which every export writes and which includes this. Link with -lm. Nothing here
// allocates, calls CUDA or keeps state: every function is pure but for the callbacks it is given, and safe to call from
// several threads. A host
//
//   1. fills a `drvtopk_device` from the driver's attributes,
//   2. answers `drvtopk_driver`'s two questions with the driver's own answers for the very function it will launch,
//   3. calls `drvtopk_make_plan`: the same plan as Python's for the same inputs,
//   4. lends each launch `plan.workspace_bytes` bytes, calls `drvtopk_fill_params`, and launches `plan.kernel` with
//      plan.grid x plan.block threads and plan.smem_bytes of dynamic shared memory (no launch where plan.grid is 0):
//        plan.cooperative  cuLaunchCooperativeKernel, and nothing else: its blocks wait for each other.
//        plan.pdl          cuLaunchKernelEx with CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 1
//        else              cuLaunchKernel. The size of a cluster is compiled in.
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

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if defined(__cplusplus)
#define DRVTOPK_STATIC_ASSERT_(what, name) static_assert(what, #name)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define DRVTOPK_STATIC_ASSERT_(what, name) _Static_assert(what, #name)
#else
#define DRVTOPK_STATIC_ASSERT_(what, name) typedef char drvtopk_assert_##name##_[(what) ? 1 : -1]
#endif

#if defined(__GNUC__)
#define DRVTOPK_FORMAT_ __attribute__((format(printf, 2, 3)))
#else
#define DRVTOPK_FORMAT_
#endif

#define DRVTOPK_DIGITS_(number) #number
#define DRVTOPK_TEXT_(number) DRVTOPK_DIGITS_(number)

enum { DRVTOPK_WHY_SIZE = 768, DRVTOPK_NAME_SIZE = 256, DRVTOPK_ARCH_SIZE = 16 };

// What a kernel is told ---------------------------------------------------------------------------------------------

// The parameter block of a plain kernel: `Params` of params.cuh. Filled by drvtopk_fill_params.
typedef struct drvtopk_params {
  uint64_t logits;        // device address
  uint64_t lengths;       // device address of int32[rows], or 0: every row is `width` long
  uint64_t out;           // device address
  uint64_t workspace;     // device address, or 0 where nothing waits
  int64_t logits_stride;  // elements
  int64_t out_stride;     // elements
  uint32_t rows;
  uint32_t width;        // elements
  uint32_t group;        // blocks that share a row
  uint32_t groups;       // rows in flight
  uint32_t chunk;        // elements
  uint32_t candidates;   // keys
  uint32_t cooperative;  // 0 or 1
  uint32_t reserved;     // 0
} drvtopk_params;

// That of a kernel whose options need more arrays. A plain kernel reads its front only, so every launch may pass this.
typedef struct drvtopk_extended_params {
  drvtopk_params plain;
  uint64_t values;            // device address
  uint64_t row_starts;        // device address of int32[rows]
  uint64_t page_table;        // device address of int32
  int64_t values_stride;      // elements
  int64_t page_table_stride;  // elements
  uint32_t page_size;         // indices
  uint32_t rows_per_table;    // rows
} drvtopk_extended_params;

DRVTOPK_STATIC_ASSERT_(sizeof(drvtopk_params) == 80, params_size);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, logits) == 0, logits);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, lengths) == 8, lengths);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, out) == 16, out);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, workspace) == 24, workspace);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, logits_stride) == 32, logits_stride);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, out_stride) == 40, out_stride);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, rows) == 48, rows);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, width) == 52, width);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, group) == 56, group);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, groups) == 60, groups);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, chunk) == 64, chunk);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, candidates) == 68, candidates);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, cooperative) == 72, cooperative);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_params, reserved) == 76, reserved);
DRVTOPK_STATIC_ASSERT_(sizeof(drvtopk_extended_params) == 128, extended_params_size);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, values) == 80, values);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, row_starts) == 88, row_starts);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, page_table) == 96, page_table);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, values_stride) == 104, values_stride);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, page_table_stride) == 112, page_table_stride);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, page_size) == 120, page_size);
DRVTOPK_STATIC_ASSERT_(offsetof(drvtopk_extended_params, rows_per_table) == 124, rows_per_table);

// What is asked for -------------------------------------------------------------------------------------------------

typedef enum drvtopk_route {
  DRVTOPK_ROUTE_AUTO,
  DRVTOPK_ROUTE_PERSISTENT,
  DRVTOPK_ROUTE_FILTERED,
  DRVTOPK_ROUTE_CLUSTERED
} drvtopk_route;
typedef enum drvtopk_dtype { DRVTOPK_DTYPE_FLOAT32, DRVTOPK_DTYPE_BFLOAT16, DRVTOPK_DTYPE_FLOAT16 } drvtopk_dtype;
typedef enum drvtopk_index_dtype { DRVTOPK_INDEX_DTYPE_INT32, DRVTOPK_INDEX_DTYPE_INT64 } drvtopk_index_dtype;
typedef enum drvtopk_order { DRVTOPK_ORDER_NONE, DRVTOPK_ORDER_INDEX, DRVTOPK_ORDER_VALUE } drvtopk_order;
typedef enum drvtopk_tie_break {
  DRVTOPK_TIE_BREAK_ANY,
  DRVTOPK_TIE_BREAK_SMALLEST,
  DRVTOPK_TIE_BREAK_LARGEST
} drvtopk_tie_break;
typedef enum drvtopk_nan { DRVTOPK_NAN_LOWEST, DRVTOPK_NAN_HIGHEST } drvtopk_nan;

// What a caller may ask for beyond k; all zeros is the plain selection.
typedef struct drvtopk_options {
  drvtopk_dtype dtype;              // of the logits
  drvtopk_index_dtype index_dtype;  // of the output
  drvtopk_order order;              // of a row's members
  drvtopk_tie_break tie_break;      // which of equal values are taken
  drvtopk_nan nan;                  // below -inf or above +inf
  bool values;                      // the members' values too
  bool row_starts;                  // each row's window begins at an element of its own
  bool page_table;                  // the output is what a page table makes of the indices
} drvtopk_options;

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

// When a route pays. The first two are compiled into the kernels, and have to be those of the export.
typedef struct drvtopk_tuning {
  int32_t radix_threshold;    // elements; rows up to this length belong to one block
  int32_t cluster_threshold;  // elements; rows longer than this are shared by the blocks of a cluster
  int32_t sms_to_share;       // SMs for each row from which on sharing long rows is faster than a block reading each
  int32_t min_chunk;          // elements; a group is not split finer
  int32_t max_candidates;     // keys that one block keeps in shared memory
} drvtopk_tuning;

// What was exported -------------------------------------------------------------------------------------------------

// One kernel: a cubin that holds one function.
typedef struct drvtopk_kernel {
  drvtopk_route route;
  int32_t k;
  int32_t vec_size;   // elements of a load
  int32_t residency;  // blocks that an SM shall hold at once
  int32_t cluster;    // blocks of a hardware cluster; 1: none. Above 8 the function needs
                      // CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED before anything is asked of it
  bool pdl;           // waits for its predecessor itself
  drvtopk_options options;
  int32_t threads;            // of a block
  int32_t widest;             // elements of the widest load that these options have
  int32_t item_bytes;         // of a logit, and of a value
  int32_t index_bytes;        // of an index of the output
  int32_t params_bytes;       // of its parameter block
  int32_t fixed_smem_bytes;   // of a block, before its chunk or candidates
  int32_t static_smem_bytes;  // of a block, beside the dynamic shared memory
  int32_t candidate_bytes;    // of shared memory for each candidate
  int32_t sorted_members;     // members of a row in the workspace of a group, 4 bytes each
  int32_t registers;          // of a thread
  const char* suffix;         // what the options add to the route's name
  const char* name;           // "clustered<1024,4,x8>"
  const char* entry;          // of the function in the cubin
  const char* arch;           // "sm_90a"
  const char* file;           // the cubin's name in the export's folder
  const char* sha256;         // of the cubin, hexadecimal
} drvtopk_kernel;

// What an architecture has.
typedef struct drvtopk_arch {
  const char* arch;
  int32_t max_cluster;  // blocks of its largest cluster; 1: none
  bool has_pdl;
} drvtopk_arch;

// A way to launch, as times are kept for it.
typedef struct drvtopk_choice {
  drvtopk_route route;
  int32_t cluster;  // blocks; 1: none
} drvtopk_choice;

// Times measured on one device.
typedef struct drvtopk_measured {
  const char* name;  // of the device
  int32_t sms;
  int32_t choices, rows, lengths;  // how many of each
  const drvtopk_choice* choice;
  const int64_t* row;     // ascending
  const int64_t* length;  // elements, ascending
  const double* us;       // microseconds a launch [choices][rows][lengths]; 0: not measured
} drvtopk_measured;

// All of it: `drvtopk_exported` of drvtopk_kernels.h.
typedef struct drvtopk_export {
  const char* version;
  drvtopk_tuning tuning;  // that the kernels were compiled with
  const drvtopk_kernel* kernels;
  size_t kernel_count;
  const drvtopk_arch* archs;
  size_t arch_count;
  const drvtopk_measured* measured;
  size_t measured_count;
} drvtopk_export;

// What is planned ---------------------------------------------------------------------------------------------------

// Asked of the driver. A negative answer says that asking failed, and ends the planning.
typedef int (*drvtopk_question)(void* user, const drvtopk_kernel* kernel, uint32_t smem_bytes);

// The driver's answers for a kernel with so much dynamic shared memory. The function's limit
// (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) has to be raised to it before, or the driver answers 0, and must
// not be lowered afterwards. Each is asked at most once of a kernel in one planning.
typedef struct drvtopk_driver {
  void* user;                  // handed to both
  drvtopk_question occupancy;  // cuOccupancyMaxActiveBlocksPerMultiprocessor with kernel->threads
  drvtopk_question clusters;   // cuOccupancyMaxActiveClusters with kernel->cluster, and the stream's handle where it is
                               // one of a green context; 0 where that answers 912 (INVALID_CLUSTER_SIZE); may be null
                               // where no kernel with clusters is exported
} drvtopk_driver;

// The launch that did not fit or was refused, where a plan is its fallback.
typedef struct drvtopk_rejected {
  drvtopk_route route;
  int32_t vec_size;
  int64_t group;
  int64_t chunk;         // elements
  int64_t smem_bytes;    // 0: the kernel is not exported
  int64_t occupancy;     // blocks an SM
  int64_t resident_cap;  // blocks
} drvtopk_rejected;

// One launch, as plain data. grid == groups * group; a cooperative grid never exceeds resident_cap.
typedef struct drvtopk_plan {
  const drvtopk_kernel* kernel;  // to launch
  drvtopk_route route;
  int32_t k, vec_size, residency;
  int64_t rows;
  int64_t width;         // elements
  int64_t stride;        // elements
  int64_t max_seq_len;   // elements
  uint32_t grid;         // blocks; 0: there is nothing to launch
  uint32_t block;        // threads
  uint32_t group;        // blocks that share one row
  uint32_t groups;       // rows in flight
  uint32_t chunk;        // elements of a row that one block of the group holds (the whole row where no block waits)
  uint32_t candidates;   // keys of one threshold bin that a block can keep in shared memory
  uint32_t smem_bytes;   // dynamic shared memory of one block
  int32_t sms;           // of the device, or of the budget
  int32_t smem_optin;    // bytes
  int32_t occupancy;     // resident blocks per SM of this very kernel with this very shared memory
  int64_t resident_cap;  // sms x occupancy
  int64_t headroom;      // resident blocks that a cooperative plan wants to leave to others
  int64_t workspace_bytes;
  bool needs_cooperation;
  bool headroom_kept;
  bool cooperative;  // goes out by cuLaunchCooperativeKernel only
  bool pdl;
  bool fallback;              // whether `rejected` says of what
  drvtopk_rejected rejected;  // figures of the launch that did not fit
  drvtopk_tuning tuning;
  char why[DRVTOPK_WHY_SIZE];  // one sentence; where planning failed, the constraint or the kernels that are missing
} drvtopk_plan;

// Addresses and strides of one launch. All zeros, but for what is there.
typedef struct drvtopk_arrays {
  uint64_t logits;            // (rows, width) of the options' dtype, rows plan.stride elements apart
  uint64_t lengths;           // int32[rows], or 0: every row is `width` long
  uint64_t out;               // (rows, k) of the options' index dtype
  uint64_t workspace;         // plan.workspace_bytes bytes, aligned to DRVTOPK_WORKSPACE_ALIGNMENT, any contents; not
                              // shared with a launch that may run at the same time
  uint64_t values;            // (rows, k) of the logits' dtype, with the option `values` only
  uint64_t row_starts;        // int32[rows], with the option `row_starts` only
  uint64_t page_table;        // int32, with the option `page_table` only
  int64_t out_stride;         // elements; 0: k
  int64_t values_stride;      // elements; 0: k
  int64_t page_table_stride;  // elements
  int64_t page_size;          // indices, from 1 on
  int64_t rows_per_table;     // row r reads row r / rows_per_table of the page table; 1..rows
} drvtopk_arrays;

typedef enum drvtopk_error {
  DRVTOPK_OK,
  DRVTOPK_BAD_ROWS,
  DRVTOPK_BAD_WIDTH,
  DRVTOPK_BAD_K,
  DRVTOPK_BAD_STRIDE,
  DRVTOPK_BAD_OFFSET,
  DRVTOPK_BAD_MAX_SEQ_LEN,
  DRVTOPK_BAD_SM_BUDGET,
  DRVTOPK_BAD_ROUTE,
  DRVTOPK_BAD_CHUNK,
  DRVTOPK_BAD_GROUP,
  DRVTOPK_BAD_TUNING,
  DRVTOPK_BAD_DEVICE,
  DRVTOPK_BAD_POINTER,
  DRVTOPK_BAD_PLAN,
  DRVTOPK_BAD_LOGITS,
  DRVTOPK_BAD_LENGTHS,
  DRVTOPK_BAD_OUT,
  DRVTOPK_BAD_WORKSPACE,
  DRVTOPK_BAD_OUT_STRIDE,
  DRVTOPK_BAD_VALUES,
  DRVTOPK_BAD_VALUES_STRIDE,
  DRVTOPK_BAD_ROW_STARTS,
  DRVTOPK_BAD_PAGE_TABLE,
  DRVTOPK_BAD_PAGE_TABLE_STRIDE,
  DRVTOPK_BAD_PAGE_SIZE,
  DRVTOPK_BAD_ROWS_PER_TABLE,
  DRVTOPK_DOES_NOT_FIT,
  DRVTOPK_NOT_EXPORTED,
  DRVTOPK_QUESTION_FAILED
} drvtopk_error;

// What an error means, in words: "rows: allowed is 0..2147483647". Never null.
static inline const char* drvtopk_error_text(drvtopk_error error) {
  switch (error) {
    case DRVTOPK_OK:
      return "no error";
    case DRVTOPK_BAD_ROWS:
      return "rows: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_ROWS);
    case DRVTOPK_BAD_WIDTH:
      return "width: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " elements";
    case DRVTOPK_BAD_K:
      return "k: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_K);
    case DRVTOPK_BAD_STRIDE:
      return "stride: allowed is 0 to " DRVTOPK_TEXT_(DRVTOPK_MAX_STRIDE) " / rows elements";
    case DRVTOPK_BAD_OFFSET:
      return "offset: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_OFFSET) " elements";
    case DRVTOPK_BAD_MAX_SEQ_LEN:
      return "max_seq_len: allowed is 0.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " elements";
    case DRVTOPK_BAD_SM_BUDGET:
      return "sm_budget: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_ROWS) ", or 0: the whole device";
    case DRVTOPK_BAD_ROUTE:
      return "route: allowed is a DRVTOPK_ROUTE_";
    case DRVTOPK_BAD_CHUNK:
      return "chunk: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " elements, or 0: the planner's choice";
    case DRVTOPK_BAD_GROUP:
      return "group: allowed is a size of DRVTOPK_CLUSTERS with the route clustered, or 0: the planner's choice";
    case DRVTOPK_BAD_TUNING:
      return "tuning: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH) " and, for what is compiled in, the export's";
    case DRVTOPK_BAD_DEVICE:
      return "device: allowed are limits of at least 1 and texts that end";
    case DRVTOPK_BAD_POINTER:
      return "a pointer that is needed is null";
    case DRVTOPK_BAD_PLAN:
      return "plan: allowed is what a planner made and found no fault with";
    case DRVTOPK_BAD_LOGITS:
      return "logits: allowed is a device address aligned to the plan's loads, vec_size elements";
    case DRVTOPK_BAD_LENGTHS:
      return "lengths: allowed is a device address aligned to 4 bytes, or 0";
    case DRVTOPK_BAD_OUT:
      return "out: allowed is a device address aligned to an index";
    case DRVTOPK_BAD_WORKSPACE:
      return "workspace: allowed is a device address aligned to " DRVTOPK_TEXT_(DRVTOPK_WORKSPACE_ALIGNMENT) " bytes";
    case DRVTOPK_BAD_OUT_STRIDE:
      return "out_stride: allowed is at least k elements, so that rows do not overlap";
    case DRVTOPK_BAD_VALUES:
      return "values: allowed is a device address aligned to a logit, and 0 without the option";
    case DRVTOPK_BAD_VALUES_STRIDE:
      return "values_stride: allowed is at least k elements";
    case DRVTOPK_BAD_ROW_STARTS:
      return "row_starts: allowed is a device address aligned to 4 bytes, and 0 without the option";
    case DRVTOPK_BAD_PAGE_TABLE:
      return "page_table: allowed is a device address aligned to 4 bytes, and 0 without the option";
    case DRVTOPK_BAD_PAGE_TABLE_STRIDE:
      return "page_table_stride: allowed is at least 0 elements";
    case DRVTOPK_BAD_PAGE_SIZE:
      return "page_size: allowed is 1.." DRVTOPK_TEXT_(DRVTOPK_MAX_WIDTH);
    case DRVTOPK_BAD_ROWS_PER_TABLE:
      return "rows_per_table: allowed is 1..rows";
    case DRVTOPK_DOES_NOT_FIT:
      return "the route cannot run this problem on this device";
    case DRVTOPK_NOT_EXPORTED:
      return "no exported kernel can run this problem on this device";
    case DRVTOPK_QUESTION_FAILED:
      return "a question to the driver failed, or was answered with nonsense";
  }
  return "unknown error";
}

// A route's name, as Python has it: "persistent". Never null.
static inline const char* drvtopk_route_name(drvtopk_route route) {
  switch (route) {
    case DRVTOPK_ROUTE_AUTO:
      return "auto";
    case DRVTOPK_ROUTE_PERSISTENT:
      return "persistent";
    case DRVTOPK_ROUTE_FILTERED:
      return "filtered";
    case DRVTOPK_ROUTE_CLUSTERED:
      return "clustered";
  }
  return "unknown";
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
  const drvtopk_problem* problem;
  drvtopk_device device;  // with the budget's SMs
  const drvtopk_tuning* tuning;
  const drvtopk_export* exported;
  const drvtopk_driver* driver;
  const drvtopk_arch* arch;
  const drvtopk_kernel* like;      // any kernel of this k and these options: their sizes are the same for all routes
  int64_t longest;                 // elements: the longest row that the hint lets us expect
  bool limited;                    // by a budget
  char missing[DRVTOPK_WHY_SIZE];  // names of kernels that were wanted and are not exported
} drvtopk_planning_;

// Appends to a text of DRVTOPK_WHY_SIZE bytes, and cuts off what is too much.
static inline void DRVTOPK_FORMAT_ drvtopk_say_(char* text, const char* format, ...) {
  const size_t length = strlen(text);
  va_list values;
  va_start(values, format);
  (void)vsnprintf(text + length, DRVTOPK_WHY_SIZE - length, format, values);
  va_end(values);
}

static inline int64_t drvtopk_min_(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t drvtopk_max_(int64_t a, int64_t b) { return a > b ? a : b; }
// Rounded down, also below 0; `by` is positive.
static inline int64_t drvtopk_floor_(int64_t value, int64_t by) { return value / by - (value % by < 0 ? 1 : 0); }
// Rounded up; `value` is not negative.
static inline int64_t drvtopk_ceil_(int64_t value, int64_t by) { return value / by + (value % by > 0 ? 1 : 0); }
static inline int64_t drvtopk_align_(int64_t value, int64_t to) { return drvtopk_ceil_(value, to) * to; }

static inline bool drvtopk_same_options_(const drvtopk_options* a, const drvtopk_options* b) {
  return a->dtype == b->dtype && a->index_dtype == b->index_dtype && a->order == b->order &&
         a->tie_break == b->tie_break && a->nan == b->nan && a->values == b->values && a->row_starts == b->row_starts &&
         a->page_table == b->page_table;
}

// The instantiation, or null, which is remembered as missing.
static inline const drvtopk_kernel* drvtopk_kernel_of_(drvtopk_planning_* p, drvtopk_route route, int64_t vec_size,
                                                       int residency, int cluster, bool pdl) {
  char name[DRVTOPK_WHY_SIZE];
  size_t i;
  for (i = 0; i < p->exported->kernel_count; ++i) {
    const drvtopk_kernel* kernel = &p->exported->kernels[i];
    if (kernel->route == route && kernel->k == p->problem->k && kernel->vec_size == vec_size &&
        kernel->residency == residency && kernel->cluster == cluster && kernel->pdl == pdl &&
        drvtopk_same_options_(&kernel->options, &p->problem->options) && !strcmp(kernel->arch, p->arch->arch)) {
      return kernel;
    }
  }
  name[0] = '\0';
  drvtopk_say_(name, "%s%s<%" PRId64 ",%" PRId64, drvtopk_route_name(route), p->like->suffix, p->problem->k, vec_size);
  if (cluster > 1) drvtopk_say_(name, ",x%d", cluster);
  drvtopk_say_(name, "%s%s>", residency > 1 ? "" : ",alone", pdl ? ",pdl" : "");
  if (!strstr(p->missing, name)) drvtopk_say_(p->missing, "%s%s", p->missing[0] ? ", " : "", name);
  return NULL;
}

// The widest load, in elements, that the base address, the row stride and every chunk start allow. A single row has no
// stride.
static inline int64_t drvtopk_vec_size_(const drvtopk_planning_* p, int64_t chunk) {
  const int64_t step = p->problem->options.row_starts ? 0 : chunk;
  const int64_t stride = p->problem->rows > 1 ? p->problem->stride : 0;
  int64_t vec = p->like->widest;
  while (vec > 1 && (p->problem->offset % vec || stride % vec || step % vec)) vec /= 2;
  return vec;
}

static inline int drvtopk_threads_(drvtopk_route route, int residency) {
  const bool narrow = route == DRVTOPK_ROUTE_CLUSTERED || (route == DRVTOPK_ROUTE_FILTERED && residency > 1);
  return narrow ? DRVTOPK_NARROW_THREADS : DRVTOPK_THREADS;
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
  const int64_t k = p->problem->k, fixed = p->like->fixed_smem_bytes, most = p->tuning->max_candidates;
  const int64_t each = drvtopk_candidate_bytes_(cluster);
  const int threads = drvtopk_threads_(route, residency);
  const int64_t room = p->device.smem_optin - fixed;  // with an SM to itself
  int64_t fit = drvtopk_min_(most, drvtopk_floor_(drvtopk_smem_budget_(&p->device, threads) - fixed, each));
  if (cluster > 1 && (residency == 1 || fit < 2 * k)) {
    const int64_t wanted = drvtopk_min_(most, drvtopk_max_(6144, 4 * k));
    fit = drvtopk_max_(fit, drvtopk_min_(wanted, drvtopk_floor_(room, each)));
  } else if (threads < DRVTOPK_THREADS && fit < k) {  // rather one block on an SM than too little room
    fit = drvtopk_min_(most, drvtopk_floor_(room, each));
  }
  return drvtopk_max_(0, fit);
}

// Elements one block holds: few rows spread over all SMs, many rows take as few blocks each as memory allows.
static inline int64_t drvtopk_chunk_(const drvtopk_planning_* p) {
  const int64_t step = p->like->widest, rows = drvtopk_max_(p->problem->rows, 1);
  const int64_t room = drvtopk_smem_budget_(&p->device, DRVTOPK_THREADS) - p->like->fixed_smem_bytes;
  const int64_t largest = drvtopk_max_(step, drvtopk_floor_(drvtopk_floor_(room, 4), step) * step);
  const int64_t blocks_per_sm = drvtopk_max_(1, p->device.max_threads_per_sm / DRVTOPK_THREADS);
  const int64_t courtesy = blocks_per_sm > 1 ? p->device.sms : 1;
  const int64_t blocks_per_row = drvtopk_max_(1, (p->device.sms * blocks_per_sm - courtesy) / rows);
  const int64_t even = drvtopk_align_(drvtopk_ceil_(p->problem->width, blocks_per_row), step);
  const int64_t least = drvtopk_min_(drvtopk_align_(p->tuning->min_chunk, step), largest);
  return drvtopk_max_(drvtopk_min_(even, largest), least);
}

// Workspace of one group: barrier line, rotating histograms, two handshake words a block, members to sort.
static inline int64_t drvtopk_group_state_bytes_(const drvtopk_kernel* kernel, int64_t group) {
  const int64_t words = DRVTOPK_ROUNDS * DRVTOPK_ROUND_WORDS + 2 * group + kernel->sorted_members;
  return drvtopk_align_(DRVTOPK_WORKSPACE_ALIGNMENT + 4 * words, DRVTOPK_WORKSPACE_ALIGNMENT);
}

// Resident blocks per SM. What no block may opt in to is not asked for: the limit could not be raised to it.
static inline drvtopk_error drvtopk_occupancy_(const drvtopk_planning_* p, const drvtopk_kernel* kernel, int64_t smem,
                                               int64_t* answer) {
  *answer = 0;
  if (kernel->static_smem_bytes + smem <= p->device.smem_optin) {
    *answer = p->driver->occupancy(p->driver->user, kernel, (uint32_t)smem);
  }
  return *answer < 0 || *answer * p->device.sms > DRVTOPK_MAX_ROWS ? DRVTOPK_QUESTION_FAILED : DRVTOPK_OK;
}

// What all plans of a problem have in common.
static inline void drvtopk_start_(const drvtopk_planning_* p, const drvtopk_kernel* kernel, int64_t resident,
                                  drvtopk_plan* plan) {
  memset(plan, 0, sizeof *plan);
  plan->kernel = kernel;
  plan->route = kernel->route;
  plan->k = kernel->k;
  plan->vec_size = kernel->vec_size;
  plan->residency = kernel->residency;
  plan->pdl = kernel->pdl;
  plan->block = (uint32_t)kernel->threads;
  plan->rows = p->problem->rows;
  plan->width = p->problem->width;
  plan->stride = p->problem->stride;
  plan->max_seq_len = p->longest;
  plan->sms = p->device.sms;
  plan->smem_optin = p->device.smem_optin;
  plan->occupancy = (int32_t)resident;
  plan->resident_cap = p->device.sms * resident;
  plan->tuning = *p->tuning;
}

static inline int drvtopk_filtered_residency_(const drvtopk_planning_* p) {
  return p->problem->rows <= p->device.sms ? 1 : 2;
}

static inline const drvtopk_kernel* drvtopk_filtered_kernel_(drvtopk_planning_* p) {
  return drvtopk_kernel_of_(p, DRVTOPK_ROUTE_FILTERED, drvtopk_vec_size_(p, 0), drvtopk_filtered_residency_(p), 1,
                            p->problem->pdl && p->arch->has_pdl);
}

static inline drvtopk_error drvtopk_filtered_(drvtopk_planning_* p, const char* why, drvtopk_plan* plan) {
  const drvtopk_problem* problem = p->problem;
  const int residency = drvtopk_filtered_residency_(p);
  const drvtopk_kernel* kernel = drvtopk_filtered_kernel_(p);
  int64_t candidates, smem, resident, groups;
  drvtopk_error error;
  if (!kernel) return DRVTOPK_NOT_EXPORTED;
  candidates = drvtopk_candidates_(p, DRVTOPK_ROUTE_FILTERED, residency, 1);
  smem = kernel->fixed_smem_bytes + candidates * kernel->candidate_bytes;
  error = drvtopk_occupancy_(p, kernel, smem, &resident);
  if (error) return error;
  if (resident < 1) {
    plan->why[0] = '\0';
    drvtopk_say_(plan->why, "a block of %s needs %" PRId64 " bytes of shared memory and none fits an SM", kernel->name,
                 smem);
    return DRVTOPK_DOES_NOT_FIT;
  }
  groups = p->limited ? drvtopk_min_(problem->rows, p->device.sms * resident) : problem->rows;
  drvtopk_start_(p, kernel, resident, plan);
  plan->group = 1;
  plan->grid = plan->groups = (uint32_t)groups;
  plan->chunk = (uint32_t)drvtopk_max_(problem->width, 1);
  plan->candidates = (uint32_t)candidates;
  plan->smem_bytes = (uint32_t)smem;
  drvtopk_say_(plan->why, "%s", why);
  return DRVTOPK_OK;
}

// A plan, or DRVTOPK_DOES_NOT_FIT or DRVTOPK_NOT_EXPORTED with `rejected` filled. `given_chunk` 0: none.
static inline drvtopk_error drvtopk_persistent_(drvtopk_planning_* p, int64_t given_chunk, drvtopk_plan* plan,
                                                drvtopk_rejected* rejected) {
  const drvtopk_problem* problem = p->problem;
  const bool waits = p->longest > p->tuning->radix_threshold;
  // Where no block waits, none holds a part: the row is one block's.
  const int64_t whole = drvtopk_align_(drvtopk_max_(problem->width, 1), 4);
  const int64_t chunk = given_chunk ? given_chunk : waits ? drvtopk_chunk_(p) : whole;
  const int64_t group = drvtopk_max_(1, drvtopk_ceil_(problem->width, chunk));
  const int64_t vec = drvtopk_vec_size_(p, group > 1 ? chunk : 0);
  const int64_t chunk_bytes = waits ? drvtopk_align_(chunk * 4, 16) : 0;
  const drvtopk_kernel* kernel = drvtopk_kernel_of_(p, DRVTOPK_ROUTE_PERSISTENT, vec, 2, 1, false);
  int64_t candidates, smem, resident, cap, headroom, groups;
  bool kept;
  drvtopk_error error;
  memset(rejected, 0, sizeof *rejected);
  rejected->route = DRVTOPK_ROUTE_PERSISTENT;
  rejected->vec_size = (int32_t)vec;
  rejected->group = group;
  rejected->chunk = chunk;
  if (!kernel) return DRVTOPK_NOT_EXPORTED;
  // The same bytes hold a chunk of keys in one row and a bin's candidates in the next.
  candidates =
      drvtopk_max_(chunk_bytes / kernel->candidate_bytes, drvtopk_candidates_(p, DRVTOPK_ROUTE_PERSISTENT, 2, 1));
  smem = kernel->fixed_smem_bytes + drvtopk_max_(chunk_bytes, candidates * kernel->candidate_bytes);
  error = drvtopk_occupancy_(p, kernel, smem, &resident);
  if (error) return error;
  cap = p->device.sms * resident;
  headroom = !waits ? 0 : resident > 1 ? p->device.sms : 1;
  kept = waits && cap - headroom >= group;
  groups = drvtopk_max_(1, drvtopk_min_((cap - (kept ? headroom : 0)) / group, problem->rows));
  rejected->smem_bytes = smem;
  rejected->occupancy = resident;
  rejected->resident_cap = cap;
  if (resident < 1 || (waits && groups * group > cap)) return DRVTOPK_DOES_NOT_FIT;
  drvtopk_start_(p, kernel, resident, plan);
  plan->group = (uint32_t)group;
  plan->groups = (uint32_t)groups;
  plan->grid = problem->rows ? (uint32_t)(groups * group) : 0;
  plan->chunk = (uint32_t)chunk;
  plan->candidates = (uint32_t)candidates;
  plan->smem_bytes = (uint32_t)smem;
  plan->needs_cooperation = plan->cooperative = waits;
  plan->headroom = headroom;
  plan->headroom_kept = kept;
  plan->workspace_bytes = waits && problem->rows ? groups * drvtopk_group_state_bytes_(kernel, group) : 0;
  if (!waits) {
    drvtopk_say_(plan->why,
                 "persistent: no row above %" PRId32 " is expected (max_seq_len %" PRId64
                 "), so one block takes each row and none waits; ",
                 p->tuning->radix_threshold, p->longest);
    drvtopk_say_(plan->why, "%" PRId64 " of %" PRId64 " rows in flight", groups, problem->rows);
    return DRVTOPK_OK;
  }
  drvtopk_say_(plan->why, "persistent: %" PRId64 " blocks of %" PRId64 " elements share a row, ", group, chunk);
  drvtopk_say_(plan->why, "%" PRId64 " of %" PRId64 " rows in flight; ", groups, problem->rows);
  if (kept) {
    drvtopk_say_(plan->why, "%" PRId64 " of %" PRId64 " resident blocks left to others", headroom, cap);
  } else {
    drvtopk_say_(plan->why, "no headroom: %" PRId64 " of %" PRId64 " needed", group, cap);
  }
  return DRVTOPK_OK;
}

// A plan, or DRVTOPK_DOES_NOT_FIT or DRVTOPK_NOT_EXPORTED with `rejected` filled.
static inline drvtopk_error drvtopk_clustered_(drvtopk_planning_* p, int group, drvtopk_plan* plan,
                                               drvtopk_rejected* rejected) {
  const drvtopk_problem* problem = p->problem;
  const int64_t vec = drvtopk_vec_size_(p, 0);
  const int residency = problem->rows * group <= p->device.sms ? 1 : 2;
  const int64_t candidates = drvtopk_candidates_(p, DRVTOPK_ROUTE_CLUSTERED, residency, group);
  const drvtopk_kernel* kernel = NULL;
  int64_t smem = p->like->fixed_smem_bytes + candidates * drvtopk_candidate_bytes_(group);
  int64_t resident = 0, together = 0, most;
  drvtopk_error error = DRVTOPK_OK;
  if (residency == 1) {  // an SM for each block: else two of a cluster might share one while others idle
    smem = drvtopk_min_(drvtopk_max_(smem, p->device.smem_per_sm / 2), p->device.smem_optin);
  }
  memset(rejected, 0, sizeof *rejected);
  rejected->route = DRVTOPK_ROUTE_CLUSTERED;
  rejected->vec_size = (int32_t)vec;
  rejected->group = group;
  rejected->chunk = drvtopk_max_(drvtopk_ceil_(problem->width, group), 1);
  rejected->smem_bytes = smem;
  if (group > p->arch->max_cluster || candidates < problem->k) return DRVTOPK_DOES_NOT_FIT;
  kernel = drvtopk_kernel_of_(p, DRVTOPK_ROUTE_CLUSTERED, vec, residency, group, problem->pdl);
  if (!kernel) return DRVTOPK_NOT_EXPORTED;
  error = drvtopk_occupancy_(p, kernel, smem, &resident);
  if (error) return error;
  if (resident > 0 && p->driver->clusters) {
    together = p->driver->clusters(p->driver->user, kernel, (uint32_t)smem);
    if (together < 0) return DRVTOPK_QUESTION_FAILED;
  }
  rejected->occupancy = resident;
  rejected->resident_cap = p->device.sms * resident;
  if (p->limited) together = drvtopk_min_(together, p->device.sms * resident / group);  // the budget's SMs
  if (together < 1) return DRVTOPK_DOES_NOT_FIT;
  // Without a budget a cluster for each row: the hardware starts them as room comes free.
  most = p->limited ? together : DRVTOPK_MAX_ROWS / group;
  drvtopk_start_(p, kernel, resident, plan);
  plan->group = (uint32_t)group;
  plan->groups = (uint32_t)drvtopk_min_(problem->rows, most);
  plan->grid = plan->groups * plan->group;
  plan->chunk = (uint32_t)rejected->chunk;
  plan->candidates = (uint32_t)candidates;
  plan->smem_bytes = (uint32_t)smem;
  drvtopk_say_(plan->why, "clustered: the %d blocks of a cluster share each long row; %" PRId64 " clusters fit at once",
               group, together);
  return DRVTOPK_OK;
}

// Times -------------------------------------------------------------------------------------------------------------

enum { DRVTOPK_CHOICES_ = 8 };  // ways to launch, and one that always fits

typedef struct drvtopk_times_ {
  int count;
  drvtopk_choice choice[DRVTOPK_CHOICES_];
  double us[DRVTOPK_CHOICES_];
} drvtopk_times_;

static inline void drvtopk_add_time_(drvtopk_times_* times, drvtopk_route route, int cluster, double us) {
  if (times->count >= DRVTOPK_CHOICES_) return;
  times->choice[times->count].route = route;
  times->choice[times->count].cluster = cluster;
  times->us[times->count++] = us;
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

// Times between the shapes that were measured on this device; none where it was not measured.
static inline void drvtopk_measured_times_(const drvtopk_planning_* p, drvtopk_times_* times) {
  const drvtopk_measured* found = NULL;
  int fewer, more, below, above, c;
  double share, part;
  size_t i;
  times->count = 0;
  for (i = 0; i < p->exported->measured_count && !found; ++i) {
    const drvtopk_measured* one = &p->exported->measured[i];
    if (one->sms == p->device.sms && !strcmp(one->name, p->device.name)) found = one;
  }
  if (!found) return;
  share = drvtopk_neighbours_(found->row, found->rows, p->problem->rows, &fewer, &more);
  part = drvtopk_neighbours_(found->length, found->lengths, p->longest, &below, &above);
  for (c = 0; c < found->choices; ++c) {
    const double* less = found->us + (c * found->rows + fewer) * found->lengths;
    const double* greater = found->us + (c * found->rows + more) * found->lengths;
    if (less[below] > 0 && less[above] > 0 && greater[below] > 0 && greater[above] > 0) {
      const double low = log(less[below]) * (1 - part) + log(less[above]) * part;
      const double high = log(greater[below]) * (1 - part) + log(greater[above]) * part;
      drvtopk_add_time_(times, found->choice[c].route, found->choice[c].cluster, exp(low * (1 - share) + high * share));
    }
  }
}

static inline double drvtopk_modelled_(const drvtopk_planning_* p, double fixed, int64_t blocks_of_a_row,
                                       int64_t slots) {
  const int64_t blocks = p->problem->rows * blocks_of_a_row;
  const int64_t waves = drvtopk_ceil_(blocks, drvtopk_max_(slots, 1));
  const int64_t busy = drvtopk_max_(drvtopk_min_(blocks, slots), 1);
  const double all = DRVTOPK_MODEL_DEVICE_BYTES_OF_AN_SM * p->device.sms / (double)busy;
  const double rate = all < DRVTOPK_MODEL_SM_BYTES ? all : DRVTOPK_MODEL_SM_BYTES;
  return (double)waves * (fixed + 4.0 * (double)p->longest / (double)blocks_of_a_row / rate);
}

// The same by a model, for a device that was never measured: good for comparing only.
static inline void drvtopk_modelled_times_(const drvtopk_planning_* p, drvtopk_times_* times) {
  static const int sizes[] = DRVTOPK_CLUSTERS;
  const int64_t sms = p->device.sms, rows = p->problem->rows;
  const bool is_short = p->longest <= DRVTOPK_MODEL_SHORT;
  size_t i;
  times->count = 0;
  drvtopk_add_time_(times, DRVTOPK_ROUTE_FILTERED, 1,
                    drvtopk_modelled_(p, is_short ? DRVTOPK_MODEL_SHORT_US : DRVTOPK_MODEL_FILTERED_US, 1, sms));
  for (i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    const int64_t slots = (sizes[i] == 2 ? sms : sms * 7 / 8) / sizes[i] * sizes[i];
    if (sizes[i] > p->arch->max_cluster) continue;
    drvtopk_add_time_(times, DRVTOPK_ROUTE_CLUSTERED, sizes[i],
                      drvtopk_modelled_(p, DRVTOPK_MODEL_CLUSTERED_US, sizes[i], slots));
  }
  if (rows * p->tuning->sms_to_share <= sms) {
    const int64_t blocks = sms / drvtopk_max_(rows, 1);
    drvtopk_add_time_(times, DRVTOPK_ROUTE_PERSISTENT, 1,
                      drvtopk_modelled_(p, DRVTOPK_MODEL_PERSISTENT_US, blocks, sms));
  }
}

// The ways to launch, the best first, and why. The last is one that always fits, or persistent.
static inline void drvtopk_choices_(const drvtopk_planning_* p, drvtopk_times_* times, char* why, char* alone) {
  const drvtopk_problem* problem = p->problem;
  const char* source = "measured fastest near";
  bool measured = false;
  int i, j;
  why[0] = alone[0] = '\0';
  if (p->longest <= p->tuning->radix_threshold) {
    drvtopk_say_(alone, "no row above %" PRId32 " is expected (max_seq_len %" PRId64 ")", p->tuning->radix_threshold,
                 p->longest);
  } else if (problem->rows * p->tuning->sms_to_share > p->device.sms) {
    drvtopk_say_(alone, "%" PRId64 " rows on %" PRId32 " SMs, sharing pays from %" PRId32 " SMs a row on",
                 problem->rows, p->device.sms, p->tuning->sms_to_share);
  }
  times->count = 0;
  if (p->arch->max_cluster > 1 && p->longest > p->tuning->cluster_threshold && !problem->waits_never && problem->rows) {
    drvtopk_measured_times_(p, times);
    for (i = 0; i < times->count; ++i) measured = measured || times->choice[i].route == DRVTOPK_ROUTE_FILTERED;
    if (!measured) {
      drvtopk_modelled_times_(p, times);
      source = "by a model the fastest for";
    }
    drvtopk_say_(why, "%s %" PRId64 " x %" PRId64, source, problem->rows, p->longest);
    for (i = 1; i < times->count; ++i) {  // equal ones keep their order
      const drvtopk_choice choice = times->choice[i];
      const double us = times->us[i];
      for (j = i; j > 0 && us < times->us[j - 1]; --j) {
        times->choice[j] = times->choice[j - 1];
        times->us[j] = times->us[j - 1];
      }
      times->choice[j] = choice;
      times->us[j] = us;
    }
  }
}

// Planning ----------------------------------------------------------------------------------------------------------

static inline void drvtopk_constraint_(const drvtopk_planning_* p, const drvtopk_rejected* rejected,
                                       drvtopk_error error, char* text) {
  text[0] = '\0';
  if (error == DRVTOPK_NOT_EXPORTED) {
    drvtopk_say_(text, "not exported for %s: %s", p->arch->arch, p->missing);
  } else if (rejected->route == DRVTOPK_ROUTE_CLUSTERED) {
    drvtopk_say_(text, "no cluster of %" PRId64 " blocks with %" PRId64 " bytes of shared memory each fits",
                 rejected->group, rejected->smem_bytes);
  } else if (rejected->occupancy < 1) {
    drvtopk_say_(text, "a block holding %" PRId64 " elements needs %" PRId64 " bytes of shared memory ",
                 rejected->chunk, rejected->smem_bytes);
    drvtopk_say_(text, "and none fits an SM (%" PRId32 " bytes a block at most)", p->device.smem_optin);
  } else {
    drvtopk_say_(text, "one row needs %" PRId64 " blocks, %" PRId64 " fit", rejected->group, rejected->resident_cap);
  }
}

static inline drvtopk_rejected drvtopk_attempt_(const drvtopk_plan* made) {
  drvtopk_rejected attempt;
  attempt.route = made->route;
  attempt.vec_size = made->vec_size;
  attempt.group = made->group;
  attempt.chunk = made->chunk;
  attempt.smem_bytes = made->smem_bytes;
  attempt.occupancy = made->occupancy;
  attempt.resident_cap = made->resident_cap;
  return attempt;
}

static inline bool drvtopk_in_(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

static inline drvtopk_error drvtopk_check_problem_(const drvtopk_problem* problem) {
  static const int sizes[] = DRVTOPK_CLUSTERS;
  bool known = false;
  size_t i;
  if (!drvtopk_in_(problem->rows, 0, DRVTOPK_MAX_ROWS)) return DRVTOPK_BAD_ROWS;
  if (!drvtopk_in_(problem->width, 0, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_WIDTH;
  if (!drvtopk_in_(problem->k, 1, DRVTOPK_MAX_K)) return DRVTOPK_BAD_K;
  if (!drvtopk_in_(problem->stride, 0, DRVTOPK_MAX_STRIDE / drvtopk_max_(problem->rows, 1))) return DRVTOPK_BAD_STRIDE;
  if (!drvtopk_in_(problem->offset, 0, DRVTOPK_MAX_OFFSET)) return DRVTOPK_BAD_OFFSET;
  if (!drvtopk_in_(problem->max_seq_len, 0, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_MAX_SEQ_LEN;
  if (!drvtopk_in_(problem->sm_budget, 0, DRVTOPK_MAX_ROWS)) return DRVTOPK_BAD_SM_BUDGET;
  if (!drvtopk_in_((int64_t)problem->route, DRVTOPK_ROUTE_AUTO, DRVTOPK_ROUTE_CLUSTERED)) return DRVTOPK_BAD_ROUTE;
  if (!drvtopk_in_(problem->chunk, 0, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_CHUNK;
  for (i = 0; i < sizeof sizes / sizeof *sizes; ++i) known = known || problem->group == sizes[i];
  if (problem->group && (!known || problem->route != DRVTOPK_ROUTE_CLUSTERED)) return DRVTOPK_BAD_GROUP;
  return DRVTOPK_OK;
}

static inline drvtopk_error drvtopk_check_tuning_(const drvtopk_tuning* tuning, const drvtopk_tuning* compiled) {
  const int32_t values[] = {tuning->radix_threshold, tuning->cluster_threshold, tuning->sms_to_share, tuning->min_chunk,
                            tuning->max_candidates};
  size_t i;
  for (i = 0; i < sizeof values / sizeof *values; ++i) {
    if (!drvtopk_in_(values[i], 1, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_TUNING;
  }
  return tuning->radix_threshold == compiled->radix_threshold &&
                 tuning->cluster_threshold == compiled->cluster_threshold
             ? DRVTOPK_OK
             : DRVTOPK_BAD_TUNING;
}

static inline drvtopk_error drvtopk_check_device_(const drvtopk_device* device) {
  const int32_t limits[] = {device->sms, device->smem_optin, device->smem_per_sm, device->max_threads_per_sm,
                            device->smem_reserved};
  size_t i;
  for (i = 0; i < sizeof limits / sizeof *limits; ++i) {
    const int32_t least = &limits[i] == &limits[4] ? 0 : 1;
    if (limits[i] < least) return DRVTOPK_BAD_DEVICE;
  }
  if (!memchr(device->name, 0, sizeof device->name) || !memchr(device->arch, 0, sizeof device->arch)) {
    return DRVTOPK_BAD_DEVICE;
  }
  return DRVTOPK_OK;
}

// Checks everything and looks up what a planning needs. Writes `why` where it fails.
static inline drvtopk_error drvtopk_begin_(drvtopk_planning_* p, const drvtopk_problem* problem,
                                           const drvtopk_device* device, const drvtopk_tuning* tuning,
                                           const drvtopk_export* exported, const drvtopk_driver* driver, char* why) {
  drvtopk_error error;
  size_t i;
  why[0] = '\0';
  memset(p, 0, sizeof *p);
  if (!problem || !device || !exported || !driver || !driver->occupancy) return DRVTOPK_BAD_POINTER;
  p->problem = problem;
  p->device = *device;
  p->tuning = tuning ? tuning : &exported->tuning;
  p->exported = exported;
  p->driver = driver;
  if ((error = drvtopk_check_problem_(problem)) != DRVTOPK_OK) return error;
  if ((error = drvtopk_check_tuning_(p->tuning, &exported->tuning)) != DRVTOPK_OK) return error;
  if ((error = drvtopk_check_device_(device)) != DRVTOPK_OK) return error;
  for (p->longest = problem->max_seq_len > 0; p->longest < problem->max_seq_len;) p->longest *= 2;
  p->longest = drvtopk_min_(p->longest, problem->width);
  p->limited = problem->sm_budget > 0;
  if (p->limited) p->device.sms = (int32_t)drvtopk_min_(device->sms, problem->sm_budget);
  for (i = 0; i < exported->arch_count && !p->arch; ++i) {
    if (!strcmp(exported->archs[i].arch, device->arch)) p->arch = &exported->archs[i];
  }
  if (!p->arch) {
    drvtopk_say_(why, "nothing is exported for %s", device->arch);
    return DRVTOPK_NOT_EXPORTED;
  }
  for (i = 0; i < exported->kernel_count && !p->like; ++i) {
    const drvtopk_kernel* kernel = &exported->kernels[i];
    if (kernel->k == problem->k && drvtopk_same_options_(&kernel->options, &problem->options) &&
        !strcmp(kernel->arch, device->arch)) {
      p->like = kernel;
    }
  }
  if (!p->like) {
    drvtopk_say_(why, "no kernel of k %" PRId64 " with these options is exported for %s", problem->k, device->arch);
    return DRVTOPK_NOT_EXPORTED;
  }
  return DRVTOPK_OK;
}

// drvtopk_make_plan, after everything was checked.
static inline drvtopk_error drvtopk_plan_(drvtopk_planning_* p, drvtopk_plan* plan) {
  static const int sizes[] = DRVTOPK_CLUSTERS;
  const drvtopk_problem* problem = p->problem;
  char text[DRVTOPK_WHY_SIZE], constraint[DRVTOPK_WHY_SIZE], alone[DRVTOPK_WHY_SIZE];
  drvtopk_error error = DRVTOPK_DOES_NOT_FIT;
  drvtopk_rejected rejected;
  bool tried = false;
  memset(&rejected, 0, sizeof rejected);
  if (problem->route == DRVTOPK_ROUTE_FILTERED) {
    return drvtopk_filtered_(p, "filtered: asked for; one block per row, none waits", plan);
  }
  if (problem->route == DRVTOPK_ROUTE_CLUSTERED) {
    size_t i;
    if (problem->waits_never) {
      drvtopk_say_(plan->why, "blocks of a row would wait for each other, which the caller forbids");
      return DRVTOPK_DOES_NOT_FIT;
    }
    for (i = sizeof sizes / sizeof *sizes; i > 0; --i) {
      if (problem->group && problem->group != sizes[i - 1]) continue;
      error = drvtopk_clustered_(p, sizes[i - 1], plan, &rejected);
      if (error != DRVTOPK_DOES_NOT_FIT && error != DRVTOPK_NOT_EXPORTED) return error;
    }
    if (p->missing[0]) error = DRVTOPK_NOT_EXPORTED;
    plan->why[0] = '\0';
    drvtopk_constraint_(p, &rejected, error, plan->why);
    return error;
  }
  if (problem->route == DRVTOPK_ROUTE_AUTO && !problem->chunk) {
    drvtopk_times_ times;
    char why[DRVTOPK_WHY_SIZE];
    int timed, i;
    drvtopk_choices_(p, &times, why, alone);
    timed = times.count;
    drvtopk_add_time_(&times, alone[0] ? DRVTOPK_ROUTE_FILTERED : DRVTOPK_ROUTE_PERSISTENT, 1, 0.0);
    for (i = 0; i < times.count; ++i) {
      if (times.choice[i].route == DRVTOPK_ROUTE_PERSISTENT) {
        error = drvtopk_persistent_(p, 0, plan, &rejected);
        if (error == DRVTOPK_QUESTION_FAILED) return error;
        tried = true;
        if (!error) break;
      } else if (times.choice[i].route == DRVTOPK_ROUTE_FILTERED) {
        if (!drvtopk_filtered_kernel_(p)) continue;
        if (tried) break;  // it is the fallback, and says of what
        text[0] = '\0';
        drvtopk_say_(text, "filtered: %s; one block per row, none waits", i < timed ? why : alone);
        return drvtopk_filtered_(p, text, plan);
      } else {
        drvtopk_rejected other;
        const drvtopk_error made = drvtopk_clustered_(p, times.choice[i].cluster, plan, &other);
        if (!made) drvtopk_say_(plan->why, "; %s", why);
        if (made != DRVTOPK_DOES_NOT_FIT && made != DRVTOPK_NOT_EXPORTED) return made;
      }
    }
  }
  if (!tried) error = drvtopk_persistent_(p, problem->chunk, plan, &rejected);
  if (error == DRVTOPK_QUESTION_FAILED) return error;
  if (!error && !(plan->cooperative && problem->waits_never)) return error;
  if (!error) {
    rejected = drvtopk_attempt_(plan);
    constraint[0] = '\0';
    drvtopk_say_(constraint, "blocks of a row would wait for each other, which the caller forbids");
    error = DRVTOPK_DOES_NOT_FIT;
  } else {
    drvtopk_constraint_(p, &rejected, error, constraint);
  }
  plan->why[0] = '\0';
  if (problem->route == DRVTOPK_ROUTE_PERSISTENT) {
    drvtopk_say_(plan->why, "%s", constraint);
    return error;
  }
  text[0] = '\0';
  drvtopk_say_(text, "fallback: %s", constraint);
  error = drvtopk_filtered_(p, text, plan);
  if (!error) {
    plan->fallback = true;
    plan->rejected = rejected;
  }
  return error;
}

// Tells of what was missing, and leaves nothing of a plan where there is none.
static inline drvtopk_error drvtopk_end_(const drvtopk_planning_* p, drvtopk_error error, drvtopk_plan* plan) {
  if (error) {
    char why[DRVTOPK_WHY_SIZE];
    memcpy(why, plan->why, sizeof why);
    memset(plan, 0, sizeof *plan);
    memcpy(plan->why, why, sizeof why);
  }
  if (error == DRVTOPK_NOT_EXPORTED && p->missing[0]) {
    plan->why[0] = '\0';
    drvtopk_say_(plan->why, "not exported for %s: %s", p->arch->arch, p->missing);
  } else if ((!error || error == DRVTOPK_DOES_NOT_FIT) && p->missing[0] && !strstr(plan->why, p->missing)) {
    drvtopk_say_(plan->why, "; not exported: %s", p->missing);
  }
  if (error && !plan->why[0]) drvtopk_say_(plan->why, "%s", drvtopk_error_text(error));
  return error;
}

// Plans `problem` on `device` with the kernels of `exported`: the plan that Python makes of the same inputs. A kernel
// that would be best and is not exported counts as one that does not fit, and the next is taken; `why` then names it.
// `tuning` may be null: the export's own. Returns DRVTOPK_OK with *plan filled; or, with plan->kernel null and the
// reason in plan->why, DRVTOPK_DOES_NOT_FIT (a named route, or a device too small for any), DRVTOPK_NOT_EXPORTED,
// DRVTOPK_QUESTION_FAILED, or a DRVTOPK_BAD_ that names the argument.
static inline drvtopk_error drvtopk_make_plan(const drvtopk_problem* problem, const drvtopk_device* device,
                                              const drvtopk_tuning* tuning, const drvtopk_export* exported,
                                              const drvtopk_driver* driver, drvtopk_plan* plan) {
  drvtopk_planning_ p;
  drvtopk_error error;
  if (!plan) return DRVTOPK_BAD_POINTER;
  memset(plan, 0, sizeof *plan);
  error = drvtopk_begin_(&p, problem, device, tuning, exported, driver, plan->why);
  if (!error) error = drvtopk_plan_(&p, plan);
  return drvtopk_end_(&p, error, plan);
}

// Whether the driver's answer to a launch (a CUresult) says that blocks which wait for each other can never be resident
// together: 720 (COOPERATIVE_LAUNCH_TOO_LARGE), and of clusters 912 (INVALID_CLUSTER_SIZE). Nothing was launched then, and
// the plan of `drvtopk_after_refusal` can be, from then on.
static inline bool drvtopk_is_refusal(const drvtopk_plan* plan, int answer) {
  const bool clustered = plan->route == DRVTOPK_ROUTE_CLUSTERED;
  return (answer == 720 && (plan->cooperative || clustered)) || (answer == 912 && clustered);
}

// The fallback for a plan, cooperative or clustered, that the driver would not launch (`drvtopk_is_refusal`): one block per
// row, and none waits. `reason` says what it answered; null: that it refused. `plan` may be `refused` itself. Returns as
// drvtopk_make_plan does, and DRVTOPK_BAD_PLAN if `refused` is no plan.
static inline drvtopk_error drvtopk_after_refusal(const drvtopk_plan* refused, const drvtopk_problem* problem,
                                                  const drvtopk_device* device, const drvtopk_export* exported,
                                                  const drvtopk_driver* driver, const char* reason,
                                                  drvtopk_plan* plan) {
  drvtopk_planning_ p;
  drvtopk_tuning tuning;
  drvtopk_rejected attempt;
  drvtopk_error error;
  char why[DRVTOPK_WHY_SIZE];
  if (!plan || !refused) return DRVTOPK_BAD_POINTER;
  if (!refused->kernel) return DRVTOPK_BAD_PLAN;
  why[0] = '\0';
  if (refused->route != DRVTOPK_ROUTE_CLUSTERED) {
    if (!reason) reason = "the driver refused the cooperative launch (720, COOPERATIVE_LAUNCH_TOO_LARGE)";
    drvtopk_say_(why, "fallback: %s for %" PRIu32 " blocks, %" PRId64 " were to fit", reason, refused->grid,
                 refused->resident_cap);
  } else if (reason) {
    drvtopk_say_(why, "fallback: %s", reason);
  } else {
    drvtopk_say_(
        why, "fallback: the driver refused the launch in clusters of %" PRIu32 " blocks (912, INVALID_CLUSTER_SIZE)",
        refused->group);
  }
  attempt = drvtopk_attempt_(refused);
  tuning = refused->tuning;
  memset(plan, 0, sizeof *plan);
  error = drvtopk_begin_(&p, problem, device, &tuning, exported, driver, plan->why);
  if (!error) error = drvtopk_filtered_(&p, why, plan);
  if (!error) {
    plan->fallback = true;
    plan->rejected = attempt;
  }
  return drvtopk_end_(&p, error, plan);
}

static inline bool drvtopk_bad_address_(uint64_t address, int64_t alignment, bool needed) {
  return address % (uint64_t)alignment != 0 || (needed && !address);
}

// Fills the parameter block of one launch. Only addresses and strides differ between launches of a plan, and a plain
// kernel reads the first 80 bytes only: pass its address in the kernelParams of every launch. Returns DRVTOPK_OK, or
// the DRVTOPK_BAD_ that names the argument; the block is then not to be launched. Rows that are 0 need no address.
static inline drvtopk_error drvtopk_fill_params(const drvtopk_plan* plan, const drvtopk_arrays* arrays,
                                                drvtopk_extended_params* params) {
  const drvtopk_kernel* kernel;
  int64_t out_stride, values_stride;
  if (!plan || !arrays || !params) return DRVTOPK_BAD_POINTER;
  if (!(kernel = plan->kernel)) return DRVTOPK_BAD_PLAN;
  out_stride = arrays->out_stride ? arrays->out_stride : plan->k;
  values_stride = arrays->values_stride ? arrays->values_stride : plan->k;
  memset(params, 0, sizeof *params);
  params->page_size = params->rows_per_table = 1;  // what rows are divided by, though only with a page table
  if (out_stride < plan->k && plan->rows > 1) return DRVTOPK_BAD_OUT_STRIDE;
  if (plan->rows > 0) {
    const drvtopk_options* options = &kernel->options;
    if (drvtopk_bad_address_(arrays->logits, (int64_t)kernel->item_bytes * plan->vec_size, plan->width > 0)) {
      return DRVTOPK_BAD_LOGITS;
    }
    if (drvtopk_bad_address_(arrays->lengths, 4, false)) return DRVTOPK_BAD_LENGTHS;
    if (drvtopk_bad_address_(arrays->out, kernel->index_bytes, true)) return DRVTOPK_BAD_OUT;
    if (plan->workspace_bytes > 0 && drvtopk_bad_address_(arrays->workspace, DRVTOPK_WORKSPACE_ALIGNMENT, true)) {
      return DRVTOPK_BAD_WORKSPACE;
    }
    if (options->values ? drvtopk_bad_address_(arrays->values, kernel->item_bytes, true) : arrays->values != 0) {
      return DRVTOPK_BAD_VALUES;
    }
    if (options->row_starts ? drvtopk_bad_address_(arrays->row_starts, 4, true) : arrays->row_starts != 0) {
      return DRVTOPK_BAD_ROW_STARTS;
    }
    if (options->page_table ? drvtopk_bad_address_(arrays->page_table, 4, true) : arrays->page_table != 0) {
      return DRVTOPK_BAD_PAGE_TABLE;
    }
    if (options->values && values_stride < plan->k && plan->rows > 1) return DRVTOPK_BAD_VALUES_STRIDE;
    if (options->page_table) {
      if (!drvtopk_in_(arrays->page_size, 1, DRVTOPK_MAX_WIDTH)) return DRVTOPK_BAD_PAGE_SIZE;
      if (!drvtopk_in_(arrays->rows_per_table, 1, plan->rows)) return DRVTOPK_BAD_ROWS_PER_TABLE;
      if (arrays->page_table_stride < 0) return DRVTOPK_BAD_PAGE_TABLE_STRIDE;
      params->page_size = (uint32_t)arrays->page_size;
      params->rows_per_table = (uint32_t)arrays->rows_per_table;
      params->page_table_stride = arrays->page_table_stride;
    }
  }
  params->values = arrays->values;
  params->row_starts = arrays->row_starts;
  params->page_table = arrays->page_table;
  params->values_stride = values_stride;
  params->plain.logits = arrays->logits;
  params->plain.lengths = arrays->lengths;
  params->plain.out = arrays->out;
  params->plain.workspace = arrays->workspace;
  params->plain.logits_stride = plan->stride;
  params->plain.out_stride = out_stride;
  params->plain.rows = (uint32_t)plan->rows;
  params->plain.width = (uint32_t)plan->width;
  params->plain.group = plan->group;
  params->plain.groups = plan->groups;
  params->plain.chunk = plan->chunk;
  params->plain.candidates = plan->candidates;
  params->plain.cooperative = plan->cooperative ? 1 : 0;
  return DRVTOPK_OK;
}

#endif  // DRVTOPK_H
