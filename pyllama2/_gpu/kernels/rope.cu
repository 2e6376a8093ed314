// The rotation of adjacent pairs of queries and keys by the angle of their position (RoFormer, arXiv:2104.09864), and
// biases.

namespace {

// The rotated number of a lane that has number i of a head. The lanes of a warp have consecutive numbers, the first of
// which is even. angle has the cosine and sine of the pair's angle.
__device__ __forceinline__ float rotated(float value, int i, float2 angle) {
  const float other = __shfl_xor_sync(0xffffffffu, value, 1);
  return i % 2 == 0 ? value * angle.x - other * angle.y : other * angle.y + value * angle.x;
}

}  // namespace

// x (n, width) += bias (width). Grid (n, blocks); any number of threads.
extern "C" __global__ void add_bias(float* __restrict__ x, const float* __restrict__ bias, int width) {
  float* row = x + static_cast<size_t>(blockIdx.x) * width;
  for (int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x); i < width; i += gridDim.y * blockDim.x)
    row[i] += bias[i];
}
