// A long row by one block in one reading: a sample guesses a pivot that a few more than K keys reach, the reading keeps
// what reaches it, and the K best of these are the row's. The guess decides the time, never the result: what was kept
// is counted, and if it is too little or does not fit, the row goes the exact way (row_stream). Shared memory:
// Shared<K> and `candidates` pairs behind it. A pivot by sampling is Floyd and Rivest's idea (1975); one that is
// verified by counting is known from sample-select on GPUs (Ribizel and Anzt, 2020).
#pragma once
#include "finish.cuh"
#include "held.cuh"

// With less room than this, or fewer elements than two for a sample, guessing does not pay.
constexpr u32 kLeastCandidates = kSamples / 2;
// Rows of so many elements take twice the samples: keeping fewer is then worth more.
constexpr u32 kTwiceFrom = 1u << 17;
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

// Whether that rank is 4.5 standard deviations from either end.
__device__ __forceinline__ bool sample_is_safe(u32 k, u32 n, u32 samples, u32 room) {
  const float scale = static_cast<float>(samples) / static_cast<float>(n);
  return sqrtf(static_cast<float>(room) * scale) - sqrtf(static_cast<float>(k) * scale) >= 4.5f;
}

// How many samples a row of n elements is guessed from, where keys[0 .. 2 room) has space for them: as few as are safe,
// since each costs as much as reading many elements.
__device__ __forceinline__ u32 samples_of(u32 k, u32 n, u32 room) {
  u32 samples = n >= kTwiceFrom && kSamples <= room ? 2 * kSamples : kSamples;
  while (samples < 8 * kSamples && samples <= room && 4 * samples <= n && !sample_is_safe(k, n, samples, room)) {
    samples *= 2;
  }
  return samples;
}

// Loads of samples that a thread has under way at once.
constexpr u32 kDrawn = kCluster > 1 && kRegisters < 128 ? 1 : 4;

// A key that about `wanted` of the samples reach, and few more: where the bin begins that holds the wanted-th largest,
// the bins being made smaller until that one holds few; or, where many are equal, that value. Leaves it in Scratch,
// with the samples' bounds, and the bins cleared; returns whether few elements should equal it. `meanwhile` is called
// when the first samples are under way. No barrier is needed before.
template <int Vec, class Meanwhile>
__device__ __forceinline__ bool find_pivot(const Row& row, u32 samples, u32 wanted, u32* keys, u32* bins, Scratch& s,
                                           Meanwhile meanwhile) {
  // Samples come as eight neighbours where loads are narrow, for these lie in one sector of memory.
  constexpr u32 kNeighbours = Vec < 8 ? 8 / Vec : 1;
  const u32 packs = samples / Vec, skip = row.lead() != 0;  // the first load may begin before the window
  const u32 places = packs / kNeighbours, there = ((row.lead() + row.n) / Vec - skip) / kNeighbours;
  u32 low = ~0u, high = 0;
  // At a drawn place of each of equal stretches, so that no period of the data meets all of them.
  const auto sample = [&](u32 i) {
    const u32 place = i / kNeighbours;
    const u64 jitter = static_cast<u64>(place * 2654435761u) * there >> 32;
    const u32 at = static_cast<u32>((static_cast<u64>(place) * there + jitter) >> (31 - __clz(places)));
    Loaded<Vec> pack;
    pack.load(row.base + static_cast<u64>(at * kNeighbours + i % kNeighbours + skip) * Vec);
    return pack;
  };
  Loaded<Vec> drawn[kDrawn];
  const auto draw = [&](u32 first) {
#pragma unroll
    for (u32 d = 0; d < kDrawn; ++d) {
      drawn[d] = {};
      if (first + d * kThreads < packs) drawn[d] = sample(first + d * kThreads);
    }
  };
  draw(threadIdx.x);
  meanwhile();
  clear_bins(bins);
  if (threadIdx.x == 0) {
    s.tie_count = s.candidate_count = s.gathered = s.gathered_ties = s.high = 0;
    s.low = s.pivot = ~0u;
  }
  __syncthreads();
#pragma unroll 1
  for (u32 first = threadIdx.x; first < packs; first += kDrawn * kThreads) {
#pragma unroll
    for (u32 d = 0; d < kDrawn; ++d) {
      const u32 i = first + d * kThreads;
      if (i < packs) {
#pragma unroll
        for (int v = 0; v < Vec; ++v) {
          const u32 key = ordered_key(drawn[d].bits(v));
          keys[v * packs + i] = key;
          low = min(low, key);
          high = max(high, key);
        }
      }
    }
    if (first + kDrawn * kThreads < packs) draw(first + kDrawn * kThreads);
  }
  widen(low, high, s);
  __syncthreads();
  const u32 few = 1 + wanted / 8;
  const Spread spread = Spread::of_keys(s.low, s.high);
  const bool spreads = spread.usable();
  u32 bin = 0;
  if (spreads) {
    count_spread(keys, samples, spread, bins);
    __syncthreads();
    find_bin(bins, wanted, s);
    bin = s.digit;
    clear_bins(bins);
    const bool found = s.count <= few;
    if (found && threadIdx.x == 0) s.pivot = spread.edge(s.digit);
    __syncthreads();
    if (found) return true;
  } else if (threadIdx.x == 0) {
    s.need = wanted;
  }
  Interval in;
  const auto no_index = [](u32) { return 0u; };
  const HeldInBin<decltype(no_index)> drawn_keys{keys, samples, spread, spreads ? bin : kEveryBin, no_index};
  const u32 count = narrow(in, few, false, bins, s, Keys<decltype(drawn_keys)>{drawn_keys});
  clear_bins(bins);
  if (in.low == in.high) {
    if (threadIdx.x == 0) s.pivot = in.low;
  } else {  // a key that there is, and not NaN's that no NaN has
#pragma unroll 1
    for (u32 j = threadIdx.x; j < samples; j += kThreads) {
      if (in.contains(keys[j])) atomicMin(&s.pivot, keys[j]);
    }
  }
  __syncthreads();
  const float value = value_of(bits_of(s.pivot));
  return count <= few && value == value;
}

