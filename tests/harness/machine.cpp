// A GPU of `slots` resident blocks in one OS thread: fibers, a scheduler whose every choice is drawn from a seed, and a
// verdict when nothing can move any more. Reads a request on stdin, writes the results on stdout, complains on stderr.
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fibers.h"
#include "memory.h"
#include "races.h"
#include "shim.h"

using u32 = unsigned;
using u64 = unsigned long long;

void run_kernel(const void* params);

Dim threadIdx, blockIdx, gridDim;

namespace {

constexpr u32 kThreads = HARNESS_THREADS;
constexpr std::size_t kStack = HARNESS_STACK;

// What the runner sends, then: logits, lengths, row starts, page table, workspace (bytes as counted here).
struct Request {
  u64 seed, logits_bytes, lengths_bytes, starts_bytes, table_bytes, out_bytes, values_bytes, workspace_bytes;
  u64 logits_stride, out_stride, values_stride, table_stride;
  u32 offset, grid, slots, smem_bytes, rows, width, group, groups, chunk, candidates, cooperative;
  u32 item_bytes, index_bytes, page_size, rows_per_table, vec, k, cluster, pdl;
};
static_assert(sizeof(Request) == 12 * 8 + 19 * 4 + 4, "the runner packs this");

struct Params {  // a kernel without options takes the first 80 bytes
  const unsigned char* logits;
  const int* lengths;
  unsigned char* out;
  void* workspace;
  u64 logits_stride, out_stride;
  u32 rows, width, group, groups, chunk, candidates, cooperative, reserved;
  unsigned char* values;
  const int *row_starts, *page_table;
  u64 values_stride, page_table_stride;
  u32 page_size, rows_per_table;
};
static_assert(sizeof(Params) == 128, "params.cuh");

#ifdef HARNESS_SANITIZED  // the sanitizers watch the ends of all memory, and no hook tells of plain accesses
constexpr bool kWatched = false;
#else
constexpr bool kWatched = true;
#endif
constexpr std::size_t kGuard = kWatched ? 16384 : 0;  // bytes behind a block's shared memory, where nobody may go

enum Status { kDone = 0, kDeadlock = 3, kFault = 4 };

struct Random {  // splitmix64
  u64 state;
  u64 next() {
    u64 z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  u32 below(u32 n) { return static_cast<u32>((next() >> 32) * n >> 32); }
};

enum State : unsigned char { kReady, kBarrier, kExchange, kCluster, kMail, kExited };

struct Fiber {
  Context context;
  State state;
  const char* file;  // where it waits
  int line;
  bool paused;
  int looked_at;  // the last workspace word it loaded (-1: none), and what it saw
  u32 saw;
  u32 arrivals, waits;  // at cluster barriers
  u32 mails;            // turns of mail that it has waited for
  bool begun;           // it knows that the launch before this one has ended
  Learnt learnt;
};

struct Place {
  const char* file;
  int line;
};

struct Warp {
  u32 given[2][32];  // a lane may begin the next exchange before the others have read this one
  u32 arrived, turn;
  const char* file;
  int line;
  Place arrives, waits;  // where its lanes were at the last cluster barrier
  u32 arrivals, waited;  // which one that was
};

// Where the other blocks of a cluster send to one.
struct Mailbox {
  const u64* box = nullptr;        // null: not opened
  u32 senders = 0, announced = 0;  // of this turn
  long long missing = 0;           // bytes that were announced and have not come, or the other way round
  u32 turns = 0;                   // that are over
};

struct Block {
  bool resident = false;
  u32 index = 0;
  u32 waiting = 0, exited = 0, interval = 0, stall = 0;
  std::vector<Fiber> fibers{kThreads};
  std::vector<u32> ready;
  Warp warps[kThreads / 32];
  const char* file = "its begin";  // of the last barrier
  int line = 0;
  std::vector<unsigned char> shared;
  Races races;
  ClusterRaces cluster_races;
  std::vector<bool> relaxed;      // which of its arrivals at cluster barriers release nothing
  u32 acquired = 0;               // cluster barriers that some thread had waited for at the last barrier
  ClusterRaces::Touch reached{};  // the last access from another block, by the cluster barrier that releases it
  bool was_reached = false;
  Mailbox mail;
  u32 mails = 0;  // turns of mail that some thread had waited for at the last barrier
  View view;      // of the workspace, at the last barrier
  unsigned char* stacks = nullptr;
};

Request request;
Params params;
Random choice;
std::unique_ptr<Memory<Random>> memory;
struct Cluster {
  u32 met = 0, arrived = 0;  // barriers that are complete, and the threads at the next one
};
std::vector<Cluster> clusters;  // of request.cluster slots each
std::vector<Block> slots;
Block* block;    // the running one
u64 bytes_read;  // of logits
u32 self;        // the running thread of it
Context scheduler;
// What a launch gives back: the first k elements of each row may be written once, as a whole.
struct Output {
  const char* name;
  std::vector<unsigned char> bytes;
  u64 stride;
  u32 item;
  std::vector<bool> written;
};
Output outputs[2];
u64 idle;   // turns of blocks since anything changed that somebody could wait for
u32 steps;  // left of the running block's turn

[[noreturn]] void fail(Status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::_Exit(status);
}

const char* name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void leave() { Context::change(block->fibers[self].context, scheduler); }

void wake(Block& b, u32 thread) {
  b.fibers[thread].state = kReady;
  b.ready.push_back(thread);
}
void wake(u32 thread) { wake(*block, thread); }

void wait(State state, const char* file, int line) {
  Fiber& fiber = block->fibers[self];
  fiber.state = state, fiber.file = file, fiber.line = line;
  leave();
}

// Sometimes (one time in `odds`) the whole block stands still for a while.
void fall_behind(u32 odds) {
  if (choice.below(odds) == 0) block->stall = choice.below(200);
}

// Lets others run and comes back.
void yield() {
  wake(self);
  leave();
}

bool clustered() { return request.cluster > 1; }

// The blocks of a cluster stand in consecutive slots.
Cluster& cluster_of(const Block& b) { return clusters[static_cast<std::size_t>(&b - slots.data()) / request.cluster]; }
Block* cluster_blocks(const Block& b) {
  return slots.data() + static_cast<std::size_t>(&b - slots.data()) / request.cluster * request.cluster;
}

// The cluster barrier that releases what was done: the thread's next one, or the first after it that releases.
u32 released(const ClusterRaces::Touch& touch) {
  const std::vector<bool>& relaxed = cluster_blocks(*block)[touch.block % request.cluster].relaxed;
  u32 number = touch.arrivals + 1;
  while (number < relaxed.size() && relaxed[number]) ++number;
  return number;
}

// The cluster barriers behind which the running thread is: those it waited for, and those that its block did.
u32 acquired() { return std::max(block->fibers[self].waits, block->acquired); }

std::string thread_name(u32 thread) {
  return thread == Races::kSeveral ? "several" : "thread " + std::to_string(thread);
}

// The block's shared memory goes with its last thread.
void check_nobody_reaches() {
  u32 last = 0;
  for (const Fiber& f : block->fibers) last = std::max(last, f.waits);
  if (block->was_reached && released(block->reached) > last)
    fail(kFault, "block %u ends after %u cluster barriers, but block %u %s reaches it after %u", block->index, last,
         block->reached.block, thread_name(block->reached.thread).c_str(), block->reached.arrivals);
  if (block->mail.announced || block->mail.missing) fail(kFault, "block %u ends while mail is under way", block->index);
}

void fiber_entry() {
  run_kernel(&params);
  idle = 0;
  if (clustered()) {
    if (block->exited + 1 == kThreads) check_nobody_reaches();
    fall_behind(kThreads / 2);
  }
  block->fibers[self].state = kExited;
  ++block->exited;
  leave();
}

void begin(Block& b, u32 index) {
  b.resident = true, b.index = index;
  b.waiting = b.exited = b.interval = b.stall = 0;
  b.shared.assign(request.smem_bytes + kGuard, 0xA5);
  b.races.reset(request.smem_bytes);
  if (clustered()) b.cluster_races.reset(request.smem_bytes);
  b.acquired = b.mails = 0, b.was_reached = false;
  b.mail = {};
  b.relaxed.clear();
  b.view.assign(memory->size(), 0);
  if (!b.stacks) {
    void* memory =
        mmap(nullptr, kStack * kThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail(kFault, "no memory for %u stacks", kThreads);
    b.stacks = static_cast<unsigned char*>(memory);
  }
  b.ready.clear();
  for (Warp& warp : b.warps) warp.arrived = warp.turn = warp.arrivals = warp.waited = 0;
  for (u32 t = 0; t < kThreads; ++t) {
    b.fibers[t].state = kReady, b.fibers[t].paused = false, b.fibers[t].looked_at = -1;
    b.fibers[t].arrivals = b.fibers[t].waits = b.fibers[t].mails = 0;
    b.fibers[t].begun = !request.pdl;
    b.fibers[t].learnt.clear();
    b.fibers[t].context.begin(b.stacks + t * kStack, kStack, fiber_entry);
    b.ready.push_back(t);
  }
}

// Runs some fibers of one block: of those that became ready last, or of all, in an order drawn anew each time.
void run(Block& b) {
  static const u32 kSteps[] = {1, 8, 64, 1024, 16384}, kAmong[] = {1, 32, kThreads};
  steps = kSteps[choice.below(5)];
  const u32 among = kAmong[choice.below(3)];
  ++idle;
  block = &b;
  blockIdx.x = b.index;
  while (steps && !b.stall && !b.ready.empty()) {
    --steps;
    const u32 count = static_cast<u32>(b.ready.size()), at = count - 1 - choice.below(min(among, count));
    self = b.ready[at];
    b.ready[at] = b.ready.back();
    b.ready.pop_back();
    threadIdx.x = self;
    Context::change(scheduler, b.fibers[self].context);
  }
}

// Global memory may still be that of the launch before.
void check_begun() {
  if (!block->fibers[self].begun)
    fail(kFault, "block %u thread %u goes to memory and has not waited for the launch before", block->index, self);
}

// An access of the running thread to a word of a block's shared memory: its own block's, or one of its cluster's, perhaps by
// mail of that turn (from one on).
void touch_word(Block& owner, std::size_t word, Access access, u32 mail = 0) {
  static const char* const verbs[] = {"reads", "writes", "adds to"};
  const auto complain = [&](const std::string& what) {
    const std::string whose = &owner == block ? "" : " of block " + std::to_string(owner.index);
    fail(kFault, "block %u thread %u %s shared %zu%s%s", block->index, self, verbs[static_cast<int>(access)], word,
         whose.c_str(), what.c_str());
  };
  const auto race = [&](u32 rival) {
    complain(" in a race with " + thread_name(rival) + ", no barrier since " + name(block->file) + ":" +
             std::to_string(block->line));
  };
  if (word >= owner.races.words()) complain(", past the end");
  if (owner.races.unwritten(word, access)) complain(", which nobody wrote");
  if (!clustered()) {
    const u32 rival = owner.races.rival(word, access, self, block->interval);
    if (rival != Races::kNobody) race(rival);
    return;
  }
  const ClusterRaces::Touch now{block->index, self, block->interval, block->fibers[self].arrivals, access, mail};
  const u32 mails = std::max(block->fibers[self].mails, block->mails);
  if (const auto* rival = owner.cluster_races.rival(word, now, acquired(), mails, released)) {
    if (rival->block == block->index) race(rival->thread);
    complain(" in a race with block " + std::to_string(rival->block) + " " + thread_name(rival->thread) + " after " +
             std::to_string(rival->arrivals) + " cluster arrivals of that, " + std::to_string(acquired()) +
             " waited for");
  }
}

// Every access of the device code to memory comes here. It may write to its block's shared memory, to its own stack, and
// once to each place of the output.
void touch(const void* address, std::size_t bytes, Access access) {
  if (!kWatched || !block) return;
  const auto offset = [&](const void* from) {
    return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(from);
  };
  if (const std::size_t at = offset(block->shared.data()); at < request.smem_bytes + kGuard) {
    for (std::size_t word = at / 4; word <= (at + bytes - 1) / 4; ++word) touch_word(*block, word, access);
  } else if (access != Access::kRead && offset(block->stacks + self * kStack) >= kStack) {
    check_begun();
    for (Output& o : outputs) {
      const std::size_t at = offset(o.bytes.data());
      if (at >= o.bytes.size()) continue;
      const std::size_t place = at / o.item;
      if (at % o.item || bytes != o.item)
        fail(kFault, "block %u thread %u writes %zu bytes at byte %zu of %s", block->index, self, bytes, at, o.name);
      if (place % o.stride >= request.k)
        fail(kFault, "block %u thread %u writes %s[%zu], which lies between two rows", block->index, self, o.name,
             place);
      if (o.written[place])
        fail(kFault, "block %u thread %u writes %s[%zu], which was written before", block->index, self, o.name, place);
      o.written[place] = true;
      return;
    }
    fail(kFault, "block %u thread %u writes memory that is not its own", block->index, self);
  }
}

// What the threads of a block wait for. The runner gives workspace words their names.
std::string waits_for(const Fiber& f) {
  char text[160];
  if (f.state == kExited) return "finished";
  if (f.state == kCluster)
    std::snprintf(text, sizeof text, "in cluster barrier %u at %s:%d", f.arrivals, name(f.file), f.line);
  else if (f.state != kReady)
    std::snprintf(text, sizeof text, "at %s:%d", name(f.file), f.line);
  else if (f.looked_at >= 0)
    std::snprintf(text, sizeof text, "polling word %d which is %u", f.looked_at, f.saw);
  else
    return "ready";
  return text;
}

void describe() {
  std::sort(slots.begin(), slots.end(), [](const Block& a, const Block& b) { return a.index < b.index; });
  for (Block& b : slots) {
    if (clustered() && !b.resident && b.exited == kThreads) std::fprintf(stderr, "block %u finished\n", b.index);
    if (!b.resident) continue;
    std::fprintf(stderr, "block %u after %u barriers: threads", b.index, b.interval);
    for (u32 t = 0, next; t < kThreads; t = next) {
      const std::string what = waits_for(b.fibers[t]);
      for (next = t + 1; next < kThreads && waits_for(b.fibers[next]) == what;) ++next;
      std::fprintf(stderr, " %u-%u %s;", t, next - 1, what.c_str());
    }
    std::fputc('\n', stderr);
  }
}

}  // namespace

namespace machine {

unsigned char* shared_memory() { return block->shared.data(); }

void check_logits(const void* from, unsigned bytes) {
  check_begun();
  if (params.logits_stride < params.width) return;  // rows that overlap: no telling which one is read
  const u64 at = (static_cast<const unsigned char*>(from) - params.logits) / request.item_bytes;
  const u64 row = at / std::max(params.logits_stride, u64{1}), column = at - row * params.logits_stride;
  const auto clamped = [&](const int* given, u64 most) {
    return given[row] <= 0 ? u64{0} : std::min<u64>(given[row], most);
  };
  const bool there = row < params.rows;
  const u64 start = there && params.row_starts ? clamped(params.row_starts, params.width) : 0;
  const u64 n = there && params.lengths ? clamped(params.lengths, params.width - start) : params.width - start;
  // Before a window only what lies in the same load may be read, also an element at a time.
  const u64 count = bytes / request.item_bytes, vec = request.vec;
  bytes_read += bytes;
  if (!there || column < start / vec * vec || column + count > start + n ||
      reinterpret_cast<std::uintptr_t>(from) % bytes)
    fail(kFault, "block %u thread %u reads %u bytes at column %llu of row %llu, which is %llu from %llu on",
         block->index, self, bytes, column, row, n, start);
}

void check_integer(const int* from) {
  check_begun();
  const auto inside = [&](const int* array, u64 bytes) { return array && static_cast<u64>(from - array) < bytes / 4; };
  if (!inside(params.lengths, request.lengths_bytes) && !inside(params.row_starts, request.starts_bytes) &&
      !inside(params.page_table, request.table_bytes))
    fail(kFault, "block %u thread %u reads integers that are not there", block->index, self);
}

void barrier(const char* file, int line) {
  idle = 0;
  if (++block->waiting < kThreads) {
    wait(kBarrier, file, line);
    return;
  }
  block->waiting = 0;
  ++block->interval;
  block->file = file, block->line = line;
  for (u32 t = 0; t < kThreads; ++t) {
    block->fibers[t].learnt.add_to(block->view);
    block->fibers[t].learnt.clear();
    block->acquired = std::max(block->acquired, block->fibers[t].waits);
    block->mails = std::max(block->mails, block->fibers[t].mails);
    if (t != self) wake(t);
  }
  fall_behind(32);
  yield();
}

const unsigned* exchange(unsigned value, const char* file, int line) {
  idle = 0;
  Warp& warp = block->warps[self / 32];
  const u32 turn = warp.turn;
  unsigned* given = warp.given[turn & 1];
  given[self % 32] = value;
  if (warp.arrived && (warp.line != line || warp.file != file))
    fail(kFault, "block %u warp %u is at %s:%d and at %s:%d", block->index, self / 32, name(file), line,
         name(warp.file), warp.line);
  warp.file = file, warp.line = line;
  if (++warp.arrived < 32) {
    wait(kExchange, file, line);
    return given;
  }
  warp.arrived = 0;
  ++warp.turn;
  for (u32 t = self / 32 * 32; t < self / 32 * 32 + 32; ++t) {
    if (t != self) wake(t);
  }
  return given;
}

unsigned shared_update(unsigned* word, Update update, unsigned value) {
  touch(word, 4, Access::kAtomic);
  const unsigned old = *word;
  *word = update == Update::kAdd ? old + value : update == Update::kMin ? std::min(old, value) : std::max(old, value);
  return old;
}

}  // namespace machine

namespace ptx {

namespace {

u32 word_of(const u32* p) {
  const std::ptrdiff_t word = p - static_cast<const u32*>(params.workspace);
  if (word < 0 || word >= static_cast<std::ptrdiff_t>(memory->size()))
    fail(kFault, "block %u thread %u goes to workspace word %td of %zu", block->index, self, word, memory->size());
  return static_cast<u32>(word);
}

Learnt& learnt() { return block->fibers[self].learnt; }

// Others run first: any, and before what a release publishes sometimes many.
void before_write(bool release) {
  fall_behind(release ? 4 : 256);
  yield();
  idle = 0;
}

u32 load(const u32* p, bool acquire) {
  Fiber& fiber = block->fibers[self];
  if (!fiber.paused) idle = 0;  // else it looks again, as it may do for ever
  fiber.paused = false;
  yield();
  fiber.looked_at = static_cast<int>(word_of(p));
  return fiber.saw = memory->load(word_of(p), acquire, block->view, fiber.learnt);
}
void store(u32* p, u32 v, bool release) {
  before_write(release);
  memory->store(word_of(p), v, release, block->view, learnt());
}
u32 add(u32* p, u32 v, bool release) {
  before_write(release);
  return memory->add(word_of(p), v, release, block->view, learnt());
}

}  // namespace

void wait_for_predecessor() {
  fall_behind(kThreads);
  yield();
  block->fibers[self].begun = true;
}

u32 cluster_rank() { return block->index % request.cluster; }

namespace {

// All lanes of a warp come to the same half of the same barrier.
void check_aligned(Place& place, u32& last, u32 number, const char* file, int line) {
  if (last == number && (place.line != line || place.file != file))
    fail(kFault, "block %u warp %u is at %s:%d and at %s:%d", block->index, self / 32, name(file), line,
         name(place.file), place.line);
  last = number, place = {file, line};
}

void arrive(bool release, const char* file, int line) {
  idle = 0;
  yield();
  Fiber& fiber = block->fibers[self];
  if (fiber.arrivals != fiber.waits)
    fail(kFault, "block %u thread %u arrives at %s:%d and has not waited since it arrived", block->index, self,
         name(file), line);
  const u32 number = ++fiber.arrivals;
  Warp& warp = block->warps[self / 32];
  check_aligned(warp.arrives, warp.arrivals, number, file, line);
  if (block->relaxed.size() <= number) {  // the first thread of the block
    block->relaxed.resize(number + 1);
    fall_behind(8);
  }
  if (!release) block->relaxed[number] = true;
  Cluster& cluster = cluster_of(*block);
  if (++cluster.arrived == request.cluster * kThreads) {
    cluster.arrived = 0;
    ++cluster.met;
    Block* const blocks = cluster_blocks(*block);
    for (u32 rank = 0; rank < request.cluster; ++rank) {
      for (u32 t = 0; t < kThreads; ++t) {
        if (blocks[rank].fibers[t].state == kCluster) wake(blocks[rank], t);
      }
      if (choice.below(4) == 0) blocks[rank].stall = choice.below(400);
    }
  }
  yield();
}

// The word of block `rank` that lies where `own` does in this block: others run first, then it is reached at once.
u32* reach(const u32* own, u32 rank, Access access, bool mail = false) {
  fall_behind(1024);
  yield();
  idle = 0;
  const u64 word = (reinterpret_cast<std::uintptr_t>(own) - reinterpret_cast<std::uintptr_t>(block->shared.data())) / 4;
  const auto complain = [&](const char* what) {
    fail(kFault, "block %u thread %u reaches for shared %lld of rank %u, %s", block->index, self,
         static_cast<long long>(word), rank, what);
  };
  if (rank >= request.cluster) complain("which the cluster does not have");
  if (word >= request.smem_bytes / 4 || reinterpret_cast<std::uintptr_t>(own) % 4) complain("which is no word of it");
  Block& there = cluster_blocks(*block)[rank];
  if (&there != block) {
    if (there.exited == kThreads) complain("which has ended");
    if (!acquired()) complain("which may not have begun: the cluster has not met");
    const ClusterRaces::Touch now{block->index, self, block->interval, block->fibers[self].arrivals, access};
    if (!mail && (!there.was_reached || there.reached.arrivals <= now.arrivals)) there.reached = now;
    there.was_reached |= !mail;
  }
  if (kWatched) touch_word(there, word, access, mail ? there.mail.turns + 1 : 0);
  return reinterpret_cast<u32*>(there.shared.data()) + word;
}

// The box of block `rank` that lies where `box` does in this block, and is to be open.
Mailbox& mailbox(const u64* box, u32 rank) {
  fall_behind(1024);
  yield();
  idle = 0;
  const u64 at = reinterpret_cast<std::uintptr_t>(box) - reinterpret_cast<std::uintptr_t>(block->shared.data());
  Block& there = cluster_blocks(*block)[rank % request.cluster];
  const auto complain = [&](const char* what) {
    fail(kFault, "block %u thread %u sends mail to rank %u, %s", block->index, self, rank, what);
  };
  if (rank >= request.cluster) complain("which the cluster does not have");
  if (there.exited == kThreads) complain("which has ended");
  if (!acquired()) complain("which may not have begun: the cluster has not met");
  if (there.mail.box != reinterpret_cast<const u64*>(there.shared.data() + at)) complain("which has no open box there");
  return there.mail;
}

void end_turn(Mailbox& mail, u32 rank) {
  if (mail.announced < mail.senders || mail.missing) return;
  mail.announced = 0;
  ++mail.turns;
  Block& there = cluster_blocks(*block)[rank];
  for (u32 t = 0; t < kThreads; ++t) {
    if (there.fibers[t].state == kMail) wake(there, t);
  }
}

}  // namespace

void mail_open(u64* box, u32 senders) {
  if (block->mail.box) fail(kFault, "block %u thread %u opens its mail again", block->index, self);
  block->mail.box = box, block->mail.senders = senders;
}
void mail_announce(u64* box, u32 rank, u32 bytes) {
  Mailbox& mail = mailbox(box, rank);
  if (mail.announced == mail.senders)
    fail(kFault, "block %u thread %u announces mail to rank %u, as all have in this turn", block->index, self, rank);
  ++mail.announced;
  mail.missing += bytes;
  end_turn(mail, rank);
}
void mail_send(const uint4* own, u32 rank, uint4 v, u64* box) {
  Mailbox& mail = mailbox(box, rank);
  const u32 words[] = {v.x, v.y, v.z, v.w};
  if (reinterpret_cast<std::uintptr_t>(own) % 16)
    fail(kFault, "block %u thread %u sends to a place that is no multiple of 16 bytes", block->index, self);
  for (u32 i = 0; i < 4; ++i) *reach(reinterpret_cast<const u32*>(own) + i, rank, Access::kWrite, true) = words[i];
  mail.missing -= 16;
  end_turn(mail, rank);
}
void mail_copy(const uint4* own, u32 rank, u64* box) {
  const u64 first =
      (reinterpret_cast<std::uintptr_t>(own) - reinterpret_cast<std::uintptr_t>(block->shared.data())) / 4;
  for (u64 word = first; kWatched && word < first + 4; ++word) {
    if (block->races.written(word)) touch_word(*block, word, Access::kRead);  // what pads the last 16 bytes need not be
  }
  mail_send(own, rank, *own, box);
}
void mail_wait(u64* box, u32 turn, const char* file, int line) {
  idle = 0;
  yield();
  Mailbox& mail = block->mail;
  if (mail.box != box) fail(kFault, "block %u thread %u waits for mail where no box is open", block->index, self);
  if (mail.turns != turn && mail.turns != turn + 1)
    fail(kFault, "block %u thread %u waits for turn %u of its mail in turn %u", block->index, self, turn, mail.turns);
  while (mail.turns == turn) wait(kMail, file, line);
  block->fibers[self].mails = turn + 1;
  fall_behind(kThreads);
  yield();
}

void cluster_arrive(const char* file, int line) { arrive(true, file, line); }
void cluster_arrive_relaxed(const char* file, int line) { arrive(false, file, line); }
void cluster_wait(const char* file, int line) {
  idle = 0;
  Fiber& fiber = block->fibers[self];
  if (fiber.arrivals == fiber.waits)
    fail(kFault, "block %u thread %u waits at %s:%d and has not arrived", block->index, self, name(file), line);
  Warp& warp = block->warps[self / 32];
  check_aligned(warp.waits, warp.waited, fiber.arrivals, file, line);
  if (cluster_of(*block).met < fiber.arrivals) wait(kCluster, file, line);
  fiber.waits = fiber.arrivals;
  fall_behind(kThreads);
  yield();
}

u32 remote_fetch_add(u32* own, u32 rank, u32 v) {
  u32* const word = reach(own, rank, Access::kAtomic);
  const u32 old = *word;
  *word = old + v;
  return old;
}
void remote_add(u32* own, u32 rank, u32 v) { *reach(own, rank, Access::kAtomic) += v; }
void remote_store(u32* own, u32 rank, u32 v) { *reach(own, rank, Access::kWrite) = v; }
u32 remote_load(const u32* own, u32 rank) { return *reach(own, rank, Access::kRead); }

u32 load_acquire(const u32* p) { return load(p, true); }
u32 load_relaxed(const u32* p) { return load(p, false); }
void store_release(u32* p, u32 v) { store(p, v, true); }
void store_relaxed(u32* p, u32 v) { store(p, v, false); }
void add_relaxed(u32* p, u32 v) { add(p, v, false); }
void add_release(u32* p, u32 v) { add(p, v, true); }
u32 fetch_add_relaxed(u32* p, u32 v) { return add(p, v, false); }
void give_up(u32 what, u32 wanted, u32 seen) {
  fail(kDeadlock, "block %u gave up wait %u: wanted %u, saw %u", block->index, what, wanted, seen);
}
u32 load_shared(const u32* p) {  // beside atomics; what others add before the caller goes on, it has not seen
  const u32 seen = machine::shared_update(const_cast<u32*>(p), machine::Update::kAdd, 0);
  yield();
  return seen;
}
void pause() {
  steps -= min(steps, 64u);
  block->fibers[self].paused = true;
  yield();
}

}  // namespace ptx

// The device code is compiled with -fsanitize=thread, which calls these at each access, and linked without its library.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOKS(n)                                                         \
  void __tsan_read##n(void* p) { touch(p, n, Access::kRead); }           \
  void __tsan_write##n(void* p) { touch(p, n, Access::kWrite); }         \
  void __tsan_unaligned_read##n(void* p) { touch(p, n, Access::kRead); } \
  void __tsan_unaligned_write##n(void* p) { touch(p, n, Access::kWrite); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, std::size_t bytes) { touch(p, bytes, Access::kRead); }
void __tsan_write_range(void* p, std::size_t bytes) { touch(p, bytes, Access::kWrite); }
}

namespace {

std::vector<unsigned char> read(u64 bytes) {
  std::vector<unsigned char> data(bytes);
  if (bytes && std::fread(data.data(), 1, bytes, stdin) != bytes) fail(kFault, "the request is cut off");
  return data;
}

void simulate() {
  u32 started = 0, finished = 0;
  const u32 size = request.cluster;
  slots.resize(std::min(request.slots, request.grid) / size * size);
  clusters.resize(slots.size() / size);
  std::vector<u32> left(request.grid / size);  // clusters that have not started
  for (u32 c = 0; c < left.size(); ++c) left[c] = c;
  if (slots.empty()) fail(kDeadlock, "no cluster of %u blocks fits into %u slots", size, request.slots);
  while (finished < request.grid) {
    Block& b = slots[choice.below(static_cast<u32>(slots.size()))];
    if (!b.resident) {
      Block* const first = cluster_blocks(b);  // all blocks of a cluster start at once
      const bool free = std::none_of(first, first + size, [](const Block& other) { return other.resident; });
      if (free && !left.empty()) {
        const u32 at = clustered() ? choice.below(static_cast<u32>(left.size())) : 0;
        cluster_of(b) = {};
        for (u32 rank = 0; rank < size; ++rank) begin(first[rank], left[at] * size + rank);
        left.erase(left.begin() + at);
        started += size, idle = 0;
      }
      continue;
    }
    if (b.stall) {
      --b.stall, idle = 0;
      continue;
    }
    run(b);
    if (b.exited == kThreads) b.resident = false, ++finished;
    if (idle > 300 * slots.size()) {
      std::fprintf(stderr, "%u of %u blocks finished, %u never started, %zu slots\n", finished, request.grid,
                   request.grid - started, slots.size());
      describe();
      std::_Exit(kDeadlock);
    }
  }
}

}  // namespace

// Ends this program with the process that started it, whose id it was given.
void end_with(const char* parent) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
  if (getppid() != std::atoi(parent)) _exit(1);  // it has ended already
}

