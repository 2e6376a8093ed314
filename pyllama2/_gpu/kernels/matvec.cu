// Needs: product_mma.cu, norm.cu, swiglu_steps.cu, prefetch.cu
// Products of the feed-forward network, of wo and of the output matrix, each fused with the steps after it. There are 1
// to 8 vectors (columns), one per token. See common.cu for matrices and vectors, product.cu for the inner loop. The matrix
// that the result is for may be of another type: kNextBits, kNextGroup.
//
// kNormed: there is one vector, the norm of unnormed (dim,) with norm_weight, and x_codes, x_scales and x_offsets are not
// used. ahead, ahead_tile_bytes, ahead_tiles: of the matrix that the next kernel reads; see prefetch.cu.

// out (columns, rows) = the product.
template <int kBits, int kGroup, int kColumns, bool kNormed = false>
__global__ void __launch_bounds__(kThreads, Plan<kBits, kGroup, kColumns, 1>::kBlocks)
    matvec(const uint4* __restrict__ codes, const __half* __restrict__ scales, int rows, int groups,
           const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
           const int* __restrict__ x_offsets, const float* __restrict__ unnormed, const float* __restrict__ norm_weight,
           float eps, int dim, float* __restrict__ out) {
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const NormInput normed = {unnormed, norm_weight, eps, dim};
  float total[1];
  product<kBits, kGroup, kColumns, 1, kNormed>(codes, scales, x, normed, static_cast<int>(blockIdx.x), total);
  const int column = threadIdx.x / 32, row = static_cast<int>(blockIdx.x * kTileRows + threadIdx.x % 32);
  if (column < kColumns && row < rows) out[static_cast<size_t>(column) * rows + row] = total[0];
}

// residual (columns, rows) += the product. If norm_weight is not NULL, the last block to finish norms residual, and
// quantizes the result to next, for a matrix of next_bits. A block has kRows rows: those of a tile, or half of them.
template <int kBits, int kGroup, int kColumns, int kNextGroup = kGroup, int kRows = kTileRows>
__global__ void __launch_bounds__(kThreads, Plan<kBits, kGroup, kColumns, 1, kRows>::kBlocks)
    matvec_residual(const uint4* __restrict__ codes, const __half* __restrict__ scales, int rows, int groups,
                    const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
                    const int* __restrict__ x_offsets, float* residual, const float* __restrict__ norm_weight,
                    float eps, int next_bits, signed char* next_codes, float* next_scales, int* next_offsets,
                    unsigned* counter, const void* ahead, unsigned ahead_tile_bytes, int ahead_tiles) {
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const int column = threadIdx.x / 32, row = static_cast<int>(blockIdx.x * kRows + threadIdx.x % kRows);
  const bool mine = column < kColumns && threadIdx.x % 32 < kRows && row < rows;
  float* place = residual + static_cast<size_t>(column) * rows + row;
  const float before = mine ? *place : 0.0f;  // beside the first weights
  float total[1];
  product<kBits, kGroup, kColumns, 1, false, kRows>(codes, scales, x, {}, static_cast<int>(blockIdx.x), total);
  prefetch_share(next_tiles(ahead, ahead_tile_bytes, ahead_tiles), blockIdx.x, gridDim.x);
  if (mine) *place = before + total[0];
  if (norm_weight == nullptr || !is_last_block(counter, gridDim.x)) return;
  const Quantized next = {next_codes, next_scales, next_offsets, (rows + kNextGroup - 1) / kNextGroup};
  norm_vectors<kNextGroup, kColumns>(residual, norm_weight, eps, rows, next_bits, next, 0);
}

// The matrix has the tiles of w1 and w3 in turn. gated (columns, rows) = silu(w1 x) * (w3 x). The last block to finish
// a group of it quantizes the group to next. counters (groups of next,).
template <int kBits, int kGroup, int kColumns, int kNextBits = kBits, int kNextGroup = kGroup, bool kNormed = false>
__global__ void __launch_bounds__(kThreads, Plan<kBits, kGroup, kColumns, 2>::kBlocks)
    matvec_swiglu(const uint4* __restrict__ codes, const __half* __restrict__ scales, int rows, int groups,
                  const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
                  const int* __restrict__ x_offsets, const float* __restrict__ unnormed,
                  const float* __restrict__ norm_weight, float eps, int dim, float* gated, signed char* next_codes,
                  float* next_scales, int* next_offsets, unsigned* counters, const void* ahead,
                  unsigned ahead_tile_bytes, int ahead_tiles) {
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const NormInput normed = {unnormed, norm_weight, eps, dim};
  float total[2];
  product<kBits, kGroup, kColumns, 2, kNormed>(codes, scales, x, normed, 2 * static_cast<int>(blockIdx.x), total);
  prefetch_share(next_tiles(ahead, ahead_tile_bytes, ahead_tiles), blockIdx.x, gridDim.x);
  finish_swiglu<kColumns, kNextBits, kNextGroup>(total, rows, gated, next_codes, next_scales, next_offsets, counters);
}
