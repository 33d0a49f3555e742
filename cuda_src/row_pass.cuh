// A long row by one block in one reading: a sample guesses a pivot that a few more than K keys reach, the reading keeps
// what reaches it, and the K best of these are the row's. The guess decides the time, never the result: what was kept
// is counted, and if it is too little or does not fit, the row goes the exact way (row_stream). Called by
// row_alone.cuh. Shared memory: Shared<K> and `candidates` pairs behind it. A pivot by sampling is Floyd and Rivest's
// idea (1975); one that is verified by counting is known from sample-select on GPUs (Ribizel and Anzt, 2020).
#pragma once
#include "finish.cuh"
#include "held.cuh"

// With less room than this, or fewer elements than two for a sample, guessing does not pay.
constexpr u32 kLeastCandidates = kSamples / 2;
// Longer rows have fewer members among so many samples, and take more of them.
constexpr u32 kTwiceFrom = 1u << 17, kMoreFrom = 1u << 19;  // elements
constexpr u32 kDeep = kRegisters >= 128  ? 16
                      : kRegisters >= 64 ? 8
                                         : 4;  // loads of a thread under way at once: what registers allow

// How many of `samples` samples should reach the pivot, so that between K and `room` of n elements do: 4.5 standard
// deviations more than expected, but never nearer to too many than to too few. (The square root of a count has a
// standard deviation of one half, whatever the count.)
__device__ __forceinline__ u32 sample_rank(u32 k, u32 n, u32 samples, u32 room) {
  const float scale = static_cast<float>(samples) / static_cast<float>(n);
  const float low = sqrtf(static_cast<float>(k) * scale), high = sqrtf(static_cast<float>(room) * scale);
  const float root = min(low + 2.25f, (low + high) * 0.5f);
  return min(static_cast<u32>(root * root) + 1u, samples);
}

// How many samples a row of n elements is guessed from, where keys[0 .. 2 room) has space for them.
__device__ __forceinline__ u32 samples_of(u32 n, u32 room) {
  const u32 most = n >= kMoreFrom ? 8 * kSamples : n >= kTwiceFrom ? 2 * kSamples : kSamples;
  u32 samples = kSamples;
  while (samples < most && 2 * samples <= 2 * room) samples *= 2;
  return samples;
}

// A key that about `wanted` of the samples reach, and few more: where the bin begins that holds the wanted-th largest, the bins
// being made smaller until that one holds few; or, where many are equal, that value. Leaves it in Scratch, with the samples'
// bounds, and the bins cleared; returns whether few elements should equal it. `meanwhile` is called when the first samples are under way.
// No barrier is needed before.
template <int Vec, class Meanwhile>
__device__ __forceinline__ bool find_pivot(const Row& row, u32 samples, u32 wanted, u32* keys, u32* bins, Scratch& s,
                                           Meanwhile meanwhile) {
  const u32 packs = samples / Vec, skip = row.lead() != 0;  // the first load may begin before the window
  const u32 there = (row.lead() + row.n) / Vec - skip;
  u32 low = ~0u, high = 0;
  // One load at a drawn place of each of `packs` equal stretches, so that no period of the data meets all of them.
  const auto sample = [&](u32 i) {
    const u64 jitter = static_cast<u64>(i * 2654435761u) * there >> 32;
    const u32 at = static_cast<u32>((static_cast<u64>(i) * there + jitter) >> (31 - __clz(packs))) + skip;
    Loaded<Vec> pack;
    pack.load(row.base + static_cast<u64>(at) * Vec);
    return pack;
  };
  u32 i = threadIdx.x;
  Loaded<Vec> pack{};
  if (i < packs) pack = sample(i);
  meanwhile();
  clear_bins(bins);
  if (threadIdx.x == 0) {
    s.above_count = s.tie_count = s.candidate_count = s.gathered = s.gathered_ties = s.high = 0;
    s.low = s.pivot = ~0u;
  }
  __syncthreads();
#pragma unroll 1
  while (i < packs) {
#pragma unroll
    for (int v = 0; v < Vec; ++v) {
      const u32 key = ordered_key(pack.bits(v));
      keys[v * packs + i] = key;
      low = min(low, key);
      high = max(high, key);
    }
    i += kThreads;
    if (i < packs) pack = sample(i);
  }
  widen(low, high, s);
  __syncthreads();
  const u32 few = 1 + wanted / 8;
  const Spread spread(s.low, s.high);
  if (spread.usable()) {
    count_spread(keys, samples, spread, bins);
    __syncthreads();
    find_bin(bins, wanted, s);
    clear_bins(bins);
    const bool found = s.count <= few;
    if (found && threadIdx.x == 0) s.pivot = spread.edge(s.digit);
    __syncthreads();
    if (found) return true;
  }
#pragma unroll 1
  for (u32 j = threadIdx.x; j < samples; j += kThreads) atomicAdd(&bins[opening_digit(keys[j])], 1u);
  __syncthreads();
  find_bin(bins, wanted, s);
  Threshold t(s.digit, 1);
  clear_bins(bins);
  __syncthreads();
#pragma unroll 1
  while (s.count > few && t.shift > 0) {
    count_tied(keys, samples, t, bins, [](u32) { return 0u; });
    __syncthreads();
    find_bin(bins, s.need, s);
    t.refine(s);
    clear_bins(bins);
    __syncthreads();
  }
#pragma unroll 1
  for (u32 j = threadIdx.x; j < samples; j += kThreads) {
    if (t.tied(keys[j], 0)) atomicMin(&s.pivot, keys[j]);
  }
  __syncthreads();
  return false;
}

