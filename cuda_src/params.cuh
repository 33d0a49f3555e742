// What a launch is told: one struct by value, and the numbers that host and kernels share.
// Included by every file. The -D values come from drvtopk/spec.py; nothing here may be typed twice.
#pragma once

using i64 = long long;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 kThreads = DRVTOPK_THREADS;
constexpr u32 kWarps = kThreads / 32;
constexpr u32 kRegisters = 65536 / (kThreads * DRVTOPK_MIN_BLOCKS);  // of a thread, at least, on every GPU there is
constexpr bool kShares = DRVTOPK_MIN_BLOCKS > 1 && DRVTOPK_CLUSTER == 1;  // two blocks an SM, so as many rows as SMs
constexpr u32 kDigitBits = DRVTOPK_DIGIT_BITS;
constexpr u32 kBins = 1u << kDigitBits;
constexpr u32 kRoundWords = DRVTOPK_ROUND_WORDS;
constexpr u32 kRounds = DRVTOPK_ROUNDS;
constexpr u32 kStateLineWords = DRVTOPK_STATE_LINE / 4;
constexpr u32 kShortMax = DRVTOPK_SHORT_MAX;
constexpr u32 kMaxCandidates = DRVTOPK_MAX_CANDIDATES;  // that kernels without a group have room for
constexpr u32 kSamples = DRVTOPK_SAMPLES;
constexpr u64 kCachedBytes = DRVTOPK_CACHED_BYTES;
constexpr u32 kRadixThreshold = DRVTOPK_RADIX_THRESHOLD;
constexpr u32 kClusterThreshold = DRVTOPK_CLUSTER_THRESHOLD;
constexpr u32 kCluster = DRVTOPK_CLUSTER;  // blocks of a hardware cluster; 1: there are none

// What a caller may ask for beyond k (spec.Options), each known when the kernel is compiled.
enum class Dtype { kFloat32, kBfloat16, kFloat16 };
enum class Order { kNone, kIndex, kValue };
enum class TieBreak { kAny, kSmallest, kLargest };
constexpr Dtype kDtype = static_cast<Dtype>(DRVTOPK_DTYPE);
constexpr Order kOrder = static_cast<Order>(DRVTOPK_ORDER);
constexpr TieBreak kTieBreak = static_cast<TieBreak>(DRVTOPK_TIE_BREAK);
constexpr bool kTies = kTieBreak != TieBreak::kAny;  // equal values are told apart, by their indices
constexpr bool kSorts = kOrder != Order::kNone;
constexpr bool kNanHighest = DRVTOPK_NAN_HIGHEST;
constexpr bool kValues = DRVTOPK_VALUES;
constexpr bool kRowStarts = DRVTOPK_ROW_STARTS;
constexpr bool kPageTable = DRVTOPK_PAGE_TABLE;

template <bool Wide, class Narrow, class Other>
struct Choose {
  using type = Narrow;
};
template <class Narrow, class Other>
struct Choose<true, Narrow, Other> {
  using type = Other;
};
using Logit = Choose<kDtype != Dtype::kFloat32, u32, unsigned short>::type;  // its bits
using Index = Choose<DRVTOPK_INDEX_BYTES == 8, int, i64>::type;

__host__ __device__ constexpr u32 align_up(u32 n, u32 to) { return (n + to - 1) / to * to; }

struct Params {
  const Logit* logits;
  const int* lengths;  // null: every row is `width` long
  Index* out;
  void* workspace;    // groups x state of a group (see sync.cuh); any contents; null where nothing waits
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
#if DRVTOPK_EXTRAS
  Logit* values;
  const int* row_starts;
  const int* page_table;
  i64 values_stride;      // elements
  i64 page_table_stride;  // elements
  u32 page_size;
  u32 rows_per_table;  // row r looks in row r / rows_per_table of the page table
#endif
};

static_assert(sizeof(void*) == 8, "64-bit addresses");
static_assert(sizeof(Params) == 80 + 48 * DRVTOPK_EXTRAS, "the host packs 80 bytes, or 128");
static_assert(DRVTOPK_EXTRAS == (kValues || kRowStarts || kPageTable), "what is told is what is asked for");
static_assert(kWarps <= 32, "a warp sums up what the warps found");
static_assert(kBins % kThreads == 0, "each thread has equally many bins");
static_assert(kRoundWords > kBins + 1, "two counters follow the bins of a round");
