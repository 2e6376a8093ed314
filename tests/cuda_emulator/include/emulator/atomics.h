// Integer atomics, and loads and stores with a cache hint. Atomics on floats are left out on purpose: their results
// depend on the order of blocks.
#pragma once

#define EMULATOR_ATOMIC(name, expression)                                       \
  template <class T>                                                            \
  UNCHECKED T name##_here(T* address, T value, const void* site) {              \
    static_assert(std::is_integral_v<T>, #name " is allowed on integers only"); \
    emulator_atomic(address, sizeof(T), site);                                  \
    const T old = *address;                                                     \
    *address = static_cast<T>(expression);                                      \
    return old;                                                                 \
  }                                                                             \
  template <class T>                                                            \
  UNCHECKED T name(T* address, std::common_type_t<T> value) {                   \
    return name##_here<T>(address, value, __builtin_return_address(0));         \
  }

EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicMax, old > value ? old : value)
EMULATOR_ATOMIC(atomicMin, old < value ? old : value)
EMULATOR_ATOMIC(atomicExch, value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicAnd, old& value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)

template <class T>
UNCHECKED T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "atomicCAS is allowed on integers only");
  emulator_atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

#define EMULATOR_LOAD(name, hook)                                     \
  template <class T>                                                  \
  UNCHECKED T name(const T* address) {                                \
    hook(address, sizeof(T), __builtin_return_address(0));            \
    T value;                                                          \
    __builtin_memcpy(static_cast<void*>(&value), address, sizeof(T)); \
    return value;                                                     \
  }
EMULATOR_LOAD(__ldg, emulator_read_constant)  // for what nobody writes during the kernel
EMULATOR_LOAD(__ldcg, emulator_read_past_l1)  // these two see what another block made visible with a fence
EMULATOR_LOAD(__ldcv, emulator_read_past_l1)

template <class T>
EMULATED T __ldcs(const T* address) {
  return *address;
}
template <class T>
EMULATED T __ldca(const T* address) {
  return *address;
}
template <class T>
EMULATED T __ldlu(const T* address) {
  return *address;
}
template <class T>
EMULATED void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
EMULATED void __stwt(T* address, T value) {
  *address = value;
}
template <class T>
EMULATED void __stcg(T* address, T value) {
  *address = value;
}
