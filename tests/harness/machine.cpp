// A GPU of `slots` resident blocks in one OS thread: fibers, a scheduler whose every choice is drawn from a seed, and a
// verdict when nothing can move any more. Reads a request on stdin, writes the results on stdout, complains on stderr.
#include <sys/mman.h>

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
  u32 item_bytes, index_bytes, page_size, rows_per_table, vec, k;
};
static_assert(sizeof(Request) == 12 * 8 + 17 * 4 + 4, "the runner packs this");

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

enum State : unsigned char { kReady, kBarrier, kExchange, kExited };

struct Fiber {
  Context context;
  State state;
  const char* file;  // where it waits
  int line;
  bool paused;
  int looked_at;  // the last workspace word it loaded (-1: none), and what it saw
  u32 saw;
  Learnt learnt;
};

struct Warp {
  u32 given[2][32];  // a lane may begin the next exchange before the others have read this one
  u32 arrived, turn;
  const char* file;
  int line;
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
  View view;  // of the workspace, at the last barrier
  unsigned char* stacks = nullptr;
};

Request request;
Params params;
Random choice;
std::unique_ptr<Memory<Random>> memory;
std::vector<Block> slots;
Block* block;  // the running one
u32 self;      // the running thread of it
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

void wake(u32 thread) {
  block->fibers[thread].state = kReady;
  block->ready.push_back(thread);
}

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

void fiber_entry() {
  run_kernel(&params);
  idle = 0;
  block->fibers[self].state = kExited;
  ++block->exited;
  leave();
}

void begin(Block& b, u32 index) {
  b.resident = true, b.index = index;
  b.waiting = b.exited = b.interval = b.stall = 0;
  b.shared.assign(request.smem_bytes + kGuard, 0xA5);
  b.races.reset(request.smem_bytes);
  b.view.assign(memory->size(), 0);
  if (!b.stacks) {
    void* memory =
        mmap(nullptr, kStack * kThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail(kFault, "no memory for %u stacks", kThreads);
    b.stacks = static_cast<unsigned char*>(memory);
  }
  b.ready.clear();
  for (Warp& warp : b.warps) warp.arrived = warp.turn = 0;
  for (u32 t = 0; t < kThreads; ++t) {
    b.fibers[t].state = kReady, b.fibers[t].paused = false, b.fibers[t].looked_at = -1;
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

// Every access of the device code to memory comes here. It may write to its block's shared memory, to its own stack, and
// once to each place of the output.
void touch(const void* address, std::size_t bytes, Access access) {
  if (!kWatched || !block) return;
  static const char* const verbs[] = {"reads", "writes", "adds to"};
  const char* verb = verbs[static_cast<int>(access)];
  const auto offset = [&](const void* from) {
    return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(from);
  };
  if (const std::size_t at = offset(block->shared.data()); at < request.smem_bytes + kGuard) {
    for (std::size_t word = at / 4; word <= (at + bytes - 1) / 4; ++word) {
      if (word >= block->races.words())
        fail(kFault, "block %u thread %u %s shared %zu, past the end", block->index, self, verb, word);
      if (block->races.unwritten(word, access))
        fail(kFault, "block %u thread %u %s shared %zu, which nobody wrote", block->index, self, verb, word);
      const u32 rival = block->races.rival(word, access, self, block->interval);
      if (rival != Races::kNobody)
        fail(kFault, "block %u thread %u %s shared %zu in a race with %s, no barrier since %s:%d", block->index, self,
             verb, word, rival == Races::kSeveral ? "several" : ("thread " + std::to_string(rival)).c_str(),
             name(block->file), block->line);
    }
  } else if (access != Access::kRead && offset(block->stacks + self * kStack) >= kStack) {
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
    fail(kFault, "block %u thread %u %s memory that is not its own", block->index, self, verb);
  }
}

// What the threads of a block wait for. The runner gives workspace words their names.
std::string waits_for(const Fiber& f) {
  char text[160];
  if (f.state == kExited) return "finished";
  if (f.state != kReady)
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
  if (!there || column < start / vec * vec || column + count > start + n ||
      reinterpret_cast<std::uintptr_t>(from) % bytes)
    fail(kFault, "block %u thread %u reads %u bytes at column %llu of row %llu, which is %llu from %llu on",
         block->index, self, bytes, column, row, n, start);
}

void check_integer(const int* from) {
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
  slots.resize(std::min(request.slots, request.grid));
  while (finished < request.grid) {
    Block& b = slots[choice.below(static_cast<u32>(slots.size()))];
    if (!b.resident) {
      if (started < request.grid) begin(b, started++), idle = 0;
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

int main() {
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
  return kDone;
}
