// What was found wrong in a launch.
#pragma once

#include <string>

#include "state.h"

namespace emulator {

// Where in the kernel: an address in its code, or a line that is known already.
struct Site {
  const void* address = nullptr;
  Place place = {nullptr, 0};
};

constexpr int kMaxFindings = 40;  // of one launch; one line of source is reported once per kind

void clear_findings();
int n_findings();

// Notes a finding about the thread that runs. `other` is the other side of a race, or empty.
void find(const char* kind, const std::string& message, Site site, Site other = {});

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator
