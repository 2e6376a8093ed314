// The table of a module's kernels: how to call each, and what its parameters are.
#pragma once

namespace emulator {

template <class T>
constexpr char kind_of() {
  using U = std::remove_cv_t<T>;
  if (std::is_void_v<U>) return 'v';
  if (std::is_floating_point_v<U>) return 'f';
  if (std::is_integral_v<U>) return std::is_unsigned_v<U> ? 'u' : 'i';
  return 'v';
}

template <class T>
struct IsHalf : std::false_type {};  // cuda_fp16.h says true for its types

template <class T>
constexpr Parameter describe() {
  using P = std::remove_pointer_t<T>;
  using U = std::remove_cv_t<P>;
  using Sized = std::conditional_t<std::is_void_v<U>, char, U>;
  const char kind = IsHalf<U>::value ? 'f' : kind_of<U>();
  const char pointer = !std::is_pointer_v<T> ? 0 : std::is_const_v<P> ? 2 : 1;
  return {kind, pointer, static_cast<short>(sizeof(Sized))};
}

template <class T>
UNCHECKED T argument(void* address) {
  T value;
  __builtin_memcpy(static_cast<void*>(&value), address, sizeof(T));
  return value;
}

template <auto F>
struct Caller;

template <class... Arguments, void (*F)(Arguments...)>
struct Caller<F> {
  static constexpr Parameter parameters[sizeof...(Arguments) + 1] = {describe<Arguments>()..., {}};
  static constexpr int n = sizeof...(Arguments);
  template <size_t... I>
  UNCHECKED static void unpack_and_call(void** arguments, std::index_sequence<I...>) {
    F(argument<Arguments>(arguments[I])...);
  }
  static void call(void** arguments) { unpack_and_call(arguments, std::index_sequence_for<Arguments...>{}); }
};

}  // namespace emulator

#define EMULATOR_KERNEL(name, ...)                                                       \
  {name, emulator::Caller<__VA_ARGS__>::call, emulator::Caller<__VA_ARGS__>::parameters, \
   emulator::Caller<__VA_ARGS__>::n}
