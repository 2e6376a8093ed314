// Vector types. In checked builds a copy from memory is one access of the whole vector, as on the device; the compiler
// by itself would show one access per member.
#pragma once

namespace emulator {

template <class T>
UNCHECKED void copy_vector(T* to, const T* from) {
  emulator_read(from, sizeof(T), __builtin_return_address(0));
  emulator_write(to, sizeof(T), __builtin_return_address(0));
  __builtin_memcpy(static_cast<void*>(to), from, sizeof(T));
}

}  // namespace emulator

#ifdef EMULATOR_CHECKED
#define EMULATOR_COPIES(name)                                              \
  name() = default;                                                        \
  EMULATOR_INLINE name(const name& o) { emulator::copy_vector(this, &o); } \
  EMULATOR_INLINE name& operator=(const name& o) {                         \
    emulator::copy_vector(this, &o);                                       \
    return *this;                                                          \
  }
#else
#define EMULATOR_COPIES(name) name() = default;
#endif
#define EMULATOR_INLINE inline __attribute__((always_inline))

#define EMULATOR_VECTORS(T, name, align2, align4)                              \
  struct name##1 { T x; };                                                     \
  struct __attribute__((aligned(align2))) name##2 {                            \
    T x, y;                                                                    \
    EMULATOR_COPIES(name##2)                                                   \
    EMULATOR_INLINE name##2(T a, T b) : x(a), y(b) {}                          \
  };                                                                           \
  struct name##3 { T x, y, z; };                                               \
  struct __attribute__((aligned(align4))) name##4 {                            \
    T x, y, z, w;                                                              \
    EMULATOR_COPIES(name##4)                                                   \
    EMULATOR_INLINE name##4(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}    \
  };                                                                           \
  EMULATED name##1 make_##name##1(T x) { return name##1 {x}; }                 \
  EMULATED name##2 make_##name##2(T x, T y) { return name##2(x, y); }          \
  EMULATED name##3 make_##name##3(T x, T y, T z) { return name##3 {x, y, z}; } \
  EMULATED name##4 make_##name##4(T x, T y, T z, T w) { return name##4(x, y, z, w); }

EMULATOR_VECTORS(signed char, char, 2, 4)
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATOR_VECTORS(double, double, 16, 16)
// uint3 is in interface.h: threadIdx is one.
#define uint3 emulator_unused_uint3
EMULATOR_VECTORS(unsigned, uint, 8, 16)
#undef uint3
