// Operations that lanes of one warp do together.
#pragma once

#include "state.h"

namespace emulator {

void leave_warp(int thread);  // the thread has ended: nobody can wait for it

}  // namespace emulator
