// half and half2 for the emulator. Every operation rounds once to half, as on the device: sums, differences, products
// and quotients of halves are exact enough in float for that; fused products go through double and round to odd.
#pragma once

struct __half_raw {
  unsigned short x;
};

struct __attribute__((aligned(2))) __half {
  _Float16 value;
  __half() = default;
  EMULATOR_INLINE __half(float v) : value(static_cast<_Float16>(v)) {}
  EMULATOR_INLINE __half(double v) : value(static_cast<_Float16>(v)) {}
  EMULATOR_INLINE __half(int v) : value(static_cast<_Float16>(v)) {}
  EMULATOR_INLINE __half(unsigned v) : value(static_cast<_Float16>(v)) {}
  EMULATOR_INLINE __half(const __half_raw& raw) { __builtin_memcpy(&value, &raw, 2); }
  EMULATOR_INLINE operator float() const { return static_cast<float>(value); }
};

struct __attribute__((aligned(4))) __half2 {
  __half x, y;
  EMULATOR_COPIES(__half2)
  EMULATOR_INLINE __half2(__half a, __half b) : x(a), y(b) {}
};

using half = __half;
using half2 = __half2;

namespace emulator {
template <>
struct IsHalf<__half> : std::true_type {};

EMULATED __half fused(float a, float b, float c) {
  const double exact = static_cast<double>(a * b) + static_cast<double>(c);  // a * b is exact: 22 bits
  float rounded = static_cast<float>(exact);
  if (static_cast<double>(rounded) != exact) {
    int bits = reinterpret<int>(rounded);
    bits -= fabs(static_cast<double>(rounded)) > fabs(exact);
    rounded = reinterpret<float>(bits | 1);
  }
  return __half(rounded);
}
}  // namespace emulator

EMULATED __half __float2half(float v) { return __half(v); }
EMULATED __half __float2half_rn(float v) { return __half(v); }
EMULATED __half __double2half(double v) { return __half(v); }
EMULATED float __half2float(__half v) { return static_cast<float>(v.value); }
EMULATED __half __int2half_rn(int v) { return __half(v); }
EMULATED __half __uint2half_rn(unsigned v) { return __half(v); }
EMULATED __half __short2half_rn(short v) { return __half(static_cast<int>(v)); }
EMULATED __half __ushort2half_rn(unsigned short v) { return __half(static_cast<int>(v)); }
EMULATED int __half2int_rn(__half v) { return emulator::to_int(nearbyintf(__half2float(v))); }
EMULATED int __half2int_rz(__half v) { return emulator::to_int(truncf(__half2float(v))); }
EMULATED __half __ushort_as_half(unsigned short v) { return emulator::reinterpret<__half>(v); }
EMULATED __half __short_as_half(short v) { return emulator::reinterpret<__half>(v); }
EMULATED unsigned short __half_as_ushort(__half v) { return emulator::reinterpret<unsigned short>(v); }
EMULATED short __half_as_short(__half v) { return emulator::reinterpret<short>(v); }

EMULATED __half __hadd(__half a, __half b) { return __half(__half2float(a) + __half2float(b)); }
EMULATED __half __hsub(__half a, __half b) { return __half(__half2float(a) - __half2float(b)); }
EMULATED __half __hmul(__half a, __half b) { return __half(__half2float(a) * __half2float(b)); }
EMULATED __half __hdiv(__half a, __half b) { return __half(__half2float(a) / __half2float(b)); }
EMULATED __half __hfma(__half a, __half b, __half c) {
  return emulator::fused(__half2float(a), __half2float(b), __half2float(c));
}
EMULATED __half __hneg(__half a) { return __half(-__half2float(a)); }
EMULATED __half __habs(__half a) { return __half(fabsf(__half2float(a))); }
EMULATED __half __hmax(__half a, __half b) { return __half(fmaxf(__half2float(a), __half2float(b))); }
EMULATED __half __hmin(__half a, __half b) { return __half(fminf(__half2float(a), __half2float(b))); }
EMULATED __half hexp(__half a) { return __half(expf(__half2float(a))); }
EMULATED __half hsqrt(__half a) { return __half(sqrtf(__half2float(a))); }
EMULATED __half hrsqrt(__half a) { return __half(rsqrtf(__half2float(a))); }
EMULATED bool __hisnan(__half a) { return __half2float(a) != __half2float(a); }
EMULATED int __hisinf(__half a) { return isinf(__half2float(a)) ? (__half2float(a) > 0 ? 1 : -1) : 0; }
EMULATED bool __heq(__half a, __half b) { return __half2float(a) == __half2float(b); }
EMULATED bool __hgt(__half a, __half b) { return __half2float(a) > __half2float(b); }
EMULATED bool __hge(__half a, __half b) { return __half2float(a) >= __half2float(b); }
EMULATED bool __hlt(__half a, __half b) { return __half2float(a) < __half2float(b); }
EMULATED bool __hle(__half a, __half b) { return __half2float(a) <= __half2float(b); }

