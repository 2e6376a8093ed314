// Needs: norm.cu
// Rows of tok_embeddings as float32, and the first layer's attention_norm of them.

namespace {

// out (columns,) = a row of a float matrix in tiles (common.cu), by a whole block.
template <class Number>
__device__ void widen_float_row(const Number* __restrict__ numbers, int columns, int row, float* out) {
  constexpr int kOfPiece = 16 / static_cast<int>(sizeof(Number));
  const size_t tile = row / kTileRows;
  const int pieces = (columns + kFloatGroup - 1) / kFloatGroup * (kFloatGroup / kRunningSums / kOfPiece);
  for (int i = threadIdx.x; i < columns; i += kThreads) {
    const int step = i / kRunningSums;
    const size_t piece = (tile * kRunningSums + i % kRunningSums) * pieces + step / kOfPiece;
    out[i] = static_cast<float>(numbers[(piece * kTileRows + row % kTileRows) * kOfPiece + step % kOfPiece]);
  }
}

// The same for a quantized matrix.
template <int kBits, int kGroup>
__device__ void widen_row(const signed char* __restrict__ codes, const __half* __restrict__ scales, int columns,
                          int row, float* out) {
  constexpr int kHalf = kGroup / 2, kChunks = kGroup * kBits / 128;
  const int groups = (columns + kGroup - 1) / kGroup;
  const size_t tile = row / kTileRows;
  for (int i = threadIdx.x; i < columns; i += kThreads) {
    const int g = i / kGroup, in_group = i % kGroup, byte = kBits == 4 ? in_group % kHalf : in_group;
    const size_t chunk = (tile * groups + g) * kChunks + byte / 16;
    const int stored = codes[(chunk * kTileRows + row % kTileRows) * 16 + byte % 16];
    const int code = kBits == 8 ? stored : ((in_group < kHalf ? stored : stored >> 4) & 15) - 8;
    const float scale = __half2float(scales[(tile * groups + g) * kTileRows + row % kTileRows]);
    out[i] = static_cast<float>(code) * scale;
  }
}

template <int kGroup>
__device__ __forceinline__ void first_norm(const float* row, const float* norm_weight, float eps, int dim, int bits,
                                           const Quantized& to) {
  if (norm_weight == nullptr) return;
  __syncthreads();
  norm_vectors<kGroup, 1>(row, norm_weight, eps, dim, bits, to, static_cast<int>(blockIdx.x));
}

}  // namespace

// tokens (n,) -> x (n, dim). If norm_weight is not NULL, also RMSNorm of x, quantized to codes, scales and offsets for
// a matrix of next_bits in groups of kNextGroup. One block per token.
template <int kBits, int kGroup, int kNextGroup = kGroup>
__global__ void __launch_bounds__(kThreads)
    embed(const signed char* __restrict__ table, const __half* __restrict__ table_scales,
          const int* __restrict__ tokens, int dim, float* x, const float* __restrict__ norm_weight, float eps,
          int next_bits, signed char* codes, float* scales, int* offsets) {
  float* row = x + static_cast<size_t>(blockIdx.x) * dim;
  if constexpr (kBits == 16)
    widen_float_row(reinterpret_cast<const __half*>(table), dim, tokens[blockIdx.x], row);
  else if constexpr (kBits == 32)
    widen_float_row(reinterpret_cast<const float*>(table), dim, tokens[blockIdx.x], row);
  else
    widen_row<kBits, kGroup>(table, table_scales, dim, tokens[blockIdx.x], row);
  const Quantized to = {codes, scales, offsets, (dim + kNextGroup - 1) / kNextGroup};
  first_norm<kNextGroup>(row, norm_weight, eps, dim, next_bits, to);
}
