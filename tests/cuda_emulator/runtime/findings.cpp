#include "findings.h"

#include <cstdarg>
#include <cstdio>
#include <set>
#include <tuple>
#include <vector>

namespace emulator {

namespace {

struct Finding {
  std::string kind, message;
  Site site, other;
  uint3 block, thread;
};

std::vector<Finding> findings;
std::set<std::tuple<std::string, const void*, const void*, int>> seen;

}  // namespace

void clear_findings() {
  findings.clear();
  seen.clear();
}

int n_findings() { return static_cast<int>(findings.size()); }

void find(const char* kind, const std::string& message, Site site, Site other) {
  if (!seen.insert({kind, site.address, other.address, site.place.line}).second) return;
  if (n_findings() >= kMaxFindings) return;
  const uint3 thread = state.current >= 0 ? state.threads[state.current].index : uint3{};
  findings.push_back({kind, message, site, other, emulator_indices.block, thread});
}

std::string text(const char* format, ...) {
  char buffer[600];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

}  // namespace emulator

// As Python reads them.
struct EmulatorFinding {
  const char *kind, *message;
  const void *site, *other;
  const char* file;
  int line;
  unsigned block[3], thread[3];
};

extern "C" EMULATOR_EXPORT int emulator_n_findings() { return emulator::n_findings(); }

extern "C" EMULATOR_EXPORT EmulatorFinding emulator_finding(int i) {
  const auto& f = emulator::findings[i];
  return {f.kind.c_str(),
          f.message.c_str(),
          f.site.address,
          f.other.address,
          f.site.place.file,
          f.site.place.line,
          {f.block.x, f.block.y, f.block.z},
          {f.thread.x, f.thread.y, f.thread.z}};
}
