// Needs: common.cu
// Quantization of the vectors that a matrix is multiplied with. See common.cu for their form.
//
//   codes_i = round(x_i / scale_g), scale_g = max |x| of the group / limit, limit = 127 (q4) or 32767 (q8)
//
// The result has the CPU's bits. A group with an infinite number or NaN gets the scale NaN, which makes every product
// NaN: errors must stay visible.

namespace {

struct ScaleAndOffset {
  float scale;
  int offset;  // of q4
};

// most / limit, rounded as a division. most is so large, or zero, that the remainder is no denormal number.
template <int kLimit>
__device__ __forceinline__ float divided_by_limit(float most) {
  constexpr float kInverse = 1.0f / kLimit;
  const float quotient = most * kInverse;
  return fmaf(fmaf(-static_cast<float>(kLimit), quotient, most), kInverse, quotient);
}

// Quantizes a group by a warp. x[k] is the lane's number k * 32 + lane of it, or zero after its end. Codes go to first,
// of q8 the low bytes to second. All lanes get scale and offset.
template <int kBits, int kGroup>
__device__ __forceinline__ ScaleAndOffset quantize_numbers(const float (&x)[kGroup / 32], signed char* first,
                                                           signed char* second) {
  constexpr int kLimit = kBits == 4 ? 127 : 32767;
  constexpr unsigned kInfinity = 0x7f800000u;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const int lane = threadIdx.x % 32;
  unsigned magnitude = 0;  // as integers, magnitudes are ordered like floats, and NaN is above infinity
  for (int k = 0; k < kGroup / 32; k++) magnitude = max(magnitude, __float_as_uint(x[k]) & 0x7fffffffu);
  magnitude = warp_max(magnitude);
  const bool finite = magnitude < kInfinity;
  if (magnitude < __float_as_uint(kLimit * kSmallestScale)) magnitude = 0;
  const float most = __uint_as_float(magnitude);
  const float factor = finite && magnitude > 0 ? kLimit / most : 0.0f;

  int sum = 0;
  for (int k = 0; k < kGroup / 32; k++) {
    // A product is at most a little larger than the limit, to which it is rounded.
    const int nearest = __float_as_int(x[k] * factor + kRounder) - __float_as_int(kRounder);
    const int code = finite ? nearest : 0;
    if (kBits == 4) {
      first[k * 32 + lane] = static_cast<signed char>(code);
      sum += code;
    } else {
      first[k * 32 + lane] = static_cast<signed char>(code >> 8);
      second[k * 32 + lane] = static_cast<signed char>(code & 255);
    }
  }
  if (kBits == 4) sum = warp_sum(sum);
  return {finite ? divided_by_limit<kLimit>(most) : __uint_as_float(0x7fffffffu), -8 * sum};
}

// Writes group g of vector number c for a float matrix: the numbers as they are, in the order of its running sums.
template <int kGroup>
__device__ __forceinline__ void sort_group(const float (&x)[kGroup / 32], const Quantized& to, int c, int g) {
  static_assert(kGroup == kFloatGroup, "vectors for float matrices have groups of one size");
  const int steps = to.groups * (kGroup / kRunningSums);  // numbers of each running sum
  float* numbers = reinterpret_cast<float*>(to.codes) + static_cast<size_t>(c) * kRunningSums * steps;
  for (int k = 0; k < kGroup / 32; k++) {
    const int i = g * kGroup + k * 32 + static_cast<int>(threadIdx.x % 32);
    numbers[i % kRunningSums * steps + i / kRunningSums] = x[k];
  }
}

// Quantizes group g of vector number c, or sorts it for a float matrix.
template <int kBits, int kGroup>
__device__ __forceinline__ void quantize_group(const float (&x)[kGroup / 32], const Quantized& to, int c, int g) {
  if constexpr (kBits >= 16) {
    sort_group<kGroup>(x, to, c, g);
    return;
  }
  const size_t stride = static_cast<size_t>(to.groups) * kGroup;
  signed char* codes = to.codes + static_cast<size_t>(c) * stride * (kBits / 4) + static_cast<size_t>(g) * kGroup;
  const ScaleAndOffset made = quantize_numbers<kBits, kGroup>(x, codes, codes + stride);
  if (threadIdx.x % 32 == 0) {
    const size_t at = static_cast<size_t>(c) * to.groups + g;
    to.scales[at] = made.scale;
    if (kBits == 4) to.offsets[at] = made.offset;
  }
}

// The same for a matrix of any kind. Float matrices have groups of kFloatGroup.
template <int kGroup>
__device__ __forceinline__ void quantize_group_for(int bits, const float (&x)[kGroup / 32], const Quantized& to, int c,
                                                   int g) {
  if (bits == 4)
    quantize_group<4, kGroup>(x, to, c, g);
  else if (kGroup != kFloatGroup || bits == 8)
    quantize_group<8, kGroup>(x, to, c, g);
  else if constexpr (kGroup == kFloatGroup)
    sort_group<kGroup>(x, to, c, g);
}

// Quantizes the group of a vector `warp`, values (count,), that has this block's tile, if this is the last of its blocks
// to finish. counters (groups of to,) are zeros before and after.
template <int kColumns, int kBits, int kGroup>
__device__ __forceinline__ void quantize_finished_group(const float* values, int count, const Quantized& to,
                                                        unsigned* counters) {
  constexpr int kTilesOfGroup = kGroup / kTileRows;
  const int column = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = static_cast<int>(blockIdx.x) / kTilesOfGroup;
  const int tiles = min(kTilesOfGroup, static_cast<int>(gridDim.x) - group * kTilesOfGroup);
  if (!is_last_block(counters + group, static_cast<unsigned>(tiles)) || column >= kColumns) return;
  float y[kGroup / 32];
  for (int k = 0; k < kGroup / 32; k++) {
    const int i = group * kGroup + k * 32 + lane;
    y[k] = i < count ? __ldcg(values + i) : 0.0f;
  }
  quantize_group<kBits, kGroup>(y, to, column, group);
}

}  // namespace
