// Needs: float_product.cu, norm.cu, swiglu_steps.cu
// Products of a float16 or float32 matrix with 1 to 8 vectors (columns), one per token, each fused with the steps after
// it, as in matvec.cu. Vectors come from the kernel before: (columns, 16, stretches * 8), as common.cu says. The matrix
// that the result is for may be of another type: kNextBits, kNextGroup.

// out (columns, rows) = the product.
template <int kBits, int kColumns>
__global__ void __launch_bounds__(kFloatThreads, FloatPlan<kBits, kColumns, 1>::kBlocks)
    float_matvec(const uint4* __restrict__ codes, int rows, int stretches, const signed char* __restrict__ x,
                 float* __restrict__ out) {
  float total[1];
  multiply_floats<kBits, kColumns>(codes, reinterpret_cast<const float*>(x), stretches, static_cast<int>(blockIdx.x),
                                   total);
  const int column = threadIdx.x / 32, row = static_cast<int>(blockIdx.x * kTileRows + threadIdx.x % 32);
  if (column < kColumns && row < rows) out[static_cast<size_t>(column) * rows + row] = total[0];
}

// residual (columns, rows) += the product. If norm_weight is not NULL, the last block to finish norms residual, and
// writes the result to next, for a matrix of next_bits.
template <int kBits, int kColumns, int kNextGroup>
__global__ void __launch_bounds__(kFloatThreads, FloatPlan<kBits, kColumns, 1>::kBlocks)
    float_matvec_residual(const uint4* __restrict__ codes, int rows, int stretches, const signed char* __restrict__ x,
                          float* residual, const float* __restrict__ norm_weight, float eps, int next_bits,
                          signed char* next_codes, float* next_scales, int* next_offsets, unsigned* counter) {
  const int column = threadIdx.x / 32, row = static_cast<int>(blockIdx.x * kTileRows + threadIdx.x % 32);
  const bool mine = column < kColumns && row < rows;
  float* place = residual + static_cast<size_t>(column) * rows + row;
  const float before = mine ? *place : 0.0f;  // beside the first weights
  float total[1];
  multiply_floats<kBits, kColumns>(codes, reinterpret_cast<const float*>(x), stretches, static_cast<int>(blockIdx.x),
                                   total);
  if (mine) *place = before + total[0];
  if (norm_weight == nullptr || !is_last_block(counter, gridDim.x)) return;
  const Quantized next = {next_codes, next_scales, next_offsets, (rows + kNextGroup - 1) / kNextGroup};
  norm_vectors<kNextGroup, kColumns>(residual, norm_weight, eps, rows, next_bits, next, 0);
}

// The matrix has the tiles of w1 and w3 in turn. gated (columns, rows) = silu(w1 x) * (w3 x). The last block to finish
// a group of it writes the group to next. counters (groups of next,).
template <int kBits, int kColumns, int kNextBits, int kNextGroup>
__global__ void __launch_bounds__(kFloatThreads, FloatPlan<kBits, kColumns, 2>::kBlocks)
    float_matvec_swiglu(const uint4* __restrict__ codes, int rows, int stretches, const signed char* __restrict__ x,
                        float* gated, signed char* next_codes, float* next_scales, int* next_offsets,
                        unsigned* counters) {
  float total[2];
  multiply_floats<kBits, kColumns>(codes, reinterpret_cast<const float*>(x), stretches,
                                   2 * static_cast<int>(blockIdx.x), total);
  finish_swiglu<kColumns, kNextBits, kNextGroup>(total, rows, gated, next_codes, next_scales, next_offsets, counters);
}
