// The state of the launch that runs: one block at a time, its threads as fibres that switch at barriers and exchanges.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../include/emulator/interface.h"

namespace emulator {

constexpr int kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32;
constexpr size_t kStackBytes = 256 << 10;

struct Place {
  const char* file;
  int line;
};

enum class Status : uint8_t { kReady, kAtBarrier, kInExchange, kDone };

struct Thread {
  void* stack_pointer;
  uint3 index;
  Status status;
  Place place;  // of the barrier or exchange that it waits at
  int operation;
  uint32_t polls;  // strong reads and atomics since it last waited
};

// An operation that some lanes of a warp have reached, and others not yet.
struct Meeting {
  Exchange exchange;
  unsigned mask, resumed;
  int operation;
  Place place;
  bool used, open;
};

struct Warp {
  unsigned ready, exists, exited;  // a bit per lane
  Meeting meetings[8];
};

struct Barrier {
  int arrived, operation, sum, result;
  Place place;
};

struct Order {
  int kind;  // 0 ascending, 1 descending, 2 random
  uint64_t seed;  // of the random order
};

// The switches of a launch, given by launch.cpp.
struct Modes {
  bool check, count;
};

struct State {
  const Kernel* kernel;
  void** arguments;
  Thread threads[kMaxThreads];
  Warp warps[kMaxWarps];
  Barrier barrier;
  int n_threads, n_warps, n_done;
  int current;  // the thread that runs, or -1
  int current_warp;
  bool abandoned;  // the launch was given up
  uint32_t block_number;
  Order order;
  Modes modes;
  char* dynamic_shared;
  size_t dynamic_shared_bytes;
};

extern State state;

// block.cpp
bool run_block(uint32_t number);  // false: the launch was given up
void poll(const void* code);  // a read that may be waiting for somebody: lets others run now and then
void wait();  // lets other threads run until this one is ready again
void wake(int thread);
void give_up();  // leaves the launch before a harmful access; does not return
uint64_t random_number();

// fibres.cpp
void prepare_stack(int thread, void (*entry)());
void switch_to(int thread);  // or to the launching code, when thread is -1
char* stack_of(int thread);

}  // namespace emulator
