// Needs: quantize.cu, silu.cu
// What follows the products with w1 and w3: silu *, and the groups of the input of w2.

namespace {

// A block has 32 rows: total is (w1 x, w3 x) of row `lane` and vector `warp`, in the first kColumns warps. gated
// (columns, rows) = silu(w1 x) * (w3 x). The last block to finish a group of it writes the group to next. counters
// (groups of next,).
template <int kColumns, int kNextBits, int kNextGroup>
__device__ __forceinline__ void finish_swiglu(const float (&total)[2], int rows, float* gated, signed char* next_codes,
                                              float* next_scales, int* next_offsets, unsigned* counters) {
  const int column = threadIdx.x / 32, row = static_cast<int>(blockIdx.x) * kTileRows + threadIdx.x % 32;
  float* values = gated + static_cast<size_t>(column) * rows;
  if (column < kColumns && row < rows) values[row] = silu_product(total[0], total[1]);
  const Quantized next = {next_codes, next_scales, next_offsets, (rows + kNextGroup - 1) / kNextGroup};
  quantize_finished_group<kColumns, kNextBits, kNextGroup>(values, rows, next, counters);
}

}  // namespace
