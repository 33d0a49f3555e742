// How the blocks of one group meet, on a workspace whose contents nobody prepared. See README.md for the proofs. In
// launches made by cuLaunchCooperativeKernel only: every block of the group is resident, so each wait below ends.
// Shared memory: none. All threads of a block must call each function.
#pragma once
#include "ptx.cuh"

enum class Wait : u32 { kHello, kAgain, kGo, kBarrier };

// Every wait of every kernel is this loop: until seen() is wanted. A debug build bounds it: it says what it waits for
// and ends the launch with an error, so that a hang becomes a message.
template <class Done>
__device__ __forceinline__ void wait_until(Wait what, const u32* word, u32 wanted, Done done) {
#ifdef DRVTOPK_WAIT_LIMIT
  for (u32 looks = 0; !done(); ++looks) {
    if (looks == DRVTOPK_WAIT_LIMIT) ptx::give_up(static_cast<u32>(what), wanted, ptx::load_relaxed(word));
    ptx::pause();
  }
#else
  while (!done()) ptx::pause();
#endif
}

// One group's part of the workspace: a line for the barrier, kRounds published histograms, then two words a block, then
// the members of one row where a single block has to sort them.
struct GroupState {
  u32* words;
  u32 group;

  __device__ __forceinline__ u32* arrivals() const { return words; }
  __device__ __forceinline__ u32* round(u32 r) const { return words + kStateLineWords + r * kRoundWords; }
  // What the leader (rank 0) says to a block, and what the block answers.
  __device__ __forceinline__ u32* said(u32 rank) const {
    return words + kStateLineWords + kRounds * kRoundWords + rank;
  }
  __device__ __forceinline__ u32* echo(u32 rank) const { return said(rank) + group; }

  __device__ __forceinline__ u32* members() const { return said(0) + 2 * group; }

  static __device__ __forceinline__ u32 words_of(u32 group) {
    const u32 used = kStateLineWords + kRounds * kRoundWords + 2 * group + (kSorts ? DRVTOPK_K : 0);
    return (used + kStateLineWords - 1) / kStateLineWords * kStateLineWords;
  }
};

constexpr u32 kHello = 0, kAgain = 1, kGo = 2;

// First half of the meeting, before the group's first shared row is loaded: the leader clears the state.
__device__ __forceinline__ void meet_begin(const GroupState& g, u32 rank) {
  if (rank == 0) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kStateLineWords + kRounds * kRoundWords; i += kThreads) {
      ptx::store_relaxed(g.words + i, 0);
    }
#pragma unroll 1
    for (u32 r = 1 + threadIdx.x; r < g.group; r += kThreads) ptx::store_relaxed(g.said(r), kHello);
  } else if (threadIdx.x == 0) {
    ptx::store_relaxed(g.echo(rank), kHello);
  }
}

// Second half, at least one block-wide barrier after the first: on return the cleared state is visible to this block,
// whatever the workspace held. The barrier orders all threads' clearing before each one's kGo.
// The leader believes a block only after two different answers in a row, a block believes kGo only after it answered
// kAgain: a stale word can imitate one of them, not the change from one to the next.
__device__ __forceinline__ void meet_finish(const GroupState& g, u32 rank) {
  if (rank == 0) {
#pragma unroll 1
    for (u32 r = 1 + threadIdx.x; r < g.group; r += kThreads) {
      wait_until(Wait::kHello, g.echo(r), kHello, [&] { return ptx::load_relaxed(g.echo(r)) == kHello; });
      ptx::store_relaxed(g.said(r), kAgain);
    }
#pragma unroll 1
    for (u32 r = 1 + threadIdx.x; r < g.group; r += kThreads) {
      wait_until(Wait::kAgain, g.echo(r), kAgain, [&] { return ptx::load_relaxed(g.echo(r)) == kAgain; });
    }
#pragma unroll 1
    for (u32 r = 1 + threadIdx.x; r < g.group; r += kThreads) ptx::store_release(g.said(r), kGo);
  } else {
    if (threadIdx.x == 0) {
      u32 answered = kHello;
      bool met = false;
      wait_until(Wait::kGo, g.said(rank), kGo, [&] {
        const u32 word = ptx::load_acquire(g.said(rank));
        if (word == kGo && met) return true;
        if (word <= kAgain && word != answered) {
          ptx::store_relaxed(g.echo(rank), word);
          answered = word;
        }
        met = met || word == kAgain;
        return false;
      });
    }
    __syncthreads();
  }
}

// All blocks of the group have arrived, and what each wrote before is visible to all after. `target` counts arrivals
// since the meeting and may wrap around.
__device__ __forceinline__ void group_barrier(const GroupState& g, u32& target) {
  target += g.group;
  __syncthreads();  // every thread's writes come before the arrival that publishes them
  if (threadIdx.x == 0) {
    ptx::add_release(g.arrivals(), 1);
    wait_until(Wait::kBarrier, g.arrivals(), target,
               [&] { return static_cast<int>(ptx::load_acquire(g.arrivals()) - target) >= 0; });
  }
  __syncthreads();
}
