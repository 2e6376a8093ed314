// Needs: float_product.cu, matmul.cu
// Products of a float16 or float32 matrix with many vectors, for prompts. They are summed as in float_product.cu: a
// block has 64 rows (two tiles) and 24 vectors: a lane has 48 sums, and the registers of a multiprocessor are full.

namespace {

constexpr int kFloatVectors = 24;

}  // namespace

// Tiles of a matrix -> out and kv (see MatmulOutput) = the products with n vectors x, or += them. Grid (n / 24, tiles /
// 2): the blocks that have the same rows run at the same time.
template <int kBits>
__global__ void __launch_bounds__(kFloatThreads, 1)
    float_matmul(const uint4* __restrict__ codes, int tiles, int rows, int parts, int stretches,
                 const signed char* __restrict__ x, int n, float* out, int accumulate, float* kv, int kv_rows) {
  using P = FloatPlan<kBits, kFloatVectors, kBlockTiles>;
  __shared__ FloatShared<P, kBlockTiles> shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_vector = static_cast<int>(blockIdx.x) * kFloatVectors;
  const int first_tile = static_cast<int>(blockIdx.y) * kBlockTiles;
  float sums[kBlockTiles][kFloatVectors];
  running_sums<kBits, kFloatVectors, kBlockTiles>(codes, reinterpret_cast<const float*>(x), stretches, first_tile,
                                                  tiles - 1, first_vector, n - 1, shared.slots[warp], sums);
  const MatmulOutput output = {out, rows, parts, kv, kv_rows, n, accumulate != 0};
#pragma unroll
  for (int first = 0; first < kFloatVectors; first += P::kTogether) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kBlockTiles; j++)
#pragma unroll
      for (int c = 0; c < P::kTogether; c++) shared.sums[warp][j][c][lane] = sums[j][first + c];
    __syncthreads();
    const int j = warp / P::kTogether, c = warp % P::kTogether;  // a warp for each tile and vector
    if (first_tile + j < tiles)
      output.of(first_tile + j).put(lane, first_vector + first + c, added_up(shared.sums, j, c, lane));
  }
}
