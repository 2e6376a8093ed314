// Floating-point intrinsics. The fast ones (__expf and others) are as exact here as the slow ones, so a result may
// differ from a GPU's in the last bits.
#pragma once

#define __expf(v) expf(v)  // glibc declares these names itself
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __powf(a, b) powf(a, b)
#define __sincosf(v, s, c) sincosf(v, s, c)
#define __exp2f(v) exp2f(v)

EMULATED float rsqrtf(float v) { return 1.0f / sqrtf(v); }
EMULATED double rsqrt(double v) { return 1.0 / sqrt(v); }
EMULATED float __fdividef(float a, float b) { return a / b; }
EMULATED float __fadd_rn(float a, float b) { return a + b; }
EMULATED float __fsub_rn(float a, float b) { return a - b; }
EMULATED float __fmul_rn(float a, float b) { return a * b; }
EMULATED float __fdiv_rn(float a, float b) { return a / b; }
EMULATED float __frcp_rn(float v) { return 1.0f / v; }
EMULATED float __fsqrt_rn(float v) { return sqrtf(v); }
EMULATED float __frsqrt_rn(float v) { return static_cast<float>(1.0 / sqrt(static_cast<double>(v))); }
EMULATED float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
namespace emulator {
// Zero, or denormal, whether or not the thread flushes those.
EMULATED bool is_tiny(float v) { return (reinterpret<unsigned>(v) & 0x7f800000u) == 0; }
}  // namespace emulator

// It keeps denormal numbers, whatever -ftz says.
EMULATED float __fmaf_ieee_rn(float a, float b, float c) {
  float result = fmaf(a, b, c);
#ifdef __SSE__
  using emulator::is_tiny;
  if (is_tiny(a) || is_tiny(b) || is_tiny(c) || is_tiny(result)) {
    const unsigned state = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(state & ~0x8040u);
    asm volatile("" : "+x"(a), "+x"(b), "+x"(c));  // not before the state is changed
    result = fmaf(a, b, c);
    asm volatile("" : "+x"(result));
    __builtin_ia32_ldmxcsr(state);
  }
#endif
  return result;
}
EMULATED float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
EMULATED float __int_as_float(int v) { return emulator::reinterpret<float>(v); }
EMULATED int __float_as_int(float v) { return emulator::reinterpret<int>(v); }
EMULATED float __uint_as_float(unsigned v) { return emulator::reinterpret<float>(v); }
EMULATED unsigned __float_as_uint(float v) { return emulator::reinterpret<unsigned>(v); }
EMULATED double __longlong_as_double(long long v) { return emulator::reinterpret<double>(v); }
EMULATED long long __double_as_longlong(double v) { return emulator::reinterpret<long long>(v); }

namespace emulator {

// The device saturates where C++ says nothing, and turns NaN into 0.
EMULATED int to_int(double whole) {
  EMULATOR_COUNT(kConversions);
  if (!(whole == whole)) return 0;
  return whole >= 2147483647.0 ? 2147483647 : whole <= -2147483648.0 ? -2147483647 - 1 : static_cast<int>(whole);
}

EMULATED unsigned to_unsigned(double whole) {
  EMULATOR_COUNT(kConversions);
  if (!(whole == whole)) return 0;
  return whole >= 4294967295.0 ? 4294967295u : whole <= 0.0 ? 0u : static_cast<unsigned>(whole);
}

}  // namespace emulator

EMULATED int __float2int_rn(float v) { return emulator::to_int(nearbyintf(v)); }
EMULATED int __float2int_rz(float v) { return emulator::to_int(truncf(v)); }
EMULATED int __float2int_rd(float v) { return emulator::to_int(floorf(v)); }
EMULATED int __float2int_ru(float v) { return emulator::to_int(ceilf(v)); }
EMULATED unsigned __float2uint_rn(float v) { return emulator::to_unsigned(nearbyintf(v)); }
EMULATED unsigned __float2uint_rz(float v) { return emulator::to_unsigned(truncf(v)); }
EMULATED float __int2float_rn(int v) { return static_cast<float>(v); }
EMULATED float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
EMULATED float __ull2float_rn(unsigned long long v) { return static_cast<float>(v); }
