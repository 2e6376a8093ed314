// Runs a block: starts its threads, lets a warp run as far as it can before the next one, and joins them at barriers.

#include <cstring>

#include "findings.h"
#include "ordering.h"
#include "requests.h"
#include "warps.h"

emulator::Indices emulator_indices;

namespace emulator {

State state = {.current = -1};

namespace {

int pick(unsigned bits) {
  if (state.order.kind == 0) return __builtin_ctz(bits);
  if (state.order.kind == 1) return 31 - __builtin_clz(bits);
  for (int skip = random_number() % __builtin_popcount(bits); skip > 0; skip--) bits &= bits - 1;
  return __builtin_ctz(bits);
}

// The next warp with a thread that can run, or -1.
int next_warp() {
  const int n = state.n_warps;
  const int first = state.order.kind == 2 ? static_cast<int>(random_number() % n) : state.current_warp;
  const int step = state.order.kind == 1 ? n - 1 : 1;
  for (int i = 0, warp = first; i < n; i++, warp = (warp + step) % n) {
    if (state.warps[warp].ready) return warp;
  }
  return -1;
}

// The next thread, or -1 when all of them wait or have ended.
int next_thread() {
  int warp = state.current_warp;
  if (!state.warps[warp].ready || state.order.kind == 2) warp = next_warp();
  if (warp < 0) return -1;
  const int lane = pick(state.warps[warp].ready);
  state.warps[warp].ready &= ~(1u << lane);
  return warp * 32 + lane;
}

void release_barrier() {
  Barrier& barrier = state.barrier;
  if (barrier.operation == kBarrierAnd) barrier.result = barrier.sum == barrier.arrived;
  if (barrier.operation == kBarrierOr) barrier.result = barrier.sum != 0;
  if (barrier.operation == kBarrierCount) barrier.result = barrier.sum;
  barrier.arrived = barrier.sum = 0;
  if (state.modes.check) order_at_barrier();
  if (state.modes.count) end_of_requests();
  for (int i = 0; i < state.n_threads; i++) {
    if (state.threads[i].status == Status::kAtBarrier) wake(i);
  }
}

void barrier_without(int thread) {
  const Barrier& barrier = state.barrier;
  const uint3 t = state.threads[thread].index;
  find("divergent barrier",
       text("thread (%u, %u, %u) ended without reaching a barrier that other threads of its block wait at", t.x, t.y,
            t.z),
       {.place = barrier.place});
}

// What a thread does: the kernel, then leaving what others may wait for.
void thread_entry() {
  state.kernel->call(state.arguments);
  const int thread = state.current;
  state.threads[thread].status = Status::kDone;
  state.n_done++;
  leave_warp(thread);
  const int waiting = state.barrier.arrived;
  if (waiting > 0 && waiting + state.n_done == state.n_threads) {
    barrier_without(thread);
    release_barrier();
  }
  switch_to(next_thread());
  __builtin_unreachable();
}

void start_threads() {
  state.n_done = 0;
  state.barrier = {};
  for (int i = 0; i < state.n_warps; i++) {
    Warp& warp = state.warps[i];
    const int n = state.n_threads - 32 * i;
    warp.exists = n >= 32 ? 0xffffffffu : (1u << n) - 1;
    warp.ready = warp.exists;
    warp.exited = 0;
    for (Meeting& meeting : warp.meetings) meeting.used = false;
  }
  const dim3 size = emulator_indices.block_size;
  for (unsigned i = 0, x = 0, y = 0, z = 0; i < static_cast<unsigned>(state.n_threads); i++) {
    state.threads[i].index = {x, y, z};
    state.threads[i].status = Status::kReady;
    state.threads[i].polls = 0;
    prepare_stack(i, thread_entry);
    if (++x == size.x) x = 0, y++;
    if (y == size.y) y = 0, z++;
  }
}

const char* name_of(int operation) {
  static const char* const names[] = {"a shuffle",   "a vote",    "__syncwarp", "a match",   "a reduction", "an mma",
                                      "an ldmatrix", "a barrier", "a barrier",  "a barrier", "a barrier"};
  return names[operation];
}

// Nobody can go on: says where the threads wait, one finding per place.
void explain_deadlock() {
  for (int i = 0; i < state.n_threads; i++) {
    Thread& thread = state.threads[i];
    if (thread.status != Status::kAtBarrier && thread.status != Status::kInExchange) continue;
    int waiting = 0, elsewhere = 0;
    Place other = {};
    for (int j = 0; j < state.n_threads; j++) {
      const Thread& t = state.threads[j];
      if (t.status == Status::kDone) continue;
      const bool same = t.status == thread.status && t.place.line == thread.place.line;
      waiting += same;
      elsewhere += !same;
      if (!same) other = t.place;
    }
    state.current = i;
    const char* kind = thread.status == Status::kAtBarrier ? "divergent barrier" : "divergent warp";
    std::string message =
        text("deadlock: %d threads wait here at %s that the others never reach", waiting, name_of(thread.operation));
    if (elsewhere) message += text("; %d wait elsewhere, at %s:%d", elsewhere, other.file, other.line);
    find(kind, message, {.place = thread.place});
  }
}

}  // namespace

uint64_t random_number() {  // xorshift64*
  uint64_t& x = state.order.seed;
  x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
  return x * 0x2545F4914F6CDD1Dull >> 33;
}

void wake(int thread) {
  state.threads[thread].status = Status::kReady;
  state.warps[thread >> 5].ready |= 1u << (thread & 31);
}

void poll(const void* code) {
  constexpr uint32_t kPatience = 1000, kEnd = 4'000'000;
  Thread& thread = state.threads[state.current];
  if (++thread.polls % kPatience) return;
  if (thread.polls >= kEnd) {
    find("deadlock", text("%u reads in turn that wait for something which does not happen", thread.polls), {code});
    give_up();
  }
  for (int i = 1; i < state.n_threads; i++) {  // in turns, so that nobody is left out
    const int other = (state.current + i) % state.n_threads;
    if (!(state.warps[other >> 5].ready >> (other & 31) & 1)) continue;
    state.warps[other >> 5].ready &= ~(1u << (other & 31));
    wake(state.current);
    return switch_to(other);
  }
}

void wait() {
  state.threads[state.current].polls = 0;
  const int next = next_thread();
  if (next != state.current) switch_to(next);
}

void give_up() {
  state.abandoned = true;
  switch_to(-1);
  __builtin_unreachable();
}

bool run_block(uint32_t number) {
  state.block_number = number;
  start_threads();
  if (state.modes.check) order_of_new_block();
  state.abandoned = false;
  state.current_warp = state.order.kind == 1 ? state.n_warps - 1 : 0;
  state.current = -1;
  switch_to(next_thread());
  const bool stuck = !state.abandoned && state.n_done < state.n_threads;
  if (stuck) explain_deadlock();
  state.current = -1;
  if (state.modes.count) end_of_requests();
  return !state.abandoned && !stuck;
}

}  // namespace emulator

