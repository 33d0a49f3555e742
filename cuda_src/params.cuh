// What a launch is told: one struct by value, and the numbers that host and kernels share.
// Included by every file. The -D values come from drvtopk/spec.py; nothing here may be typed twice.
#pragma once

using i64 = long long;
using u32 = unsigned int;

constexpr u32 kThreads = DRVTOPK_THREADS;
constexpr u32 kWarps = kThreads / 32;
constexpr u32 kDigitBits = DRVTOPK_DIGIT_BITS;
constexpr u32 kBins = 1u << kDigitBits;
constexpr u32 kRoundWords = DRVTOPK_ROUND_WORDS;
constexpr u32 kRounds = DRVTOPK_ROUNDS;
constexpr u32 kStateLineWords = DRVTOPK_STATE_LINE / 4;
constexpr u32 kShortMax = DRVTOPK_SHORT_MAX;
constexpr u32 kRadixThreshold = DRVTOPK_RADIX_THRESHOLD;

struct Params {
  const float* logits;
  const int* lengths;  // null: every row is `width` long
  int* out;
  void* workspace;    // groups x state of a group (see group.cuh); any contents; null where nothing waits
  i64 logits_stride;  // elements
  i64 out_stride;     // elements
  u32 rows;
  u32 width;
  u32 group;        // blocks that share a row
  u32 groups;       // row r belongs to group r % groups
  u32 chunk;        // elements of a row that one block of a group holds
  u32 candidates;   // keys of one bin that a block can keep in shared memory
  u32 cooperative;  // 1: launched cooperatively, so the blocks of a group may wait for each other
  u32 reserved;
};

static_assert(sizeof(void*) == 8, "64-bit addresses");
static_assert(sizeof(Params) == 80, "the host packs 80 bytes");
static_assert(kWarps == 32, "the block scan gives each warp one lane of the first warp");
static_assert(kBins == 2 * kThreads, "the block scan gives each thread two bins");
static_assert(kRoundWords > kBins + 1, "two counters follow the bins of a round");
