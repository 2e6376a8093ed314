// Needs: common.cu
// Quantization of the vectors that a matrix is multiplied with. See common.cu for their form.
//
//   codes_i = round(x_i / scale_g), scale_g = max |x| of the group / limit, limit = 127 (q4) or 32767 (q8)
//
// The result has the CPU's bits. A group with an infinite number or NaN gets the scale NaN, which makes every product
// NaN: errors must stay visible.

namespace {

// Quantizes group g of vector number c. x[k] is the lane's number k * 32 + lane of the group, or zero after its end.
template <int kBits, int kGroup>
__device__ __forceinline__ void quantize_group(const float (&x)[kGroup / 32], const Quantized& to, int c, int g) {
  constexpr float kLimit = kBits == 4 ? 127.0f : 32767.0f;
  constexpr unsigned kInfinity = 0x7f800000u;
  const int lane = threadIdx.x % 32;
  unsigned magnitude = 0;  // as integers, magnitudes are ordered like floats, and NaN is above infinity
  for (int k = 0; k < kGroup / 32; k++) magnitude = max(magnitude, __float_as_uint(x[k]) & 0x7fffffffu);
  magnitude = warp_max(magnitude);
  const bool finite = magnitude < kInfinity;
  if (magnitude < __float_as_uint(kLimit * kSmallestScale)) magnitude = 0;
  const float most = __uint_as_float(magnitude);
  const float factor = finite && magnitude > 0 ? kLimit / most : 0.0f;

  const size_t stride = static_cast<size_t>(to.groups) * kGroup;
  signed char* codes = to.codes + static_cast<size_t>(c) * stride * (kBits / 4) + static_cast<size_t>(g) * kGroup;
  int sum = 0;
  for (int k = 0; k < kGroup / 32; k++) {
    const float nearest = rintf(fminf(fmaxf(x[k] * factor, -kLimit), kLimit));
    const int code = finite ? static_cast<int>(nearest) : 0;
    if (kBits == 4) {
      codes[k * 32 + lane] = static_cast<signed char>(code);
      sum += code;
    } else {
      codes[k * 32 + lane] = static_cast<signed char>(code >> 8);
      codes[stride + k * 32 + lane] = static_cast<signed char>(code & 255);
    }
  }
  if (kBits == 4) sum = warp_sum(sum);
  if (lane == 0) {
    const size_t at = static_cast<size_t>(c) * to.groups + g;
    to.scales[at] = finite ? most / kLimit : __uint_as_float(0x7fffffffu);
    if (kBits == 4) to.offsets[at] = -8 * sum;
  }
}

// The same for a matrix of either kind.
template <int kGroup>
__device__ __forceinline__ void quantize_group_for(int bits, const float (&x)[kGroup / 32], const Quantized& to, int c,
                                                   int g) {
  if (bits == 4)
    quantize_group<4, kGroup>(x, to, c, g);
  else
    quantize_group<8, kGroup>(x, to, c, g);
}

}  // namespace
