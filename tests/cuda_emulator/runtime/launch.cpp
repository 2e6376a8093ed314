// Launches a kernel, one block after another, in the order that was asked for.

#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "findings.h"
#include "ordering.h"
#include "requests.h"
#include "shadow.h"

using namespace emulator;

namespace emulator {
void forget_copies();
}

// As Python gives them.
struct EmulatorMemory {
  uintptr_t start;
  size_t bytes;
  int space;
  const char* name;
  uint8_t* written;
};

struct EmulatorLaunch {
  const Kernel* kernel;
  void** arguments;
  unsigned grid[3], block[3];
  char* dynamic_shared;
  size_t dynamic_shared_bytes;
  const EmulatorMemory* memory[2];  // the module's own, and the arguments'
  int n_memory[2];
  int check, count;
  int order;
  uint64_t seed;
};

namespace {

sigjmp_buf after_crash;

// In the fast mode nothing is checked before an access, and a bad one may end here.
void on_crash(int number) {
  find("out of bounds", number == SIGSEGV ? "access to an address where no memory is" : "illegal instruction or access",
       {});
  siglongjmp(after_crash, 1);
}

class CrashGuard {
 public:
  CrashGuard() {
    static char stack[64 << 10];
    stack_t mine = {};
    mine.ss_sp = stack;
    mine.ss_size = sizeof stack;
    sigaltstack(&mine, &old_stack_);
    struct sigaction action = {};
    action.sa_handler = on_crash;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(kSignals[i], &action, &old_[i]);
  }
  ~CrashGuard() {
    for (int i = 0; i < 3; i++) sigaction(kSignals[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction old_[3];
  stack_t old_stack_;
};

void set_up(const EmulatorLaunch& launch) {
  state.kernel = launch.kernel;
  state.arguments = launch.arguments;
  state.dynamic_shared = launch.dynamic_shared;
  state.dynamic_shared_bytes = launch.dynamic_shared_bytes;
  state.modes = {launch.check != 0, launch.count != 0};
  state.order = {launch.order, launch.seed * 2 + 1};
  state.n_threads = launch.block[0] * launch.block[1] * launch.block[2];
  state.n_warps = (state.n_threads + 31) / 32;
  emulator_indices.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
  emulator_indices.block_size = {launch.block[0], launch.block[1], launch.block[2]};
  clear_findings();
  forget_copies();
  if (state.modes.check) order_of_new_launch();
  if (state.modes.count) clear_requests();
  if (!state.modes.check && !state.modes.count) return;
  clear_memory();
  for (int table = 0; table < 2; table++) {
    for (int i = 0; i < launch.n_memory[table]; i++) {
      const EmulatorMemory& m = launch.memory[table][i];
      add_memory(m.start, m.bytes, m.space, m.name, m.written);
    }
  }
  sort_memory();
}

std::vector<uint32_t> block_order(uint64_t n_blocks) {
  std::vector<uint32_t> order(n_blocks);
  std::iota(order.begin(), order.end(), 0);
  if (state.order.kind == 1) std::reverse(order.begin(), order.end());
  if (state.order.kind == 2) {
    for (size_t i = n_blocks; i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
  }
  return order;
}

void run_blocks(const EmulatorLaunch& launch) {
  const uint64_t x = launch.grid[0], y = launch.grid[1], n_blocks = x * y * launch.grid[2];
  for (uint32_t block : block_order(n_blocks)) {
    emulator_indices.block = {static_cast<unsigned>(block % x), static_cast<unsigned>(block / x % y),
                              static_cast<unsigned>(block / (x * y))};
    memset(state.dynamic_shared, 0xff, state.dynamic_shared_bytes);  // NaN: what was never written shows
    if (!run_block(block) || n_findings() >= kMaxFindings) break;
  }
}

}  // namespace

// Returns the number of findings.
extern "C" EMULATOR_EXPORT int emulator_launch(const EmulatorLaunch* launch) {
  set_up(*launch);
  CrashGuard guard;
  if (sigsetjmp(after_crash, 1) == 0) run_blocks(*launch);
  state.current = -1;
  if (state.modes.check) check_static_shared();
  return n_findings();
}
