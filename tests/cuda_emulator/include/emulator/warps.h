// Barriers, fences, shuffles and votes. Each remembers its line in the source, for what is said about it.
#pragma once

#define EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

EMULATED void __syncthreads(EMULATOR_HERE) { emulator_barrier(emulator::kBarrier, 0, file, line); }
EMULATED int __syncthreads_count(int predicate, EMULATOR_HERE) {
  return emulator_barrier(emulator::kBarrierCount, predicate, file, line);
}
EMULATED int __syncthreads_and(int predicate, EMULATOR_HERE) {
  return emulator_barrier(emulator::kBarrierAnd, predicate, file, line);
}
EMULATED int __syncthreads_or(int predicate, EMULATOR_HERE) {
  return emulator_barrier(emulator::kBarrierOr, predicate, file, line);
}
EMULATED void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_HERE) {
  emulator_exchange(emulator::kSyncWarp, mask, 0, file, line);
}
EMULATED void __threadfence() { emulator_fence(); }
EMULATED void __threadfence_system() { emulator_fence(); }
EMULATED void __threadfence_block() { __asm__ volatile("" ::: "memory"); }  // says nothing to other blocks
EMULATED void __trap(EMULATOR_HERE) { emulator_trap("__trap was called", file, line); }
EMULATED void emulator_assert(bool holds, const char* text, EMULATOR_HERE) {
  if (!holds) emulator_trap(text, file, line);
}
#define assert(condition) emulator_assert(static_cast<bool>(condition), "the assertion " #condition " does not hold")
EMULATED unsigned __activemask() { return emulator_active_mask(); }

namespace emulator {

template <class T>
EMULATED unsigned long long pack(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  unsigned long long word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
EMULATED T unpack(unsigned long long word) {
  T value;
  __builtin_memcpy(static_cast<void*>(&value), &word, sizeof(T));
  return value;
}

template <class T>
EMULATED T shuffle(unsigned mask, T value, int source, const char* file, int line) {
  const Exchange* all = emulator_exchange(kShuffle, mask, pack(value), file, line);
  if (!(all->arrived >> source & 1)) {
    emulator_bad_lane(source, file, line);
    return unpack<T>(0x7fc0dead7fc0deadull);
  }
  return unpack<T>(all->narrow[source]);
}

}  // namespace emulator

template <class T>
EMULATED T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_HERE) {
  const int first = emulator_indices.lane & ~(width - 1);
  return emulator::shuffle(mask, value, first + (lane & (width - 1)), file, line);
}
template <class T>
EMULATED T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_HERE) {
  const int lane = emulator_indices.lane, last = lane | (width - 1), source = lane ^ bits;
  return emulator::shuffle(mask, value, source > last ? lane : source & 31, file, line);
}
template <class T>
EMULATED T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
  const int lane = emulator_indices.lane, first = lane & ~(width - 1), source = lane - static_cast<int>(delta);
  return emulator::shuffle(mask, value, source < first ? lane : source, file, line);
}
template <class T>
EMULATED T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
  const int lane = emulator_indices.lane, last = lane | (width - 1), source = lane + static_cast<int>(delta);
  return emulator::shuffle(mask, value, source > last ? lane : source, file, line);
}

EMULATED unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  const emulator::Exchange* all = emulator_exchange(emulator::kBallot, mask, predicate != 0, file, line);
  unsigned votes = 0;
  for (int i = 0; i < 32; i++) votes |= (all->arrived >> i & 1 & static_cast<unsigned>(all->narrow[i])) << i;
  return votes;
}
EMULATED int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
EMULATED int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}

template <class T>
EMULATED unsigned __match_any_sync(unsigned mask, T value, EMULATOR_HERE) {
  const emulator::Exchange* all = emulator_exchange(emulator::kMatch, mask, emulator::pack(value), file, line);
  unsigned same = 0;
  for (int i = 0; i < 32; i++)
    same |= (all->arrived >> i & 1 && all->narrow[i] == emulator::pack(value) ? 1u : 0u) << i;
  return same;
}

#define EMULATOR_REDUCE(name, T, result, expression)                                                               \
  EMULATED T name(unsigned mask, T value, EMULATOR_HERE) {                                                         \
    const emulator::Exchange* all = emulator_exchange(emulator::kReduce, mask, emulator::pack(value), file, line); \
    T a = result;                                                                                                  \
    for (int i = 0; i < 32; i++) {                                                                                 \
      if (!(all->arrived >> i & 1)) continue;                                                                      \
      const T b = emulator::unpack<T>(all->narrow[i]);                                                             \
      a = expression;                                                                                              \
    }                                                                                                              \
    return a;                                                                                                      \
  }
// As on the device, these need sm_80.
#if __CUDA_ARCH__ >= 800
EMULATOR_REDUCE(__reduce_add_sync, unsigned, 0, a + b)
EMULATOR_REDUCE(__reduce_add_sync, int, 0, a + b)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, value, a > b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, int, value, a > b ? a : b)
EMULATOR_REDUCE(__reduce_min_sync, unsigned, value, a < b ? a : b)
EMULATOR_REDUCE(__reduce_min_sync, int, value, a < b ? a : b)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, 0, a | b)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, value, a& b)
EMULATOR_REDUCE(__reduce_xor_sync, unsigned, 0, a ^ b)
#endif
