// The workspace as a GPU may show it: each word is the history of what was written to it, and a load may return any
// write that its thread is not yet bound to have overtaken. Acquire reads take over what a release write knew; nothing
// else carries knowledge from block to block. Writes to one word take effect in one order, which a thread's own order
// and its knowledge restrict and the seed draws; a read-modify-write stands directly behind the write that it read.
// (The release/acquire fragment of the PTX model, without loads that see later stores of their own thread.)
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

using Stamp = unsigned long long;  // position in a word's history
constexpr Stamp kApart = 1ull << 32;

// For each word, the position in its history behind which one can no longer look back.
using View = std::vector<Stamp>;

inline void join(View& into, const View& other) {
  for (std::size_t w = 0; w < into.size(); ++w) into[w] = std::max(into[w], other[w]);
}

// What one thread has learnt since its block's last barrier; there, the block's view takes it up.
struct Learnt {
  struct Seen {
    unsigned word;
    Stamp stamp;
  };
  std::vector<Seen> seen;
  std::shared_ptr<const View> acquired, last;  // all that was acquired, and what was acquired last

  void note(unsigned word, Stamp stamp) {
    for (Seen& s : seen) {
      if (s.word == word) {
        s.stamp = std::max(s.stamp, stamp);
        return;
      }
    }
    seen.push_back({word, stamp});
  }
  void add_to(View& view) const {
    if (acquired) join(view, *acquired);
    for (const Seen& s : seen) view[s.word] = std::max(view[s.word], s.stamp);
  }
  void clear() { seen.clear(), acquired.reset(), last.reset(); }
};

template <class Random>
class Memory {
 public:
  Memory(unsigned* words, std::size_t count, Random& random) : random_(random), words_(words), histories_(count) {
    for (std::size_t w = 0; w < count; ++w) histories_[w].push_back({0, words[w], false, nullptr});
  }
  std::size_t size() const { return histories_.size(); }

  unsigned load(unsigned word, bool acquire, const View& block, Learnt& thread) {
    const History& h = histories_[word];
    const Write& w = h[random_.below(2) ? h.size() - 1 : pick(oldest(word, block, thread), h.size())];
    thread.note(word, w.stamp);
    if (acquire) take(thread, w.known);
    return w.value;
  }
  void store(unsigned word, unsigned value, bool release, const View& block, Learnt& thread) {
    insert(word, place(word, block, thread), value, false, release, block, thread);
  }
  // Returns the value before.
  unsigned add(unsigned word, unsigned value, bool release, const View& block, Learnt& thread) {
    const std::size_t at = place(word, block, thread);
    const unsigned old = histories_[word][at].value;
    insert(word, at, old + value, true, release, block, thread);
    return old;
  }
  // What a later launch finds.
  void settle() {
    for (std::size_t w = 0; w < histories_.size(); ++w) words_[w] = histories_[w].back().value;
  }

 private:
  struct Write {
    Stamp stamp;
    unsigned value;
    bool attached;                      // to the write before it
    std::shared_ptr<const View> known;  // to who acquires it; null: nothing
  };
  using History = std::vector<Write>;

  std::size_t pick(std::size_t from, std::size_t to) { return from + random_.below(static_cast<unsigned>(to - from)); }

  std::size_t oldest(unsigned word, const View& block, const Learnt& thread) const {
    Stamp least = block[word];
    if (thread.acquired) least = std::max(least, (*thread.acquired)[word]);
    for (const auto& s : thread.seen) {
      if (s.word == word) least = std::max(least, s.stamp);
    }
    const History& h = histories_[word];
    std::size_t at = h.size() - 1;
    while (h[at].stamp > least) --at;
    return at;
  }
  // Behind which write a new one goes.
  std::size_t place(unsigned word, const View& block, const Learnt& thread) {
    const History& h = histories_[word];
    const std::size_t last = h.size() - 1, at = random_.below(2) ? last : pick(oldest(word, block, thread), h.size());
    const bool room = at == last || (!h[at + 1].attached && h[at + 1].stamp - h[at].stamp > 1);
    return room ? at : last;
  }
  void insert(unsigned word, std::size_t after, unsigned value, bool attached, bool release, const View& block,
              Learnt& thread) {
    History& h = histories_[word];
    const Stamp low = h[after].stamp;
    const Stamp stamp = after + 1 == h.size() ? low + kApart : low + (h[after + 1].stamp - low) / 2;
    thread.note(word, stamp);
    std::shared_ptr<const View> known = attached ? h[after].known : nullptr;  // a release sequence goes on
    if (release) {
      auto all = std::make_shared<View>(block);
      thread.add_to(*all);
      if (known) join(*all, *known);
      known = std::move(all);
    }
    h.insert(h.begin() + static_cast<std::ptrdiff_t>(after) + 1, {stamp, value, attached, std::move(known)});
  }
  static void take(Learnt& thread, const std::shared_ptr<const View>& known) {
    if (!known || known == thread.last) return;  // a poll that saw the same again
    thread.last = known;
    if (!thread.acquired) {
      thread.acquired = known;
      return;
    }
    auto both = std::make_shared<View>(*thread.acquired);
    join(*both, *known);
    thread.acquired = std::move(both);
  }

  Random& random_;
  unsigned* words_;
  std::vector<History> histories_;
};
