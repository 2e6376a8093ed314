// The memory that a launch may touch, and who touched each byte of it last.
#pragma once

#include <string>

#include "findings.h"

namespace emulator {

enum Space : int { kGlobal, kShared, kConstant, kOwn };  // kOwn: of the compiler, not of the program

// kBeginsCopy: an asynchronous copy to here may be made from now on. kPrefetch: a byte that only has to be there.
enum class Kind : int { kRead, kWrite, kAtomic, kReadPastL1, kReadConstant, kBeginsCopy, kPrefetch };

void clear_memory();
void add_memory(uintptr_t start, size_t bytes, int space, const char* name, uint8_t* written);
void sort_memory();  // after the last add_memory

// Checks an access of the current thread before it is made; leaves the launch when it would do harm.
void check_access(uintptr_t address, int bytes, Kind kind, bool must_be_aligned, const void* code);

// After a launch: the static shared arrays that it touched, together, must fit into a block's shared memory.
void check_static_shared();

const char* code_of(uint32_t site);  // the code address that an Access keeps as a number

}  // namespace emulator
