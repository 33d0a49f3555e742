// Who touched a block's shared memory since its last barrier. Two threads, one word, at least one of them writing, no
// barrier between: a race, whatever the order was this time. Atomics race with plain accesses only.
#pragma once
#include <vector>

enum class Access : unsigned char { kRead, kWrite, kAtomic };

class Races {
 public:
  void reset(std::size_t bytes) { words_.assign(bytes / 4, Word{}); }
  std::size_t words() const { return words_.size(); }

  // Null, or what is wrong with this access; `other` is then the other thread.
  const char* check(std::size_t word, Access access, unsigned thread, unsigned interval, unsigned& other) {
    Word& w = words_[word];
    const bool written = w.written;
    w.written |= access != Access::kRead;
    if (w.interval != interval) w = Word{interval, kNobody, kNobody, kNobody, w.written};
    other = thread;
    if (access != Access::kWrite && !written) return "was never written";
    for (unsigned who : {w.writer, access == Access::kRead ? kNobody : w.reader, access == Access::kAtomic ? kNobody : w.adder}) {
      if (who != kNobody && who != thread) {
        other = who;
        return "is a race";
      }
    }
    unsigned& mine = access == Access::kRead ? w.reader : access == Access::kWrite ? w.writer : w.adder;
    mine = mine == kNobody || mine == thread ? thread : kMany;
    return nullptr;
  }

 private:
  static constexpr unsigned kNobody = ~0u, kMany = ~0u - 1;  // who read, wrote or added in this interval
  struct Word {
    unsigned interval = 0, reader = kNobody, writer = kNobody, adder = kNobody;
    bool written = false;
  };
  std::vector<Word> words_;
};
