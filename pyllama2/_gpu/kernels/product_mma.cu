// Needs: product.cu, tensor_cores.cu
// The products of product.cu with 4 to 8 vectors, on tensor cores with integers of 8 bits, for sm_75 and later.
//
// A warp multiplies a group of 32 rows with all vectors at once. Lane 4g + t has word t of rows g, g + 8, g + 16 and g +
// 24 in each piece of 16 bytes: these are words lane, lane + 32 and so on of a tile's pieces, so that loads are those of
// whole lines. The same words of the vectors are the other operand; see matmul_mma.cu. Sums of groups go through shared
// memory to the warps that add them up, as in product.cu.

namespace {

// Whether tensor cores take part. With fewer vectors dp4a takes as few instructions, and with more than 8 pieces of 16
// bytes of a row, registers do not suffice.
template <int kBits, int kGroup, int kColumns, int kTiles>
constexpr bool kUsesMma = kColumns >= 4 && kGroup * kBits / 128 * kTiles <= 8;

template <int kBits, int kGroup, int kColumns, int kTiles>
struct MmaPlan {
  static constexpr int kPieces = kGroup * kBits / 128;  // of 16 bytes, in one row's group
  static constexpr int kVectorPieces = kGroup / 16 * (kBits / 4);
  // Groups of a warp that are on their way. One of them is multiplied in a step.
  static constexpr int kAhead = kPieces * kTiles <= 4 ? 2 : 1;
  static constexpr int kColumn = kWarps * kTileRows + 4;  // distance of two: results of a warp lie in different banks
  static constexpr int kRow = kWarps + 4;  // distance of two rows' scales, so that four of a row are one load
  static constexpr int kStagedBytes = kTiles * 4 * (kColumns * kColumn + kTileRows * kRow);
  static constexpr int kBuffers = 2 * kStagedBytes + kColumns * kWarps * 4 + kFusedBytes <= kSharedBytes ? 2 : 1;
};

#if __CUDA_ARCH__ >= 750

template <class P, int kColumns, int kTiles>
struct MmaStaged {  // what warps give to each other between two barriers
  float sums[kTiles][kColumns][P::kColumn];  // each warp has 32 of a column
  alignas(16) float scales[kTiles][kTileRows][P::kRow];
};

// What a warp needs of a group of a tile.
template <int kPieces>
struct MmaRows {
  unsigned words[kPieces][4];
  __half scale;  // of row `lane`

  __device__ __forceinline__ void load(const unsigned* __restrict__ from, const __half* __restrict__ scales) {
#pragma unroll
    for (int h = 0; h < kPieces; h++)
#pragma unroll
      for (int i = 0; i < 4; i++) words[h][i] = load_once(from + (h * 4 + i) * kTileRows);
    scale = *scales;
  }
};

// Exact sums of a group of 32 rows with 8 vectors, as floats: sums[m][i] of row 16 m + i / 2 * 8 + lane / 4 and vector
// lane % 4 * 2 + i % 2. x has the words of the vectors.
template <int kBits, int kGroup>
__device__ __forceinline__ void mma_group(const unsigned (&words)[kGroup * kBits / 128][4],
                                          const unsigned (&x)[kGroup / 16 * (kBits / 4)], float (&sums)[2][4]) {
  constexpr int kStart = kBits == 4 ? kFloatBits : 0, kSteps = kGroup / 32;
  const int start[4] = {kStart, kStart, kStart, kStart};
#pragma unroll
  for (int m = 0; m < 2; m++) {
    int sum[4], other[4] = {};
#pragma unroll
    for (int h = 0; h < kSteps; h++) {
      unsigned a[4];
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        if (kBits == 4) {
          const unsigned word = words[h][2 * m + odd];
          a[odd] = masked_and_flipped(word << 4, 0xf0f0f0f0u, 0x80808080u);
          a[2 + odd] = masked_and_flipped(word, 0xf0f0f0f0u, 0x80808080u);
        } else {
          a[odd] = words[kBits == 4 ? 0 : 2 * h][2 * m + odd];
          a[2 + odd] = words[kBits == 4 ? 0 : 2 * h + 1][2 * m + odd];
        }
      }
      if constexpr (kBits == 4) {
        multiply_add<false>(sum, a, x[h], x[kSteps + h], h == 0 ? start : sum);
      } else {
        multiply_add<false>(sum, a, x[2 * h], x[2 * h + 1], h == 0 ? start : sum);
        multiply_add<true>(other, a, x[kGroup / 16 + 2 * h], x[kGroup / 16 + 2 * h + 1], h == 0 ? start : other);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[m][i] = float_of<kBits>(sum[i], other[i]);
  }
}

// Word lane % 4 of each piece of vector lane / 4, in one group after another.
template <int kBits, int kGroup>
struct MmaVectors {
  static constexpr int kPlanePieces = kGroup / 16;
  unsigned words[kPlanePieces * (kBits / 4)];
  const unsigned *from, *low;  // low: the second plane of q8

  // Results of a column that is not there are not used.
  __device__ __forceinline__ MmaVectors(const Quantized& x, int columns, int group) {
    const int lane = threadIdx.x % 32, plane = x.groups * (kGroup / 4);
    from = reinterpret_cast<const unsigned*>(x.codes) + min(lane / 4, columns - 1) * (kBits / 4) * plane +
           group * (kGroup / 4) + lane % 4;
    low = from + plane;
  }
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < kPlanePieces; i++) {
      words[i] = __ldg(from + i * 4);
      if (kBits == 8) words[kPlanePieces + i] = __ldg(low + i * 4);
    }
    from += kWarps * (kGroup / 4), low += kWarps * (kGroup / 4);
  }
};

