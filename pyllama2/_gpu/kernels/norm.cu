// RMSNorm, and the quantized form of its result that q4 matrices are multiplied with.
//
//   y_i = w_i x_i / sqrt(mean(x^2) + eps)
//   codes_i = round(y_i / scale_g), scale_g = max |y| of the group / 127, sums_g = sum of the group's codes
//
// One block per token, a multiple of 32 threads; each warp takes groups of 32 inputs in turn, one lane per input, so
// that a group's maximum and sum are warp shuffles. Sums run in a fixed order: results do not depend on scheduling.

namespace {

constexpr int kGroup = 32;  // activations that share a scale, one per lane
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ float warp_sum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

__device__ float warp_max(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
}

}  // namespace

// x (n, dim), weight (dim,) -> codes (n, stride), scales and sums (n, stride / 32); inputs beyond dim count as zeros.
// stride is a multiple of 32. Dynamic shared memory: one float per warp.
extern "C" __global__ void rms_norm_quantize(const float* __restrict__ x, const float* __restrict__ weight, float eps,
                                             int dim, int stride, signed char* __restrict__ codes,
                                             float* __restrict__ scales, int* __restrict__ sums) {
  extern __shared__ float warp_sums[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
  const float* row = x + static_cast<size_t>(blockIdx.x) * dim;

  float squares = 0.0f;
  for (int i = threadIdx.x; i < dim; i += blockDim.x) squares += row[i] * row[i];
  squares = warp_sum(squares);
  if (lane == 0) warp_sums[warp] = squares;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < n_warps; i++) total += warp_sums[i];
  const float scale = rsqrtf(total / dim + eps);

  const size_t first_group = static_cast<size_t>(blockIdx.x) * (stride / kGroup);
  for (int group = warp; group < stride / kGroup; group += n_warps) {
    const int i = group * kGroup + lane;
    const float y = i < dim ? row[i] * scale * weight[i] : 0.0f;
    const float largest = warp_max(fabsf(y));
    const int code = largest > 0.0f ? __float2int_rn(y * (127.0f / largest)) : 0;
    codes[static_cast<size_t>(blockIdx.x) * stride + i] = static_cast<signed char>(code);
    const float sum = warp_sum(static_cast<float>(code));  // whole numbers below 2^24: exact
    if (lane == 0) {
      scales[first_group + group] = largest / 127.0f;
      sums[first_group + group] = static_cast<int>(sum);
    }
  }
}
