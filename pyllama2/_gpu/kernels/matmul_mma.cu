// Needs: matmul.cu
// The products of matmul.cu on tensor cores with integers of 8 bits, for sm_80 and later.
//
// A block of 8 warps has 64 rows and 128 vectors, a warp 32 rows and 32 vectors. The inputs of a product may have any
// order, as long as rows and vectors have the same. So lane t of four takes word t of each piece of 16 bytes: of q4 its
// low and its high nibbles, of q8 word t of two pieces.

#if __CUDA_ARCH__ >= 800

namespace {

constexpr int kMmaVectors = 128;
constexpr int kMmaRows = 2, kMmaColumns = 4;  // a warp has so many times 16 rows and 8 columns

// The bits of a sum + kFloatBits are those of the float sum + kFloatOffset, for sums below 2^22.
constexpr int kFloatBits = 0x4b400000;
constexpr float kFloatOffset = 12582912.0f;

template <int kBits>
__device__ __forceinline__ float float_of(int sum, int other) {
  if (kBits == 4) return __int_as_float(sum) - kFloatOffset;
  return static_cast<float>(sum * 256 + other);
}

__device__ __forceinline__ unsigned word_at(const uint4* at, int i) { return reinterpret_cast<const unsigned*>(at)[i]; }

// sums and others (2, 4 tiles of 16 x 8) += 32 inputs of the staged group: piece h of q4, pieces 2h and 2h + 1 of q8.
template <int kBits, int kGroup>
__device__ __forceinline__ void mma_step(const StagedGroup<kBits, kGroup, kMmaVectors>& staged, int tile, int vector,
                                         int h, int (&sums)[kMmaRows][kMmaColumns][4],
                                         int (&others)[kMmaRows][kMmaColumns][4]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  unsigned a[kMmaRows][4];
#pragma unroll
  for (int m = 0; m < kMmaRows; m++)
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
      const int row = m * 16 + odd * 8 + g;
      if (kBits == 4) {
        const unsigned word = word_at(&staged.rows[tile][h][row], t);
        a[m][odd] = word & 0x0f0f0f0fu;
        a[m][2 + odd] = word >> 4 & 0x0f0f0f0fu;
      } else {
        a[m][odd] = word_at(&staged.rows[tile][2 * h][row], t);
        a[m][2 + odd] = word_at(&staged.rows[tile][2 * h + 1][row], t);
      }
    }
#pragma unroll
  for (int c = 0; c < kMmaColumns; c++) {
    const uint4* x = staged.vectors[vector + c * 8 + g];
    if (kBits == 4) {
      const unsigned b[2] = {word_at(x + h, t), word_at(x + kGroup / 32 + h, t)};
#pragma unroll
      for (int m = 0; m < kMmaRows; m++) mma_signed(sums[m][c], a[m], b);
    } else {
      const unsigned high[2] = {word_at(x + 2 * h, t), word_at(x + 2 * h + 1, t)};
      const unsigned low[2] = {word_at(x + kGroup / 16 + 2 * h, t), word_at(x + kGroup / 16 + 2 * h + 1, t)};
#pragma unroll
      for (int m = 0; m < kMmaRows; m++) {
        mma_signed(sums[m][c], a[m], high);
        mma_signed_unsigned(others[m][c], a[m], low);
      }
    }
  }
}

}  // namespace

// As matmul. Grid (tiles / 2, n / 128).
template <int kBits, int kGroup>
__global__ void __launch_bounds__(kMatmulThreads, 1)
    matmul_mma(const uint4* __restrict__ codes, const __half* __restrict__ scales, int tiles, int rows, int parts,
               int groups, const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
               const int* __restrict__ x_offsets, int n, float* out, int accumulate) {
  __shared__ StagedGroup<kBits, kGroup, kMmaVectors> staged;
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const int first_tile = static_cast<int>(blockIdx.x) * kBlockTiles;
  const int first_vector = static_cast<int>(blockIdx.y) * kMmaVectors;
  const int warp = static_cast<int>(threadIdx.x) / 32, own_tile = warp % 2, own_vector = warp / 2 * 8 * kMmaColumns;
  const int lane_row = static_cast<int>(threadIdx.x) % 32 / 4, lane_column = static_cast<int>(threadIdx.x) % 4 * 2;
  float totals[kMmaRows][kMmaColumns][4] = {};
  for (int g = 0; g < groups; g++) {
    __syncthreads();
    stage_group(staged, codes, scales, x, g, tiles, first_tile, first_vector, n);
    __syncthreads();
    int sums[kMmaRows][kMmaColumns][4], others[kMmaRows][kMmaColumns][4] = {};
#pragma unroll
    for (int c = 0; c < kMmaColumns; c++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int start = kBits == 4 ? staged.offsets[own_vector + c * 8 + lane_column + i % 2] + kFloatBits : 0;
#pragma unroll
        for (int m = 0; m < kMmaRows; m++) sums[m][c][i] = start;
      }
#pragma unroll
    for (int h = 0; h < kGroup / 32; h++) mma_step<kBits, kGroup>(staged, own_tile, own_vector, h, sums, others);
#pragma unroll
    for (int m = 0; m < kMmaRows; m++)
#pragma unroll
      for (int c = 0; c < kMmaColumns; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float scale = __half2float(staged.row_scales[own_tile * kTileRows + m * 16 + i / 2 * 8 + lane_row]) *
                              staged.vector_scales[own_vector + c * 8 + lane_column + i % 2];
          totals[m][c][i] = fmaf(float_of<kBits>(sums[m][c][i], others[m][c][i]), scale, totals[m][c][i]);
        }
  }
  const MatmulOutput output = {out, rows, parts, n, accumulate != 0};
  if (first_tile + own_tile >= tiles) return;
#pragma unroll
  for (int m = 0; m < kMmaRows; m++)
#pragma unroll
    for (int c = 0; c < kMmaColumns; c++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        output.put(first_tile + own_tile, m * 16 + i / 2 * 8 + lane_row,
                   first_vector + own_vector + c * 8 + lane_column + i % 2, totals[m][c][i]);
}

#endif