// As multiply of product.cu.
template <int kBits, int kGroup, int kColumns, int kTiles>
__device__ __forceinline__ void multiply_mma(const uint4* __restrict__ codes, const __half* __restrict__ scales,
                                             const Quantized& x, int first_tile, float (&totals)[kTiles]) {
  using P = MmaPlan<kBits, kGroup, kColumns, kTiles>;
  constexpr int kGroupWords = P::kPieces * kTileRows * 4;
  __shared__ MmaStaged<P, kColumns, kTiles> staged[P::kBuffers];
  __shared__ float4 vector_scales[kColumns][kWarps / 4];  // of a step; each warp reads what it wrote
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  MmaRows<P::kPieces> rows[P::kAhead][kTiles];
  MmaVectors<kBits, kGroup> vectors(x, kColumns, warp);
  const unsigned first_group = static_cast<unsigned>(first_tile) * x.groups + warp;
  const unsigned* next_rows =
      reinterpret_cast<const unsigned*>(codes) + static_cast<size_t>(first_group) * kGroupWords + lane;
  const __half* next_row_scales = scales + static_cast<size_t>(first_group) * kTileRows + lane;
  const float* own_scales = x.scales + warp * x.groups + lane;
  float next_scale = 0.0f;
  int left = x.groups;  // groups from this step on
  const auto load_rows = [&](MmaRows<P::kPieces>(&to)[kTiles], int groups) {
    if (warp < groups) {
#pragma unroll
      for (int j = 0; j < kTiles; j++)
        to[j].load(next_rows + static_cast<size_t>(j * x.groups) * kGroupWords,
                   next_row_scales + j * x.groups * kTileRows);
    }
    next_rows += kWarps * kGroupWords, next_row_scales += kWarps * kTileRows;
  };
  const auto load_scale = [&](int groups) {
    if (warp < kColumns && lane < min(kWarps, groups)) next_scale = *own_scales;
    own_scales += kWarps;
  };
#pragma unroll
  for (int a = 0; a < P::kAhead; a++) load_rows(rows[a], left - a * kWarps);
  if (warp < left) vectors.load();
  load_scale(left);
#pragma unroll
  for (int j = 0; j < kTiles; j++) totals[j] = 0.0f;

  // n is the number of groups of this step. In whole steps it is a constant.
  const auto do_step = [&](MmaRows<P::kPieces>(&mine)[kTiles], MmaStaged<P, kColumns, kTiles>& here, int n) {
    if (warp < n) {
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        float sums[2][4];
        mma_group<kBits, kGroup>(mine[j].words, vectors.words, sums);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const int column = lane % 4 * 2 + i % 2, row = i / 4 * 16 + i % 4 / 2 * 8 + lane / 4;
          if (kColumns == 8 || column < kColumns) here.sums[j][column][warp * kTileRows + row] = sums[i / 4][i % 4];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; j++)  // zeros where there is no group: four of them are loaded at a time
      here.scales[j][lane][warp] = warp < n ? __half2float(mine[j].scale) : 0.0f;
    if (warp < kColumns && lane < kWarps) reinterpret_cast<float*>(vector_scales[warp])[lane] = next_scale;
    load_rows(mine, left - P::kAhead * kWarps);
    if (warp < left - kWarps) vectors.load();
    load_scale(left - kWarps);
    left -= kWarps;
    __syncthreads();
    if (warp < kColumns) {
      const auto add = [&](int j, int i, float row_scale, float vector_scale) {
        totals[j] = fmaf(here.sums[j][warp][i * kTileRows + lane], row_scale * vector_scale, totals[j]);
      };
#pragma unroll
      for (int i = 0; i < kWarps; i += 4) {
        const float4 vector = vector_scales[warp][i / 4];
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
          const float4 row = *reinterpret_cast<const float4*>(&here.scales[j][lane][i]);
          if (i < n) add(j, i, row.x, vector.x);
          if (i + 1 < n) add(j, i + 1, row.y, vector.y);
          if (i + 2 < n) add(j, i + 2, row.z, vector.z);
          if (i + 3 < n) add(j, i + 3, row.w, vector.w);
        }
      }
      __syncwarp();  // before the next scales
    }
    if (P::kBuffers == 1) __syncthreads();  // before the sums are written over
  };
#pragma unroll 1
  while (left >= 2 * kWarps) {
    do_step(rows[0], staged[0], kWarps);
    do_step(rows[1 % P::kAhead], staged[1 % P::kBuffers], kWarps);
  }
#pragma unroll
  for (int a = 0; a < 2; a++)
    if (left > 0) do_step(rows[a % P::kAhead], staged[a % P::kBuffers], min(left, kWarps));
}

#endif

// As multiply of product.cu, on tensor cores where that takes fewer instructions.
template <int kBits, int kGroup, int kColumns, int kTiles, bool kNormed = false, int kRows = kTileRows>
__device__ __forceinline__ void product(const uint4* __restrict__ codes, const __half* __restrict__ scales,
                                        const Quantized& x, const NormInput& normed, int first,
                                        float (&totals)[kTiles]) {
#if __CUDA_ARCH__ >= 750
  if constexpr (kUsesMma<kBits, kGroup, kColumns, kTiles>)
    multiply_mma<kBits, kGroup, kColumns, kTiles>(codes, scales, x, first, totals);
  else
#endif
    multiply<kBits, kGroup, kColumns, kTiles, kNormed, kRows>(codes, scales, x, normed, first, totals);
}

}  // namespace
