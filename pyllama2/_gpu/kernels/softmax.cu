// Needs: common.cu
// The arithmetic of both attention kernels: softmax of the scores of one query over one span of positions, and the
// merge of spans. Both have the CPU's operations in the CPU's order (_cpu/kernels/attention.h), and no contraction
// (--fmad=false), so that attention has the CPU's bits. exp2f() would not have them: each library has its own.
//
//   weight_s = 2^(score_s - maximum), sum = sum of the weights
//   merge of two spans: both are multiplied with 2^(their maximum - the larger maximum), and added

namespace {

constexpr int kSpan = 256;  // positions, counted from 0, that share a softmax
constexpr int kSpanStride = kSpan + 16;  // between the scores of two queries: two half warps read different banks
constexpr int kHalfWarp = 16;

// Minus infinity, for which NVRTC has no name.
__device__ __forceinline__ float lowest() { return __uint_as_float(0xff800000u); }

// 2^x within 2 units in the last place for x <= 0; 0 below -126, where it would be denormal, and NaN for NaN.
__device__ __forceinline__ float exp2_polynomial(float x) {
  constexpr float kRounder = 12582912.0f + 127.0f;
  const float shifted = x + kRounder;  // the nearest integer + 127 in its lowest bits
  const float r = x - (shifted - kRounder);
  float p = 0x1.5c12bep-10f;
  p = fmaf(p, r, 0x1.3d0e24p-7f);
  p = fmaf(p, r, 0x1.c6b6d2p-5f);
  p = fmaf(p, r, 0x1.ebf91p-3f);
  p = fmaf(p, r, 0x1.62e428p-1f);
  p = fmaf(p, r, 1.0f);
  p *= __uint_as_float(__float_as_uint(shifted) << 23);
  return x < -126.0f ? 0.0f : p;
}

// Turns n scores of one query into weights, times scales if there are any, by half a warp whose lanes are in mask. All
// of its lanes get the maximum and the sum.
__device__ __forceinline__ void softmax_of_span(float* scores, int n, const float* __restrict__ scales, unsigned mask,
                                                float& maximum, float& sum) {
  const int lane = threadIdx.x % kHalfWarp;
  maximum = lowest();
#pragma unroll 4
  for (int s = lane; s < n; s += kHalfWarp) maximum = fmaxf(maximum, scores[s]);
  for (int offset = 8; offset > 0; offset /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(mask, maximum, offset));
  sum = 0.0f;
#pragma unroll 4
  for (int s = lane; s < n; s += kHalfWarp) {
    const float weight = exp2_polynomial(scores[s] - maximum);
    sum += weight;
    scores[s] = scales ? weight * __ldg(scales + s) : weight;
  }
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(mask, sum, offset);
}

// The sum of n weights of one query, by half a warp whose lanes are in mask: as softmax_of_span has it.
__device__ __forceinline__ float sum_of_span(const float* weights, int n, unsigned mask) {
  float sum = 0.0f;
#pragma unroll 8
  for (int s = threadIdx.x % kHalfWarp; s < n; s += kHalfWarp) sum += weights[s];
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(mask, sum, offset);
  return sum;
}

// The factors of the sums so far, and of those of a later span, in their common sums.
struct Merge {
  float keep, add;
  __device__ __forceinline__ float operator()(float out, float later) const { return fmaf(later, add, out * keep); }
};

// Makes maximum and sum those of both.
__device__ __forceinline__ Merge merge_softmax(float& maximum, float& sum, float later_maximum, float later_sum) {
  const float most = maximum > later_maximum ? maximum : later_maximum;
  const Merge merge = {exp2_polynomial(maximum - most), exp2_polynomial(later_maximum - most)};
  sum = sum * merge.keep + later_sum * merge.add;
  maximum = most;
  return merge;
}

// What merges one span with those before it: factors of outputs, and what is added to the sum.
struct alignas(16) SpanMerge {
  Merge outputs;
  float sum;
  __device__ __forceinline__ float of_sums(float before) const { return before * outputs.keep + sum; }
};

// The merges of 32 spans, one for each lane of a warp, after spans with a maximum. own and sum are those of the lane's
// span: the lowest number and 0 if there is none. maximum becomes that of all. No maximum is NaN.
__device__ __forceinline__ SpanMerge merges_of_warp(float& maximum, float own, float sum) {
  const int lane = threadIdx.x % 32;
  float most = own;
  for (int offset = 1; offset < 32; offset *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, most, offset);
    if (lane >= offset) most = fmaxf(most, other);
  }
  most = fmaxf(maximum, most);
  float before = __shfl_up_sync(0xffffffffu, most, 1);
  if (lane == 0) before = maximum;
  maximum = __shfl_sync(0xffffffffu, most, 31);
  const Merge outputs = {exp2_polynomial(before - most), exp2_polynomial(own - most)};
  return {outputs, sum * outputs.add};
}

}  // namespace
