// Needs: common.cu, quantize.cu
// RMSNorm, and quantization of its result, with which matrices are multiplied.
//
//   y_i = x_i / sqrt(mean(x^2) + eps) * w_i
//
// The sum of squares has the CPU's order (rms_norm of _cpu/kernels/portable.h): 512 partial sums of every 512th square,
// which are added up in pairs. So a norm has the CPU's bits. Each thread of a block has a partial sum.

namespace {

constexpr int kThreads = 512;  // of every block that norms, and the number of partial sums
constexpr int kNormWarps = kThreads / 32;

// A vector (dim,) that is normed with weight.
struct NormInput {
  const float *x, *weight;
  float eps;
  int dim;
};

// The sum of the squares of x (dim,) that the threads of this warp have. kElsewhere: other blocks wrote x.
template <bool kElsewhere>
__device__ __forceinline__ float squares_of_warp(const float* x, int dim) {
  float sum = 0.0f;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += kThreads) {
    const float number = kElsewhere ? __ldcg(x + i) : x[i];
    sum += number * number;
  }
  return warp_sum(sum);
}

// 1 / sqrt(mean(x^2) + eps), by a whole warp, from the sums of all warps.
__device__ __forceinline__ float norm_scale(const float* of_warps, int dim, float eps) {
  float sum = of_warps[threadIdx.x % kNormWarps];
  for (int offset = kNormWarps / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  return 1.0f / sqrtf(sum / static_cast<float>(dim) + eps);
}

// scales[c] = that of x[c], of x (kVectors, dim), by a whole block. Other blocks may have written x.
template <int kVectors>
__device__ __forceinline__ void norm_scales(const float* x, int dim, float eps, float (&scales)[kVectors]) {
  __shared__ float of_warps[kVectors][kNormWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int c = 0; c < kVectors; c++) {
    const float sum = squares_of_warp<true>(x + static_cast<size_t>(c) * dim, dim);
    if (lane == 0) of_warps[c][warp] = sum;
  }
  __syncthreads();
  if (warp < kVectors) {
    const float scale = norm_scale(of_warps[warp], dim, eps);
    if (lane == 0) scales[warp] = scale;
  }
  __syncthreads();
}

// Vectors first .. first + kVectors of to = RMSNorm of x (kVectors, dim), by a whole block. Other blocks may have
// written x.
template <int kGroup, int kVectors>
__device__ void norm_vectors(const float* x, const float* __restrict__ weight, float eps, int dim, int bits,
                             const Quantized& to, int first) {
  __shared__ float scales[kVectors];
  norm_scales<kVectors>(x, dim, eps, scales);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int unit = warp; unit < kVectors * to.groups; unit += kNormWarps) {
    const int c = kVectors == 1 ? 0 : unit / to.groups, g = unit - c * to.groups;
    const float* row = x + static_cast<size_t>(c) * dim;
    const float scale = scales[c];
    float y[kGroup / 32];
    for (int k = 0; k < kGroup / 32; k++) {
      const int i = g * kGroup + k * 32 + lane;
      y[k] = i < dim ? __ldcg(row + i) * scale * weight[i] : 0.0f;
    }
    quantize_group_for<kGroup>(bits, y, to, first + c, g);
  }
}

}  // namespace

// x (n, dim) -> vectors 0 .. gridDim.x of codes, scales, offsets, for a matrix of so many bits. Vector i is the norm of
// x[picked[i]], or of x[i] if picked is NULL.
template <int kGroup>
__global__ void __launch_bounds__(kThreads)
    rms_norm_quantize(const float* __restrict__ x, const float* __restrict__ weight, float eps, int dim,
                      const int* __restrict__ picked, int bits, signed char* codes, float* scales, int* offsets) {
  const int token = picked ? picked[blockIdx.x] : static_cast<int>(blockIdx.x);
  const Quantized to = {codes, scales, offsets, (dim + kGroup - 1) / kGroup};
  norm_vectors<kGroup, 1>(x + static_cast<size_t>(token) * dim, weight, eps, dim, bits, to,
                          static_cast<int>(blockIdx.x));
}

// x (gridDim.x, dim) -> quantized without a norm, one block per vector.
template <int kGroup>
__global__ void __launch_bounds__(kThreads)
    quantize(const float* __restrict__ x, int dim, int bits, signed char* codes, float* scales, int* offsets) {
  const Quantized to = {codes, scales, offsets, (dim + kGroup - 1) / kGroup};
  const float* row = x + static_cast<size_t>(blockIdx.x) * dim;
  for (int g = threadIdx.x / 32; g < to.groups; g += kThreads / 32) {
    float y[kGroup / 32];
    for (int k = 0; k < kGroup / 32; k++) {
      const int i = g * kGroup + k * 32 + static_cast<int>(threadIdx.x % 32);
      y[k] = i < dim ? row[i] : 0.0f;
    }
    quantize_group_for<kGroup>(bits, y, to, static_cast<int>(blockIdx.x), g);
  }
}