int main(int count, char** arguments) {
  if (count > 1) end_with(arguments[1]);
  const auto header = read(sizeof request);
  std::memcpy(&request, header.data(), sizeof request);
  const auto logits = read(request.logits_bytes), lengths = read(request.lengths_bytes);
  const auto starts = read(request.starts_bytes), table = read(request.table_bytes);
  auto workspace = read(request.workspace_bytes);
  const auto integers = [](const std::vector<unsigned char>& bytes) {
    return bytes.empty() ? nullptr : reinterpret_cast<const int*>(bytes.data());
  };
  const auto output = [](const char* name, u64 bytes, u64 stride, u32 item) {
    return Output{name, std::vector<unsigned char>(bytes, 0x7B), stride, item, std::vector<bool>(bytes / item)};
  };
  outputs[0] = output("out", request.out_bytes, request.out_stride, request.index_bytes);
  outputs[1] = output("values", request.values_bytes, request.values_stride, request.item_bytes);
  params = {logits.data() + request.offset * request.item_bytes,
            integers(lengths),
            outputs[0].bytes.data(),
            workspace.data(),
            request.logits_stride,
            request.out_stride,
            request.rows,
            request.width,
            request.group,
            request.groups,
            request.chunk,
            request.candidates,
            request.cooperative,
            0,
            outputs[1].bytes.data(),
            integers(starts),
            integers(table),
            request.values_stride,
            request.table_stride,
            request.page_size,
            request.rows_per_table};
  gridDim.x = request.grid;
  choice.state = request.seed;
  memory = std::make_unique<Memory<Random>>(reinterpret_cast<u32*>(workspace.data()), workspace.size() / 4, choice);
  simulate();
  memory->settle();
  for (const auto* result : {&outputs[0].bytes, &outputs[1].bytes, &workspace}) {
    if (!result->empty()) std::fwrite(result->data(), 1, result->size(), stdout);
  }
  std::fwrite(&bytes_read, sizeof bytes_read, 1, stdout);
  return kDone;
}
