// Within a block, `seen[t][l]` is the time up to which thread t knows what lane l of its warp did; what other warps did
// is known up to the last barrier. Between blocks: a fence followed by an atomic publishes what was known at the fence;
// an atomic on the same location followed by a fence (or a read that passes by L1) takes it over. This is the order
// that the PTX memory model gives to fence.acq_rel with relaxed atomics.

#include "ordering.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

namespace emulator {

namespace {

// The first n releases at a location.
struct Taken {
  uintptr_t location;
  size_t n;
};
using Takens = std::vector<Taken>;

struct Release {
  uint32_t block;
  std::vector<uint32_t> until;  // per thread: what it did before this time is visible
  Takens taken;  // and what this block had taken over itself
};

struct Location {
  std::vector<Release> releases;
  std::unordered_map<uint32_t, std::vector<size_t>> by_block;
};

struct Knowledge {
  uint32_t seen[32];  // of the lanes of the warp
  uint32_t fenced[32];  // of the lanes of the warp: was seen when a fence was made
  uint32_t fenced_all;  // the same for all threads of the block
  Takens pending, taken;
};

uint32_t now, last_barrier;
bool has_fenced, has_taken;
Knowledge known[kMaxThreads];
uint32_t fenced_at_barrier[kMaxThreads];
Takens pending_at_barrier, taken_at_barrier;
std::unordered_map<uintptr_t, Location> locations;

void add(Takens& to, const Takens& from) {
  for (const Taken& taken : from) {
    auto same = std::find_if(to.begin(), to.end(), [&](const Taken& t) { return t.location == taken.location; });
    if (same == to.end())
      to.push_back(taken);
    else
      same->n = std::max(same->n, taken.n);
  }
}

bool is_published(const Access& access, const Takens& takens, int depth) {
  if (depth > 6) return false;
  for (const Taken& taken : takens) {
    const Location& location = locations[taken.location];
    const auto mine = location.by_block.find(access.block);
    if (mine != location.by_block.end()) {
      for (size_t i : mine->second) {
        if (i < taken.n && access.time < location.releases[i].until[access.thread]) return true;
      }
    }
    for (size_t i = 0; i < taken.n; i++) {
      const Release& release = location.releases[i];
      if (!release.taken.empty() && is_published(access, release.taken, depth + 1)) return true;
    }
  }
  return false;
}

}  // namespace

uint32_t time_now() { return now; }

void order_of_new_launch() { locations.clear(); }

void order_of_new_block() {
  now = 1;
  last_barrier = 0;
  has_fenced = has_taken = false;
  for (int i = 0; i < state.n_threads; i++) {
    memset(known[i].seen, 0, sizeof known[i].seen);
    memset(known[i].fenced, 0, sizeof known[i].fenced);
    known[i].fenced_all = 0;
    known[i].pending.clear();
    known[i].taken.clear();
  }
  memset(fenced_at_barrier, 0, sizeof fenced_at_barrier);
  pending_at_barrier.clear();
  taken_at_barrier.clear();
}

void order_at_barrier() {
  last_barrier = ++now;
  if (has_fenced) {
    uint32_t all = 0;
    for (int i = 0; i < state.n_threads; i++) all = std::max(all, known[i].fenced_all);
    for (int i = 0; i < state.n_threads; i++) {
      uint32_t& fenced = fenced_at_barrier[i];
      fenced = std::max(fenced, all);
      for (int l = i & ~31; l < std::min((i | 31) + 1, state.n_threads); l++) {
        fenced = std::max(fenced, known[l].fenced[i & 31]);
      }
    }
  }
  if (has_taken) {
    for (int i = 0; i < state.n_threads; i++) {
      add(pending_at_barrier, known[i].pending);
      add(taken_at_barrier, known[i].taken);
    }
  }
}

void order_at_warp_barrier(int first, unsigned lanes) {
  now++;
  Knowledge joined = {};
  for (unsigned left = lanes; left; left &= left - 1) {
    const Knowledge& lane = known[first + __builtin_ctz(left)];
    for (int l = 0; l < 32; l++) {
      joined.seen[l] = std::max(joined.seen[l], lane.seen[l]);
      joined.fenced[l] = std::max(joined.fenced[l], lane.fenced[l]);
    }
    joined.fenced_all = std::max(joined.fenced_all, lane.fenced_all);
    add(joined.pending, lane.pending);
    add(joined.taken, lane.taken);
  }
  for (unsigned left = lanes; left; left &= left - 1) joined.seen[__builtin_ctz(left)] = now;
  for (unsigned left = lanes; left; left &= left - 1) known[first + __builtin_ctz(left)] = joined;
}

void order_at_fence() {
  has_fenced = true;
  now++;
  Knowledge& me = known[state.current];
  me.fenced_all = std::max(me.fenced_all, last_barrier);
  for (int l = 0; l < 32; l++) me.fenced[l] = std::max(me.fenced[l], me.seen[l]);
  me.fenced[state.current & 31] = now;
  add(me.taken, me.pending);
  add(me.taken, pending_at_barrier);
}

void order_at_atomic(uintptr_t address) {
  Knowledge& me = known[state.current];
  Location& location = locations[address];
  if (has_fenced) {
    Release release{state.block_number, std::vector<uint32_t>(state.n_threads), me.taken};
    add(release.taken, taken_at_barrier);
    const int first = state.current & ~31;
    for (int i = 0; i < state.n_threads; i++) {
      uint32_t until = std::max(fenced_at_barrier[i], me.fenced_all);
      if ((i & ~31) == first) until = std::max(until, me.fenced[i & 31]);
      release.until[i] = until;
    }
    location.by_block[state.block_number].push_back(location.releases.size());
    location.releases.push_back(std::move(release));
  }
  has_taken = true;
  add(me.pending, {{address, location.releases.size()}});
}

bool is_ordered(const Access& earlier, bool past_l1, uintptr_t address) {
  const Knowledge& me = known[state.current];
  const bool same_block = earlier.block == state.block_number;
  if (same_block) {
    if (earlier.thread == state.current || earlier.time < last_barrier) return true;
    if ((earlier.thread >> 5) == (state.current >> 5) && earlier.time < me.seen[earlier.thread & 31]) return true;
  }
  if (!has_taken) return false;
  if (is_published(earlier, me.taken, 0) || is_published(earlier, taken_at_barrier, 0)) return true;
  if (past_l1 && (is_published(earlier, me.pending, 0) || is_published(earlier, pending_at_barrier, 0))) return true;
  if (earlier.atomic && !same_block) {  // atomics on one location are ordered, and what follows the last of them is too
    const auto here = [&](const Taken& t) { return address - t.location < 8; };
    return std::any_of(me.pending.begin(), me.pending.end(), here) ||
           std::any_of(pending_at_barrier.begin(), pending_at_barrier.end(), here);
  }
  return false;
}

}  // namespace emulator
