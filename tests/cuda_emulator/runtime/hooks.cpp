// The functions that g++ -fsanitize=thread,alignment,bounds,shift calls; their libraries are not linked.

#include <cstdint>
#include <cstring>
#include <vector>

#include "findings.h"
#include "ordering.h"
#include "requests.h"
#include "shadow.h"

using namespace emulator;

namespace {

void access(const void* address, int bytes, Kind kind, bool must_be_aligned, const void* code) {
  if (state.current >= 0 && (kind == Kind::kAtomic || kind == Kind::kReadPastL1)) poll(code);
  if (state.current >= 0 && (state.modes.check || state.modes.count)) {
    check_access(reinterpret_cast<uintptr_t>(address), bytes, kind, must_be_aligned, code);
  }
}

struct Copy {
  void* shared;
  const void* global;
  int bytes, source_bytes, group;
  const void* code;
};

std::vector<Copy> copies[kMaxThreads];
int groups[kMaxThreads];

}  // namespace

void emulator_read(const void* address, int bytes, const void* site) {
  access(address, bytes, Kind::kRead, true, site);
}
void emulator_read_past_l1(const void* address, int bytes, const void* site) {
  access(address, bytes, Kind::kReadPastL1, true, site);
}
void emulator_read_constant(const void* address, int bytes, const void* site) {
  access(address, bytes, Kind::kReadConstant, true, site);
}
void emulator_prefetch(const void* address, const void* site) {
  access(address, 1, Kind::kPrefetch, true, site);
  if (state.modes.count) count(kPrefetches);
}
void emulator_write(void* address, int bytes, const void* site) { access(address, bytes, Kind::kWrite, true, site); }
void emulator_atomic(void* address, int bytes, const void* site) {
  access(address, bytes, Kind::kAtomic, true, site);
  if (state.modes.check) order_at_atomic(reinterpret_cast<uintptr_t>(address));
  if (state.modes.count) count(kAtomics);
}

void emulator_fence() {
  if (state.modes.check) order_at_fence();
  if (state.modes.count) count(kFences);
}

// An asynchronous copy arrives only when it is waited for; but on a device it may arrive at once.
void emulator_copy_begin(void* shared, const void* global, int bytes, int source_bytes, const void* site) {
  if (source_bytes > 0) access(global, source_bytes, Kind::kRead, source_bytes == bytes, site);
  access(shared, bytes, Kind::kBeginsCopy, true, site);
  if (state.modes.count) count(kAsyncCopies);
  copies[state.current].push_back({shared, global, bytes, source_bytes, groups[state.current], site});
}

void emulator_copy_commit() { groups[state.current]++; }

void emulator_copy_wait(int groups_left) {
  auto& mine = copies[state.current];
  size_t kept = 0;
  for (const Copy& copy : mine) {
    if (copy.group >= groups[state.current] - groups_left) {
      mine[kept++] = copy;
      continue;
    }
    access(copy.shared, copy.bytes, Kind::kWrite, true, copy.code);
    memset(copy.shared, 0, copy.bytes);
    memcpy(copy.shared, copy.global, copy.source_bytes);
  }
  mine.resize(kept);
}

namespace emulator {
void forget_copies() {
  for (int i = 0; i < state.n_threads; i++) copies[i].clear(), groups[i] = 0;
}
}  // namespace emulator

#define HERE __builtin_return_address(0)

extern "C" {

// Volatile accesses to global memory are strong on the device: they race with plain accesses, not with each other.
#define EMULATOR_HOOKS(n)                                                                                           \
  EMULATOR_EXPORT void __tsan_read##n(void* p) { access(p, n, Kind::kRead, true, HERE); }                           \
  EMULATOR_EXPORT void __tsan_write##n(void* p) { access(p, n, Kind::kWrite, true, HERE); }                         \
  EMULATOR_EXPORT void __tsan_unaligned_read##n(void* p) { access(p, n, Kind::kRead, false, HERE); }                \
  EMULATOR_EXPORT void __tsan_unaligned_write##n(void* p) { access(p, n, Kind::kWrite, false, HERE); }              \
  EMULATOR_EXPORT void __tsan_volatile_read##n(void* p) { access(p, n, Kind::kReadPastL1, true, HERE); }            \
  EMULATOR_EXPORT void __tsan_volatile_write##n(void* p) { access(p, n, Kind::kWrite, true, HERE); }                \
  EMULATOR_EXPORT void __tsan_unaligned_volatile_read##n(void* p) { access(p, n, Kind::kReadPastL1, false, HERE); } \
  EMULATOR_EXPORT void __tsan_unaligned_volatile_write##n(void* p) { access(p, n, Kind::kWrite, false, HERE); }
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)

EMULATOR_EXPORT void __tsan_read_range(void* p, unsigned long n) { access(p, n, Kind::kRead, false, HERE); }
EMULATOR_EXPORT void __tsan_write_range(void* p, unsigned long n) { access(p, n, Kind::kWrite, false, HERE); }
EMULATOR_EXPORT void __tsan_init() {}
EMULATOR_EXPORT void __tsan_func_entry(void*) {}
EMULATOR_EXPORT void __tsan_func_exit() {}
EMULATOR_EXPORT void __tsan_vptr_update(void**, void*) {}

struct UbsanPlace {  // the beginning of every record
  const char* file;
  unsigned line, column;
};

static void undefined(const char* kind, const std::string& message, void* record) {
  const auto* place = static_cast<const UbsanPlace*>(record);
  if (state.current >= 0) find(kind, message, {.place = {place->file, static_cast<int>(place->line)}});
}

EMULATOR_EXPORT void __ubsan_handle_type_mismatch_v1(void* record, uintptr_t address) {
  undefined("misaligned", text("access to address ...%03zx, which its type does not allow", address & 0xfff), record);
  if (state.current >= 0) give_up();
}
EMULATOR_EXPORT void __ubsan_handle_out_of_bounds(void* record, uintptr_t index) {
  undefined("out of bounds", text("index %td is outside of the array", static_cast<ptrdiff_t>(index)), record);
}
EMULATOR_EXPORT void __ubsan_handle_shift_out_of_bounds(void* record, uintptr_t, uintptr_t amount) {
  undefined("shift", text("shift by %td bits", static_cast<ptrdiff_t>(amount)), record);
}
EMULATOR_EXPORT void __ubsan_handle_divrem_overflow(void* record, uintptr_t, uintptr_t) {
  undefined("division", "division by zero", record);
  if (state.current >= 0) give_up();
}
}
