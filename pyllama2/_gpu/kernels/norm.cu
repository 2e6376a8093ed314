// Needs: common.cu, quantize.cu
// RMSNorm, and quantization of its result, with which matrices are multiplied.
//
//   y_i = x_i / sqrt(mean(x^2) + eps) * w_i
//
// The sum of squares has the CPU's order (rms_norm of _cpu/kernels/portable.h): eight partial sums of every eighth
// square. So a norm has the CPU's bits. Of these additions, dim / 8 depend on each other. The whole block computes the
// squares beforehand, in parallel. Several vectors are summed up at the same time, each by a warp.

namespace {

constexpr int kThreads = 512;  // of every block that norms
constexpr int kSquares = 2 * kThreads;  // squares in shared memory at a time
constexpr int kPartialSums = 8;

// The least power of two that is not below n.
constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

// scales[c] = 1 / sqrt(mean(x[c]^2) + eps) of x (kVectors, dim), by a whole block. Other blocks may have written x. The
// vectors have equal parts of the shared memory.
template <int kVectors>
__device__ __forceinline__ void norm_scales(const float* x, int dim, float eps, float (&scales)[kVectors]) {
  constexpr int kPart = kSquares / power_of_two(kVectors);  // squares of a vector at a time
  static_assert(kVectors <= kThreads / 32 && kPart % kPartialSums == 0, "a warp for each vector");
  __shared__ float squares[kSquares];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, whole = dim / kPartialSums * kPartialSums;
  float values[kSquares / kThreads], partial = 0.0f;
  const auto load = [&](int first) {
#pragma unroll
    for (int k = 0; k < kSquares / kThreads; k++) {
      const int c = (k * kThreads + thread) / kPart, i = first + (k * kThreads + thread) % kPart;
      values[k] = c < kVectors && i < dim ? __ldcg(x + static_cast<size_t>(c) * dim + i) : 0.0f;
    }
  };
  load(0);
  for (int first = 0; first < dim; first += kPart) {
#pragma unroll
    for (int k = 0; k < kSquares / kThreads; k++) squares[k * kThreads + thread] = values[k] * values[k];
    load(first + kPart);
    __syncthreads();
    const float* own = squares + warp * kPart;
    if (warp < kVectors && lane < kPartialSums) {
      const int n = min(kPart, whole - first);
#pragma unroll 16
      for (int i = lane; i < n; i += kPartialSums) partial += own[i];
    }
    if (warp < kVectors && first + kPart >= dim) {
      partial += __shfl_xor_sync(kAllLanes, partial, 4);
      partial += __shfl_xor_sync(kAllLanes, partial, 2);
      partial += __shfl_xor_sync(kAllLanes, partial, 1);
      if (lane == 0) {
        for (int i = whole; i < dim; i++) partial += own[i - first];
        scales[warp] = 1.0f / sqrtf(partial / static_cast<float>(dim) + eps);
      }
    }
    __syncthreads();
  }
}

// Vectors first .. first + kVectors of to = RMSNorm of x (kVectors, dim), by a whole block. Other blocks may have
// written x.
template <int kGroup, int kVectors>
__device__ void norm_vectors(const float* x, const float* __restrict__ weight, float eps, int dim, int bits,
                             const Quantized& to, int first) {
  __shared__ float scales[kVectors];
  norm_scales<kVectors>(x, dim, eps, scales);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int unit = warp; unit < kVectors * to.groups; unit += kThreads / 32) {
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
