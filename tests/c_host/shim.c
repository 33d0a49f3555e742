// The planner of drvtopk.h as functions that ctypes can call: figures in as int64 arrays, plans out as JSON.
#include "plan_json.h"

typedef int (*shim_question)(int kernel, uint32_t smem_bytes);

typedef struct shim_questions {
  shim_question occupancy, clusters;
} shim_questions;

static int occupancy(void* user, const drvtopk_kernel* kernel, uint32_t smem_bytes) {
  return ((const shim_questions*)user)->occupancy((int)(kernel - drvtopk_kernels), smem_bytes);
}

static int clusters(void* user, const drvtopk_kernel* kernel, uint32_t smem_bytes) {
  return ((const shim_questions*)user)->clusters((int)(kernel - drvtopk_kernels), smem_bytes);
}

// The plan, or with `refused` what follows the refusal of it, as JSON. Returns the error.
int shim_plan(const int64_t* p, const int64_t* options, const char* name, const char* arch, const int64_t* limits,
              const int64_t* tuning, shim_question ask_occupancy, shim_question ask_clusters, int refused, char* to,
              size_t size);
int shim_plan(const int64_t* p, const int64_t* options, const char* name, const char* arch, const int64_t* limits,
              const int64_t* tuning, shim_question ask_occupancy, shim_question ask_clusters, int refused, char* to,
              size_t size) {
  drvtopk_problem problem = drvtopk_problem_of(p[0], p[1], p[2]);
  drvtopk_device device;
  drvtopk_tuning tuned;
  drvtopk_driver driver;
  drvtopk_plan plan;
  drvtopk_error error;
  shim_questions questions;
  problem.stride = p[3];
  problem.offset = p[4];
  problem.max_seq_len = p[5];
  problem.sm_budget = p[6];
  problem.chunk = p[7];
  problem.group = p[8];
  problem.route = (drvtopk_route)p[9];
  problem.waits_never = p[10] != 0;
  problem.pdl = p[11] != 0;
  problem.options.dtype = (drvtopk_dtype)options[0];
  problem.options.index_dtype = (drvtopk_index_dtype)options[1];
  problem.options.order = (drvtopk_order)options[2];
  problem.options.tie_break = (drvtopk_tie_break)options[3];
  problem.options.nan = (drvtopk_nan)options[4];
  problem.options.values = options[5] != 0;
  problem.options.row_starts = options[6] != 0;
  problem.options.page_table = options[7] != 0;
  memset(&device, 0, sizeof device);
  (void)snprintf(device.name, sizeof device.name, "%s", name);
  (void)snprintf(device.arch, sizeof device.arch, "%s", arch);
  device.sms = (int32_t)limits[0];
  device.smem_optin = (int32_t)limits[1];
  device.smem_per_sm = (int32_t)limits[2];
  device.smem_reserved = (int32_t)limits[3];
  device.max_threads_per_sm = (int32_t)limits[4];
  if (tuning) {
    tuned.radix_threshold = (int32_t)tuning[0];
    tuned.cluster_threshold = (int32_t)tuning[1];
    tuned.sms_to_share = (int32_t)tuning[2];
    tuned.min_chunk = (int32_t)tuning[3];
    tuned.max_candidates = (int32_t)tuning[4];
  }
  questions.occupancy = ask_occupancy;
  questions.clusters = ask_clusters;
  driver.user = &questions;
  driver.occupancy = occupancy;
  driver.clusters = clusters;
  error = drvtopk_make_plan(&problem, &device, tuning ? &tuned : NULL, &drvtopk_exported, &driver, &plan);
  if (!error && refused) {
    error = drvtopk_after_refusal(&plan, &drvtopk_exported, &driver, &plan);
  }
  plan_as_json(&plan, p[2], name, to, size);
  return (int)error;
}

const char* shim_error_text(int error);
const char* shim_error_text(int error) { return drvtopk_error_text((drvtopk_error)error); }

// The block for a plain plan of the kernel with this number: (rows, width, k) with loads as the kernel has them.
int shim_params(int kernel, const int64_t* figures, const int64_t* a, unsigned char* to);
int shim_params(int kernel, const int64_t* figures, const int64_t* a, unsigned char* to) {
  drvtopk_plan plan;
  drvtopk_extended_params params;
  drvtopk_error error;
  memset(&plan, 0, sizeof plan);
  plan.kernel = kernel < 0 ? NULL : &drvtopk_kernels[kernel];
  if (plan.kernel) plan.problem.k = plan.kernel->k;
  plan.problem.rows = figures[0];
  plan.problem.width = figures[1];
  plan.problem.stride = figures[2];
  plan.group = (uint32_t)figures[3];
  plan.groups = (uint32_t)figures[4];
  plan.chunk = (uint32_t)figures[5];
  plan.candidates = (uint32_t)figures[6];
  plan.cooperative = figures[7] != 0;
  plan.workspace_bytes = figures[8];
  memset(&params, 0, sizeof params);
  params.plain.logits = (uint64_t)a[0];
  params.plain.lengths = (uint64_t)a[1];
  params.plain.out = (uint64_t)a[2];
  params.plain.workspace = (uint64_t)a[3];
  params.values = (uint64_t)a[4];
  params.row_starts = (uint64_t)a[5];
  params.page_table = (uint64_t)a[6];
  params.plain.out_stride = a[7];
  params.values_stride = a[8];
  params.page_table_stride = a[9];
  params.page_size = (uint32_t)a[10];
  params.rows_per_table = (uint32_t)a[11];
  error = drvtopk_fill_params(&plan, &params);
  memcpy(to, &params, sizeof params);
  return (int)error;
}