// Where a block lists what reaches the pivot: `room` keys and indices, s.gathered of them, from the front; and from the end of the
// staged places s.gathered_ties indices of keys that equal it, of which no more than K are ever needed, and where indices do
// not matter, any. Where few equal it, those may be in the list too. Where there is space enough for a queue beside
// the list, the loop over the row only notes the loads in which something reaches the pivot.
struct List {
  u32* keys;
  u32* indices;
  u32* queue;
  u32 room;
  bool queues;

  // The list of a block alone, in the `candidates` pairs that it has. A queue must leave the list so much room that a pivot
  // can be 4.5 standard deviations from either end (sample_rank).
  template <int K>
  __device__ __forceinline__ static List make(const Params& p, u32 n, u32 samples, Shared<K>& sh) {
    const u32 some = 2 * p.candidates / 3;
    const float scale = static_cast<float>(samples) / static_cast<float>(n);
    const bool queues = kQuickValue && sqrtf(some * scale) - sqrtf(K * scale) >= 4.5f;
    const u32 room = queues ? some : p.candidates;
    return {sh.rest, sh.rest + room, sh.rest + 2 * room, room, queues};
  }
  __device__ __forceinline__ void add(u32 key, u32 index, Scratch& s) const {
    const u32 place = atomicAdd(&s.gathered, 1u);
    if (place < room) {
      keys[place] = key;
      indices[place] = index;
    }
  }
};

// Lists what reaches the pivot in row[begin, end). Barriers inside; none after.
template <int K, int Vec, u32 Deep>
__device__ __forceinline__ void list_reaching(const Row& row, u32 begin, u32 end, u32 pivot, const List& list,
                                              Shared<K>& sh) {
  Scratch& s = sh.scratch;
  if (list.queues) {
    const Stretch<Vec> stretch(row, begin, end);
    queue_reaching<Vec, Deep>(stretch, value_of(bits_of(pivot)), list.queue, list.room, &s.candidate_count);
    __syncthreads();
    const u32 queued = s.candidate_count;
    const auto look = [&](u32 bits, u32 at) {
      const u32 key = ordered_key(bits);
      if (key >= pivot && (!kRowStarts || at >= stretch.first)) list.add(key, at - row.lead(), s);
    };
#pragma unroll 1
    for (u32 i = threadIdx.x; i < min(queued, list.room); i += kThreads) {
      const u32 which = list.queue[i];
      Loaded<Vec> again;
      again.load(stretch.from + static_cast<u64>(which) * Vec);
#pragma unroll
      for (int v = 0; v < Vec; ++v) look(again.bits(v), stretch.base + which * Vec + v);
    }
    const u32 at = stretch.base + stretch.packs * Vec + threadIdx.x;  // what fills no load
    if (at < stretch.last) look(__ldg(row.base + at), at);
    if (queued > list.room && threadIdx.x == 0) atomicAdd(&s.gathered, list.room + 1);  // something is missing
    return;
  }
  for_each_reaching<Vec, Deep>(
      row, begin, end, pivot,
      [&](u32 key, u32 index) {
        if (kTies || key > pivot) {
          list.add(key, index, s);
        } else {
          const u32 place = atomicAdd(&s.gathered_ties, 1u);
          if (place < K) sh.staged[K - 1 - place] = static_cast<int>(index);
        }
      },
      [&] { return !kTies && ptx::load_shared(&s.gathered_ties) >= K; });
}

// Returns whether the row is done.
template <int K, int Vec>
__device__ __forceinline__ bool row_pass(const Row& row, const Params& p, u32 r, Shared<K>& sh) {
  Scratch& s = sh.scratch;
  const u32 samples = samples_of(row.n, p.candidates);
  List list = List::make(p, row.n, samples, sh);
  const bool few_equal =
      find_pivot<Vec>(row, samples, sample_rank(K, row.n, samples, list.room), sh.rest, sh.bins, s, [] {});
  list.queues = list.queues && few_equal;
  const u32 pivot = s.pivot;
  list_reaching<K, Vec, kDeep>(row, 0, row.n, pivot, list, sh);
  __syncthreads();
  const u32 kept = s.gathered, ties = min(s.gathered_ties, static_cast<u32>(K));
  __syncthreads();
  if (kept > list.room || kept + ties < K) return false;
  if (kept <= K) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kept; i += kThreads) sh.staged[i] = static_cast<int>(list.indices[i]);
    finish(row, K, out_of(p, r), sh);
    return true;
  }
  // Between the pivot and the largest sample; what lies beyond that is in the last bin.
  select_held(row, list.keys, kept, Spread(pivot, s.high), p, r, sh, [&](u32 i) { return list.indices[i]; });
  return true;
}
