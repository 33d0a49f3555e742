// Who touched a block's shared memory since its last barrier. Two threads, one word, at least one of them writing, no
// barrier between: a race, whatever the order was this time. Atomics race with plain accesses only.
#pragma once
#include <vector>

enum class Access : unsigned char { kRead, kWrite, kAtomic };

class Races {
 public:
  static constexpr unsigned kNobody = ~0u, kSeveral = ~0u - 1;

  void reset(std::size_t bytes) { words_.assign(bytes / 4, Word{}); }
  std::size_t words() const { return words_.size(); }

  // Whether this is the first access to memory that nobody wrote, and reads it.
  bool unwritten(std::size_t word, Access access) {
    const bool before = words_[word].written;
    words_[word].written |= access != Access::kRead;
    return access != Access::kWrite && !before;
  }
  // The thread that this access races with, kSeveral, or kNobody.
  unsigned rival(std::size_t word, Access access, unsigned thread, unsigned interval) {
    Word& w = words_[word];
    if (w.interval != interval) w = Word{interval, kNobody, kNobody, kNobody, w.written};
    const unsigned reader = access == Access::kRead ? kNobody : w.reader;
    const unsigned adder = access == Access::kAtomic ? kNobody : w.adder;
    for (unsigned who : {w.writer, reader, adder}) {
      if (who != kNobody && who != thread) return who;
    }
    unsigned& mine = access == Access::kRead ? w.reader : access == Access::kWrite ? w.writer : w.adder;
    mine = mine == kNobody || mine == thread ? thread : kSeveral;
    return kNobody;
  }

 private:
  struct Word {  // who read, wrote or added in this interval
    unsigned interval = 0, reader = kNobody, writer = kNobody, adder = kNobody;
    bool written = false;
  };
  std::vector<Word> words_;
};
