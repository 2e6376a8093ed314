// What compiled kernels and the runtime share: the functions that the one calls and the other has.
#pragma once

#define EMULATED static inline __attribute__((always_inline))  // a device function of the emulator's headers
#define UNCHECKED __attribute__((noinline, no_sanitize("thread", "undefined")))  // its accesses are not seen

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

// What lanes of a warp, or threads of a block, do together.
enum Operation : int {
  kShuffle,
  kBallot,
  kSyncWarp,
  kMatch,
  kReduce,
  kMultiply,
  kLoadMatrix,  // of a warp
  kBarrier,
  kBarrierCount,
  kBarrierAnd,
  kBarrierOr,  // of a block
};

enum Counter : int {
  kShuffles,
  kWarpBarriers,
  kBarriers,
  kFences,
  kAtomics,
  kDotProducts,
  kTensorProducts,
  kAsyncCopies,
  kConversions,
  kPrefetches,
  kCounters,
};

struct Indices {
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned lane;
};

constexpr int kWideWords = 6;

// What the lanes of a warp brought to one operation. It may be read until the next call into the runtime.
struct Exchange {
  unsigned long long narrow[32];
  unsigned long long wide[32][kWideWords];
  unsigned arrived;
};

// One parameter of a kernel. For pointers, kind and size describe what it points to ('v': not known).
struct Parameter {
  char kind;  // i u f: a number; v: a structure
  char pointer;  // 1 pointer, 2 pointer to const
  short size;  // bytes
};

struct Kernel {
  const char* name;
  void (*call)(void**);
  const Parameter* parameters;
  int n_parameters;
};

}  // namespace emulator

#define EMULATOR_EXPORT __attribute__((visibility("default")))

extern "C" {
EMULATOR_EXPORT extern emulator::Indices emulator_indices;  // of the thread that runs now

EMULATOR_EXPORT int emulator_barrier(int operation, int predicate, const char* file, int line);
EMULATOR_EXPORT const emulator::Exchange* emulator_exchange(int operation, unsigned mask, unsigned long long value,
                                                            const char* file, int line);
EMULATOR_EXPORT const emulator::Exchange* emulator_exchange_wide(int operation, unsigned mask, const void* value,
                                                                 int bytes, const char* file, int line);
EMULATOR_EXPORT unsigned emulator_active_mask();
EMULATOR_EXPORT void emulator_fence();
EMULATOR_EXPORT void emulator_bad_lane(int lane, const char* file, int line);
EMULATOR_EXPORT void emulator_trap(const char* message, const char* file, int line);
EMULATOR_EXPORT void emulator_count(int counter);
EMULATOR_EXPORT void emulator_launch_bounds(int max_threads, int min_blocks = 0, int max_blocks = 0);

// Hooks of the accesses that the compiler does not instrument itself; `site` is an address in the calling code.
EMULATOR_EXPORT void emulator_read(const void* address, int bytes, const void* site);
EMULATOR_EXPORT void emulator_read_constant(const void* address, int bytes, const void* site);
EMULATOR_EXPORT void emulator_read_past_l1(const void* address, int bytes, const void* site);
EMULATOR_EXPORT void emulator_prefetch(const void* address, const void* site);
EMULATOR_EXPORT void emulator_write(void* address, int bytes, const void* site);
EMULATOR_EXPORT void emulator_atomic(void* address, int bytes, const void* site);
EMULATOR_EXPORT void emulator_copy_begin(void* shared, const void* global, int bytes, int source_bytes,
                                         const void* site);
EMULATOR_EXPORT void emulator_copy_commit();
EMULATOR_EXPORT void emulator_copy_wait(int groups_left);
}

#ifdef EMULATOR_CHECKED
#define EMULATOR_COUNT(counter) emulator_count(emulator::counter)
#else
#define EMULATOR_COUNT(counter) (void)0
#endif
