// A plan, or why there is none, as one line of JSON with the field names of Python's Plan.
#ifndef PLAN_JSON_H
#define PLAN_JSON_H

#include <inttypes.h>

#include "drvtopk_kernels.h"

typedef struct json_text {
  char* at;
  size_t left;
} json_text;

static inline void json_add(json_text* text, const char* piece) {
  while (*piece && text->left > 1) {
    *text->at++ = *piece++;
    --text->left;
  }
  *text->at = '\0';
}

static inline void json_string(json_text* text, const char* name, const char* value) {
  char one[8];
  json_add(text, "\"");
  json_add(text, name);
  json_add(text, "\": \"");
  for (; *value; ++value) {
    const unsigned char byte = (unsigned char)*value;
    (void)snprintf(one, sizeof one, byte < 32 || byte == '"' || byte == '\\' ? "\\u%04x" : "%c", byte);
    json_add(text, one);
  }
  json_add(text, "\", ");
}

static inline void json_number(json_text* text, const char* name, int64_t value) {
  char number[96];
  (void)snprintf(number, sizeof number, "\"%s\": %" PRId64 ", ", name, value);
  json_add(text, number);
}

static inline void json_truth(json_text* text, const char* name, bool value) {
  char truth[96];
  (void)snprintf(truth, sizeof truth, "\"%s\": %s, ", name, value ? "true" : "false");
  json_add(text, truth);
}

// "filtered<1024,4,alone>": the first kernel that is missing.
static inline void missing_name(const drvtopk_missing* missing, int64_t k, char* to, size_t size) {
  char cluster[16] = "";
  if (missing->cluster > 1) (void)snprintf(cluster, sizeof cluster, ",x%" PRId32, missing->cluster);
  (void)snprintf(to, size, "%s<%" PRId64 ",%" PRId32 "%s%s%s>", drvtopk_route_name(missing->route), k,
                 missing->vec_size, cluster, missing->residency == 1 ? ",alone" : "", missing->pdl ? ",pdl" : "");
}

static inline void plan_as_json(const drvtopk_plan* plan, int64_t k, const char* device, char* to, size_t size) {
  const drvtopk_kernel* kernel = plan->kernel;
  json_text text;
  char missing[96];
  text.at = to;
  text.left = size;
  json_add(&text, "{");
  json_string(&text, "route", drvtopk_route_name(kernel ? kernel->route : DRVTOPK_ROUTE_AUTO));
  json_number(&text, "k", k);
  json_number(&text, "vec_size", kernel ? kernel->vec_size : 0);
  json_number(&text, "rows", plan->problem.rows);
  json_number(&text, "width", plan->problem.width);
  json_number(&text, "stride", plan->problem.stride);
  json_number(&text, "max_seq_len", plan->problem.max_seq_len);
  json_number(&text, "grid", plan->grid);
  json_number(&text, "block", kernel ? kernel->threads : 0);
  json_number(&text, "group", plan->group);
  json_number(&text, "groups", plan->groups);
  json_number(&text, "chunk", plan->chunk);
  json_number(&text, "candidates", plan->candidates);
  json_number(&text, "smem_bytes", plan->smem_bytes);
  json_string(&text, "device", device);
  json_number(&text, "sms", plan->device.sms);
  json_number(&text, "smem_optin", plan->device.smem_optin);
  json_number(&text, "occupancy", plan->occupancy);
  json_number(&text, "resident_cap", plan->resident_cap);
  json_truth(&text, "needs_cooperation", plan->needs_cooperation);
  json_number(&text, "headroom", plan->headroom);
  json_truth(&text, "headroom_kept", plan->headroom_kept);
  json_truth(&text, "cooperative", plan->cooperative);
  json_number(&text, "workspace_bytes", plan->workspace_bytes);
  json_string(&text, "reason", drvtopk_reason_name(plan->reason));
  json_number(&text, "residency", kernel ? kernel->residency : 0);
  json_truth(&text, "pdl", kernel && kernel->pdl);
  json_string(&text, "kernel", kernel ? kernel->name : "");
  json_number(&text, "missing", plan->missing.count);
  missing_name(&plan->missing, k, missing, sizeof missing);
  json_string(&text, "first_missing", plan->missing.count ? missing : "");
  json_add(&text, "\"rejected\": ");
  if (plan->rejected.route != DRVTOPK_ROUTE_AUTO) {
    json_add(&text, "{");
    json_string(&text, "route", drvtopk_route_name(plan->rejected.route));
    json_number(&text, "vec_size", plan->rejected.vec_size);
    json_number(&text, "group", plan->rejected.group);
    json_number(&text, "chunk", plan->rejected.chunk);
    json_number(&text, "smem_bytes", plan->rejected.smem_bytes);
    json_number(&text, "occupancy", plan->rejected.occupancy);
    json_number(&text, "resident_cap", plan->rejected.resident_cap);
    text.at -= 2;  // the last comma
    text.left += 2;
    json_add(&text, "}}");
  } else {
    json_add(&text, "null}");
  }
}

#endif  // PLAN_JSON_H
