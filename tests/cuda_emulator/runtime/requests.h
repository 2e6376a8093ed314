// Counts what a launch costs: per line of source the requests of warps, the 32-byte sectors they fetch and the bytes of
// them that are used, and bank conflicts of shared memory; per launch the distinct bytes and sectors.
#pragma once

#include <cstdint>

#include "state.h"

namespace emulator {

void clear_requests();
void count(int counter);
void count_access(uintptr_t address, int bytes, int space, bool write, const void* code);
void end_of_warp_requests(int warp);  // the lanes have met: what they do next belongs to other requests
void end_of_requests();  // the same for all warps

}  // namespace emulator