using namespace emulator;

int emulator_barrier(int operation, int predicate, const char* file, int line) {
  Barrier& barrier = state.barrier;
  Thread& thread = state.threads[state.current];
  if (state.modes.count) count(kBarriers);
  if (state.modes.check || barrier.arrived == 0) {
    if (state.n_done > 0) {
      find("divergent barrier", text("%d threads of the block ended without reaching this barrier", state.n_done),
           {.place = {file, line}});
    }
    if (barrier.arrived > 0 && (barrier.operation != operation || barrier.place.line != line ||
                                __builtin_strcmp(barrier.place.file, file) != 0)) {
      find("divergent barrier",
           text("threads of one block are at different barriers: here, and at %s:%d", barrier.place.file,
                barrier.place.line),
           {.place = {file, line}});
    }
  }
  barrier.operation = operation;
  barrier.place = {file, line};
  barrier.arrived++;
  barrier.sum += predicate != 0;
  thread.status = Status::kAtBarrier;
  thread.place = {file, line};
  thread.operation = operation;
  if (barrier.arrived + state.n_done == state.n_threads) release_barrier();
  wait();
  return state.barrier.result;
}

void emulator_launch_bounds(int max_threads, int, int) {
  if (state.n_threads <= max_threads) return;
  find("launch", text("blocks of %d threads where __launch_bounds__ allows %d", state.n_threads, max_threads), {});
  give_up();
}

void emulator_trap(const char* message, const char* file, int line) {
  find("trap", message, {.place = {file, line}});
  give_up();
}