// How a loop over a row lists what reaches the pivot.
enum class Way {
  kOneByOne,  // as it comes: much may equal the pivot
  kQueue,     // notes the loads in which something reaches it, and looks at them afterwards: the loop does the least
  kPick,      // takes it out of the registers: nothing is read again
};

constexpr bool kPicks = kCluster == 1 || kRegisters >= 128;  // with fewer, registers would be spilled

// Where a loop waits for memory alone, because all SMs read at once and nothing stays in a cache, picking costs no time
// and reading again does. Elsewhere it is the other way round.
__device__ __forceinline__ Way way_of(const Params& p, bool few_equal) {
  if (!kQuickValue || !few_equal) return Way::kOneByOne;
  if (kShares) return Way::kPick;
  if (!kPicks) return Way::kQueue;
  const bool crowded = 4 * gridDim.x >= 3 * ptx::sms();
  return crowded && static_cast<u64>(p.rows) * p.width * sizeof(Logit) > kCachedBytes ? Way::kPick : Way::kQueue;
}

// Where a block lists what reaches the pivot: `room` keys and indices, s.gathered of them, from the front; and from the
// end of the staged places s.gathered_ties indices of keys that equal it, of which no more than K are ever needed, and
// where indices do not matter, any. Where few equal it, those may be in the list too.
struct List {
  u32* keys;
  u32* indices;
  u32* queue;  // of `room` loads
  u32 room;
  Way way;

  __device__ __forceinline__ void put(u32 place, u32 key, u32 index) const {
    if (place < room) {
      keys[place] = key;
      indices[place] = index;
    }
  }
  __device__ __forceinline__ void add(u32 key, u32 index, Scratch& s) const {
    put(atomicAdd(&s.gathered, 1u), key, index);
  }
};

// Lists what reaches the pivot in row[begin, end). Barriers inside; none after.
template <int K, int Vec, u32 Deep>
__device__ __forceinline__ void list_reaching(const Row& row, u32 begin, u32 end, u32 pivot, const List& list,
                                              Shared<K>& sh) {
  Scratch& s = sh.scratch;
  if (kQuickValue && list.way != Way::kOneByOne) {
    const Stretch<Vec> stretch(row, begin, end);
    const float value = value_of(bits_of(pivot));
    const auto look = [&](u32 bits, u32 at) {
      const u32 key = ordered_key(bits);
      if (key >= pivot && (!kRowStarts || at >= stretch.first)) list.add(key, at - row.lead(), s);
    };
    const u32 at = stretch.base + stretch.packs * Vec + threadIdx.x;  // what fills no load
    if (at < stretch.last) look(__ldg(row.base + at), at);
    if (kPicks && list.way == Way::kPick) {
      pick_reaching<Vec, Deep>(stretch, value, &s.gathered, [&](u32 place, u32 bits, u32 position) {
        list.put(place, ordered_key(bits), position - row.lead());
      });
      return;
    }
    if constexpr (kShares) return;
    queue_reaching<Vec, Deep>(stretch, value, list.queue, list.room, &s.candidate_count);
    __syncthreads();
    const u32 queued = s.candidate_count;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < min(queued, list.room); i += kThreads) {
      const u32 which = list.queue[i];
      Loaded<Vec> again;
      again.load(stretch.from + static_cast<u64>(which) * Vec);
#pragma unroll
      for (int v = 0; v < Vec; ++v) look(again.bits(v), stretch.base + which * Vec + v);
    }
    if (queued > list.room && threadIdx.x == 0) atomicAdd(&s.gathered, list.room + 1);  // something is missing
    return;
  }
  for_each_reaching<Vec, Deep>(
      row, begin, end, pivot,
      [&](u32 key, u32 index) {
        if (kTies || key > pivot) {
          list.add(key, index, s);
        } else if (kTies || ptx::load_shared(&s.gathered_ties) < K) {  // or all would queue for the counter
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
  // A queue takes the place of a third of the list.
  const u32 beside = way_of(p, true) == Way::kQueue ? 2 * p.candidates / 3 : p.candidates;
  const u32 samples = samples_of(K, row.n, beside);
  const bool queues = beside < p.candidates && sample_is_safe(K, row.n, samples, beside);
  const u32 room = queues ? beside : p.candidates;
  const bool few_equal =
      find_pivot<Vec>(row, samples, sample_rank(K, row.n, samples, room), sh.rest, sh.bins, s, [] {});
  const Way way = way_of(p, few_equal);
  const List list{sh.rest, sh.rest + room, sh.rest + 2 * room, room, way == Way::kQueue && !queues ? Way::kPick : way};
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
  select_held(row, list.keys, kept, Spread::of_keys(pivot, s.high), p, r, sh, [&](u32 i) { return list.indices[i]; });
  return true;
}
