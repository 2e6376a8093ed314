// silu(gate) * up with the CPU's bits: exp8 and silu_product of _cpu/kernels/portable.h, number by number.

namespace {

// e^x within 2 units in the last place; 0 below -87, infinity above 88, NaN for NaN. e^x = 2^k e^r with
// |r| <= ln(2)/2 and a polynomial for e^r.
__device__ __forceinline__ float exponential(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float clamped = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + kRounder;
  const int exponent = __float_as_int(shifted) - __float_as_int(kRounder);
  const float k = shifted - kRounder;
  float r = clamped - k * 0.693145752f;  // ln 2 in two parts, the first exact in few bits
  r -= k * 1.42860677e-6f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  p *= __int_as_float((exponent + 127) << 23);
  if (x > 88.0f) p = __int_as_float(0x7f800000);
  if (x < -87.0f) p = 0.0f;
  return x == x ? p : x;
}

__device__ __forceinline__ float silu_product(float gate, float up) { return gate / (1.0f + exponential(-gate)) * up; }

}  // namespace
