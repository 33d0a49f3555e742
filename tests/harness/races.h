// Who touched a block's shared memory since its last barrier. Two threads, one word, at least one of them writing, no
// barrier between: a race, whatever the order was this time. Atomics race with plain accesses only.
#pragma once
#include <cstddef>
#include <vector>

enum class Access : unsigned char { kRead, kWrite, kAtomic };

class Races {
 public:
  static constexpr unsigned kNobody = ~0u, kSeveral = ~0u - 1;

  void reset(std::size_t bytes) { words_.assign(bytes / 4, Word{}); }
  std::size_t words() const { return words_.size(); }
  bool written(std::size_t word) const { return words_[word].written; }

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

// Who touched the shared memory of a block whose cluster reaches into it. The blocks are ordered by cluster barriers
// alone: what a thread did is released by its next arrival that releases, and acquired by who has waited for that one.
// Threads of one block are ordered by its own barriers too. Mail is acquired by who has waited for the turn it came in.
class ClusterRaces {
 public:
  struct Touch {
    unsigned block, thread;  // the thread may be Races::kSeveral
    unsigned interval;       // the block's barriers so far
    unsigned arrivals;       // the thread's, at cluster barriers
    Access access;
    unsigned mail = 0;  // sent: it is there when the receiver's turn of this number (from one on) is over
  };

  void reset(std::size_t bytes) { words_.assign(bytes / 4, {}); }

  // Notes what is done now, by a thread that has acquired the first `waits` cluster barriers, and what that races with
  // (null: nothing), and waited for `mails` turns of mail. released(touch) is the number of the cluster barrier that releases it, which may be one to come.
  template <class Released>
  const Touch* rival(std::size_t word, const Touch& now, unsigned waits, unsigned mails, Released released) {
    std::vector<Touch>& touched = words_[word];
    std::size_t kept = 0;
    for (std::size_t i = 0; i < touched.size(); ++i) {
      const Touch& t = touched[i];
      const bool acquired = t.mail ? t.mail <= mails : released(t) <= waits, together = t.block == now.block;
      const bool before = acquired || (together && (t.interval != now.interval || t.thread == now.thread));
      const bool harmless = t.access == now.access && t.access != Access::kWrite;
      if (!before && !harmless) {
        rival_ = t;
        return &rival_;
      }
      // Whoever races with that touch later races with this one too, so that one is enough. (Unless that thread has
      // arrived already and this one has not: then this one is acquired earlier.)
      const bool stronger = t.access == now.access || now.access == Access::kWrite;
      const bool covered = acquired || (together && t.interval != now.interval && t.arrivals <= now.arrivals);
      if (!(stronger && covered)) touched[kept++] = t;
    }
    touched.resize(kept);
    for (Touch& t : touched) {
      if (t.block == now.block && t.interval == now.interval && t.arrivals == now.arrivals && t.access == now.access &&
          t.mail == now.mail) {
        if (t.thread != now.thread) t.thread = Races::kSeveral;
        return nullptr;
      }
    }
    touched.push_back(now);
    return nullptr;
  }

 private:
  std::vector<std::vector<Touch>> words_;
  Touch rival_{};
};
