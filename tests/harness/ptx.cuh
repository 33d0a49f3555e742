// Stands in for cuda_src/ptx.cuh: the same functions, kept by memory.h and machine.cpp.
#pragma once
#include "params.cuh"

namespace ptx {

u32 load_acquire(const u32* p);
u32 load_relaxed(const u32* p);
void store_release(u32* p, u32 v);
void store_relaxed(u32* p, u32 v);
void add_relaxed(u32* p, u32 v);
void add_release(u32* p, u32 v);
u32 fetch_add_relaxed(u32* p, u32 v);
void pause();
void wait_for_predecessor();
inline void let_successor_begin() {}
inline u32 sms() { return 4; }
inline u32 max_of_pairs(u32 a, u32 b) {
  const auto larger = [](u32 x, u32 y) {
    const auto value = [](u32 bits) {
      const u32 word = bits << 16;
      float f;
      __builtin_memcpy(&f, &word, 4);
      return f;
    };
    if (value(x) != value(x)) return kNanHighest ? 0x7fffu : y;
    if (value(y) != value(y)) return kNanHighest ? 0x7fffu : x;
    return value(x) < value(y) ? y : x;
  };
  return larger(a & 0xffffu, b & 0xffffu) | larger(a >> 16, b >> 16) << 16;
}
[[noreturn]] void give_up(u32 what, u32 wanted, u32 seen);

u32 load_shared(const u32* p);

// Of clusters: a barrier in two halves, and places in the shared memory of block `rank`.
u32 cluster_rank();
void cluster_arrive(HERE);
void cluster_arrive_relaxed(HERE);
void cluster_wait(HERE);
u32 remote_fetch_add(u32* own, u32 rank, u32 v);
void remote_add(u32* own, u32 rank, u32 v);
void mail_open(u64* box, u32 senders);
void mail_announce(u64* box, u32 rank, u32 bytes);
void mail_send(const uint4* own, u32 rank, uint4 v, u64* box);
void mail_copy(const uint4* own, u32 rank, u64* box);
void mail_wait(u64* box, u32 turn, HERE);
void remote_store(u32* own, u32 rank, u32 v);
u32 remote_load(const u32* own, u32 rank);

inline u32 lanes_below() { return (1u << threadIdx.x % 32) - 1; }
template <class T>
T* opaque(T* p) {
  return p;
}
template <class T>
T& shared_as(unsigned char* dynamic) {
  return *reinterpret_cast<T*>(dynamic);
}
inline u32 sum_upto(u32 v, HERE) {
  const unsigned* given = machine::exchange(v, file, line);
  u32 sum = 0;
  for (u32 lane = 0; lane <= threadIdx.x % 32; ++lane) sum += given[lane];
  return sum;
}

}  // namespace ptx
