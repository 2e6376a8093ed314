// Needs: common.cu, quantize.cu
// RMSNorm, and quantization of its result, with which matrices are multiplied.
//
//   y_i = x_i / sqrt(mean(x^2) + eps) * w_i
//
// The sum of squares has the CPU's order (rms_norm of _cpu/kernels/portable.h): eight partial sums of every eighth
// square. So a norm has the CPU's bits. Of these additions, dim / 8 depend on each other. The whole block computes the
// squares beforehand, in parallel.

namespace {

constexpr int kThreads = 512;  // of every block that norms
constexpr int kSquares = 2 * kThreads;  // squares in shared memory at a time
constexpr int kPartialSums = 8;

// The sum of the squares of x (dim,), by a whole block. Other blocks may have written x.
__device__ __forceinline__ float sum_of_squares(const float* x, int dim) {
  __shared__ float squares[kSquares];
  __shared__ float total;
  const int thread = threadIdx.x, whole = dim / kPartialSums * kPartialSums;
  float values[kSquares / kThreads], partial = 0.0f;
  const auto load = [&](int first) {
#pragma unroll
    for (int k = 0; k < kSquares / kThreads; k++) {
      const int i = first + k * kThreads + thread;
      values[k] = i < dim ? __ldcg(x + i) : 0.0f;
    }
  };
  load(0);
  for (int first = 0; first < dim; first += kSquares) {
#pragma unroll
    for (int k = 0; k < kSquares / kThreads; k++) squares[k * kThreads + thread] = values[k] * values[k];
    load(first + kSquares);
    __syncthreads();
    if (thread < kPartialSums) {
      const int n = min(kSquares, whole - first);
#pragma unroll 16
      for (int i = thread; i < n; i += kPartialSums) partial += squares[i];
    }
    if (thread < 32 && first + kSquares >= dim) {
      partial += __shfl_xor_sync(kAllLanes, partial, 4);
      partial += __shfl_xor_sync(kAllLanes, partial, 2);
      partial += __shfl_xor_sync(kAllLanes, partial, 1);
      if (thread == 0) {
        for (int i = whole; i < dim; i++) partial += squares[i - first];
        total = partial;
      }
    }
    __syncthreads();
  }
  return total;
}

// Vector number c of to = RMSNorm of x (dim,), by a whole block. Other blocks may have written x.
template <int kGroup>
__device__ void norm_vector(const float* x, const float* __restrict__ weight, float eps, int dim, int bits,
                            const Quantized& to, int c) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float scale = 1.0f / sqrtf(sum_of_squares(x, dim) / static_cast<float>(dim) + eps);
  for (int g = warp; g < to.groups; g += kThreads / 32) {
    float y[kGroup / 32];
    for (int k = 0; k < kGroup / 32; k++) {
      const int i = g * kGroup + k * 32 + lane;
      y[k] = i < dim ? __ldcg(x + i) * scale * weight[i] : 0.0f;
    }
    quantize_group_for<kGroup>(bits, y, to, c, g);
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
  norm_vector<kGroup>(x + static_cast<size_t>(token) * dim, weight, eps, dim, bits, to, static_cast<int>(blockIdx.x));
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