EMULATED __half2 make_half2(__half a, __half b) { return __half2(a, b); }
EMULATED __half2 __halves2half2(__half a, __half b) { return __half2(a, b); }
EMULATED __half2 __half2half2(__half a) { return __half2(a, a); }
EMULATED __half2 __float2half2_rn(float v) { return __half2(__half(v), __half(v)); }
EMULATED __half2 __floats2half2_rn(float a, float b) { return __half2(__half(a), __half(b)); }
EMULATED __half2 __float22half2_rn(float2 v) { return __half2(__half(v.x), __half(v.y)); }
EMULATED float2 __half22float2(__half2 v) { return float2(__half2float(v.x), __half2float(v.y)); }
EMULATED __half __low2half(__half2 v) { return v.x; }
EMULATED __half __high2half(__half2 v) { return v.y; }
EMULATED float __low2float(__half2 v) { return __half2float(v.x); }
EMULATED float __high2float(__half2 v) { return __half2float(v.y); }
EMULATED __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
EMULATED __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
EMULATED __half2 __lowhigh2highlow(__half2 v) { return __half2(v.y, v.x); }
EMULATED __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
EMULATED __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }

#define EMULATOR_HALF2(name) \
  EMULATED __half2 name##2(__half2 a, __half2 b) { return __half2(name(a.x, b.x), name(a.y, b.y)); }
EMULATOR_HALF2(__hadd)
EMULATOR_HALF2(__hsub)
EMULATOR_HALF2(__hmul)
EMULATOR_HALF2(__hmax)
EMULATOR_HALF2(__hmin)
EMULATED __half2 __h2div(__half2 a, __half2 b) { return __half2(__hdiv(a.x, b.x), __hdiv(a.y, b.y)); }
EMULATED __half2 __hneg2(__half2 a) { return __half2(__hneg(a.x), __hneg(a.y)); }
EMULATED __half2 __habs2(__half2 a) { return __half2(__habs(a.x), __habs(a.y)); }
EMULATED __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}

#define EMULATOR_OPERATOR(symbol, one, two)                                 \
  EMULATED __half operator symbol(__half a, __half b) { return one(a, b); } \
  EMULATED __half2 operator symbol(__half2 a, __half2 b) { return two(a, b); }
EMULATOR_OPERATOR(+, __hadd, __hadd2)
EMULATOR_OPERATOR(-, __hsub, __hsub2)
EMULATOR_OPERATOR(*, __hmul, __hmul2)
EMULATOR_OPERATOR(/, __hdiv, __h2div)
EMULATED __half operator-(__half a) { return __hneg(a); }
EMULATED __half& operator+=(__half& a, __half b) { return a = __hadd(a, b); }
EMULATED __half& operator*=(__half& a, __half b) { return a = __hmul(a, b); }
EMULATED bool operator>(__half a, __half b) { return __hgt(a, b); }
EMULATED bool operator<(__half a, __half b) { return __hlt(a, b); }
EMULATED bool operator==(__half a, __half b) { return __heq(a, b); }
