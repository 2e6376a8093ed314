// Which accesses are ordered before which: by barriers and __syncwarp within a block, by fences and atomics between
// blocks. Every block counts the events that can order accesses; an access is stamped with that count.
#pragma once

#include <cstdint>

#include "state.h"

namespace emulator {

constexpr uint32_t kNobody = 0xffffffffu;

struct Access {
  uint32_t block = kNobody, time = 0;
  uint32_t site = 0;  // offset of the code address
  uint16_t thread = 0;
  bool atomic = false;
};

void order_of_new_launch();
void order_of_new_block();
void order_at_barrier();
void order_at_warp_barrier(int first_thread, unsigned lanes);
void order_at_fence();
void order_at_atomic(uintptr_t address);

uint32_t time_now();

// Whether an earlier access is ordered before what the current thread does now. past_l1: the current access sees what
// another block made visible without a fence of its own.
bool is_ordered(const Access& earlier, bool past_l1, uintptr_t address);

}  // namespace emulator
