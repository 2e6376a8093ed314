// Needs: common.cu
// The arithmetic that both attention kernels share: softmax of the scores of one query over one span of positions, and
// the merge of spans, each with the CPU's operations in the CPU's order (see _cpu/kernels/attention.h), so that
// attention has the CPU's bits (sources are compiled with --fmad=false). Only exp2f() of the merge differs, by its last bits, from one machine to another.
//
//   weight_s = 2^(score_s - maximum), sum = sum of the weights
//   two spans: a common maximum, and what belongs to a smaller one times 2^(it - maximum)

namespace {

constexpr int kSpan = 256;  // positions, counted from 0, that share a softmax
constexpr int kSpanStride = kSpan + 16;  // of the scores of a query: half a warp each for two queries, no bank twice
constexpr int kHalfWarp = 16;

// Minus infinity, which NVRTC has no name for.
__device__ __forceinline__ float lowest() { return __uint_as_float(0xff800000u); }

// 2^x within 2 units in the last place for x <= 0; 0 below -126.5, NaN for NaN.
__device__ __forceinline__ float exp2_polynomial(float x) {
  constexpr float kRounder = 12582912.0f + 127.0f;
  x = x < -127.0f ? -127.0f : x;
  const float shifted = x + kRounder;  // the nearest integer + 127 in its lowest bits
  const float r = x - (shifted - kRounder);
  float p = 0x1.5c12bep-10f;
  p = fmaf(p, r, 0x1.3d0e24p-7f);
  p = fmaf(p, r, 0x1.c6b6d2p-5f);
  p = fmaf(p, r, 0x1.ebf91p-3f);
  p = fmaf(p, r, 0x1.62e428p-1f);
  p = fmaf(p, r, 1.0f);
  return p * __uint_as_float(__float_as_uint(shifted) << 23);
}

// n scores of one query become weights, times scales where there are any, by half a warp whose lanes are mask. All of
// its lanes have the maximum and the sum.
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

// How much of what was gathered, and of a later span, goes into both together.
struct Merge {
  float keep, add;
  __device__ __forceinline__ float operator()(float out, float later) const { return fmaf(later, add, out * keep); }
};

// The maximum and the sum become those of both.
__device__ __forceinline__ Merge merge_softmax(float& maximum, float& sum, float later_maximum, float later_sum) {
  const float most = maximum > later_maximum ? maximum : later_maximum;
  const Merge merge = {exp2f(maximum - most), exp2f(later_maximum - most)};
  sum = sum * merge.keep + later_sum * merge.add;
  maximum = most;
  return merge;
}

}  // namespace
