// Integer intrinsics.
#pragma once

namespace emulator {

typedef signed char Bytes __attribute__((vector_size(4)));
typedef unsigned char UnsignedBytes __attribute__((vector_size(4)));
typedef int Words __attribute__((vector_size(16)));

template <class D, class S>
EMULATED D reinterpret(S value) {
  static_assert(sizeof(D) == sizeof(S));
  D result;
  __builtin_memcpy(static_cast<void*>(&result), &value, sizeof(D));
  return result;
}

template <class A, class B>
EMULATED int dot4(unsigned a, unsigned b, int c) {
  EMULATOR_COUNT(kDotProducts);
  const Words products =
      __builtin_convertvector(reinterpret<A>(a), Words) * __builtin_convertvector(reinterpret<B>(b), Words);
  return static_cast<int>(static_cast<unsigned>(c) + static_cast<unsigned>(products[0]) +
                          static_cast<unsigned>(products[1]) + static_cast<unsigned>(products[2]) +
                          static_cast<unsigned>(products[3]));
}

}  // namespace emulator

#if __CUDA_ARCH__ >= 610
EMULATED int __dp4a(int a, int b, int c) { return emulator::dot4<emulator::Bytes, emulator::Bytes>(a, b, c); }
EMULATED unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  return emulator::dot4<emulator::UnsignedBytes, emulator::UnsignedBytes>(a, b, c);
}
EMULATED int __dp4a(char4 a, char4 b, int c) {
  return __dp4a(emulator::reinterpret<int>(a), emulator::reinterpret<int>(b), c);
}
#endif

EMULATED unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
EMULATED int __popc(unsigned v) { return __builtin_popcount(v); }
EMULATED int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
EMULATED int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
EMULATED int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
EMULATED int __ffs(int v) { return __builtin_ffs(v); }
EMULATED unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
  return r;
}
EMULATED int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
EMULATED unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned long long>(a) * b >> 32; }
EMULATED int __mulhi(int a, int b) { return static_cast<long long>(a) * b >> 32; }
EMULATED unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return ((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31)) >> 32;
}
EMULATED unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31);
}

// Selector nibbles: 3 bits choose a byte of b:a, the fourth copies that byte's sign over all bits.
EMULATED unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned choice = selector >> (4 * i);
    unsigned byte = bytes >> (8 * (choice & 7)) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// Arithmetic on four bytes of a word.
#define EMULATOR_BYTES(name, T, expression)                           \
  EMULATED unsigned name(unsigned left, unsigned right) {             \
    unsigned result = 0;                                              \
    for (int i = 0; i < 4; i++) {                                     \
      const int a = static_cast<T>(left >> (8 * i));                  \
      const int b = static_cast<T>(right >> (8 * i));                 \
      result |= (static_cast<unsigned>(expression) & 255) << (8 * i); \
    }                                                                 \
    return result;                                                    \
  }
EMULATOR_BYTES(__vadd4, signed char, a + b)
EMULATOR_BYTES(__vsub4, signed char, a - b)
EMULATOR_BYTES(__vsubss4, signed char, a - b > 127 ? 127 : a - b < -128 ? -128 : a - b)
EMULATOR_BYTES(__vmaxs4, signed char, a > b ? a : b)
EMULATOR_BYTES(__vmins4, signed char, a < b ? a : b)
EMULATOR_BYTES(__vcmpeq4, unsigned char, a == b ? 255 : 0)
EMULATOR_BYTES(__vcmpne4, unsigned char, a != b ? 255 : 0)

#define EMULATOR_MIN_MAX(T)                          \
  EMULATED T min(T a, T b) { return a < b ? a : b; } \
  EMULATED T max(T a, T b) { return a > b ? a : b; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
EMULATED float min(float a, float b) { return fminf(a, b); }
EMULATED float max(float a, float b) { return fmaxf(a, b); }
