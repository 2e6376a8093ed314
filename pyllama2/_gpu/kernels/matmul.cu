// Needs: common.cu, ptx.cu
// Products of a quantized matrix with many vectors, for prompts. They have the bits of the decode kernels: sums of a
// group are exact, and groups are added in the same order.
//
// A block has 64 rows (two tiles) and 64 vectors. It stages one group of them in shared memory at a time. A thread has
// 4 rows and 4 vectors. This kernel is for GPUs before sm_75; that of later ones is in matmul_mma.cu.

namespace {

constexpr int kMatmulThreads = 256;
constexpr int kBlockTiles = 2, kBlockRows = kBlockTiles * kTileRows;

// Where the products of one tile go.
struct TileOutput {
  float* out;  // of the first row and the first vector
  int stride;  // from one vector to the next
  int rows, n;  // that there are: rows from the tile's first one on, and vectors
  bool accumulate;  // add to what is there

  __device__ __forceinline__ void put(int row, int column, float value) const {
    if (row >= rows || column >= n) return;
    float* at = out + static_cast<size_t>(column) * stride + row;
    *at = accumulate ? *at + value : value;
  }
};

// Where the products of all tiles go. Those of one matrix, or of several of the same size whose tiles alternate (w1,
// w3): to out (n, parts, rows). Two more matrices may lie behind them (wk and wv behind wq): to kv (2, n, kv_rows).
struct MatmulOutput {
  float* out;
  int rows, parts;
  float* kv;
  int kv_rows, n;
  bool accumulate;

  __device__ __forceinline__ TileOutput of(int tile) const {
    const int behind = tile - parts * ((rows + kTileRows - 1) / kTileRows);
    if (behind < 0) {
      const int first = tile / parts * kTileRows;
      return {out + tile % parts * rows + first, parts * rows, rows - first, n, accumulate};
    }
    const int kv_tiles = (kv_rows + kTileRows - 1) / kTileRows, first = behind % kv_tiles * kTileRows;
    float* at = kv + static_cast<size_t>(behind / kv_tiles) * n * kv_rows;
    return {at + first, kv_rows, kv_rows - first, n, accumulate};
  }
};

// One group of a block's rows and vectors. Vectors have a distance at which eight of them lie in different banks.
template <int kBits, int kGroup, int kVectors>
struct StagedGroup {
  static constexpr int kPieces = kGroup * kBits / 128;  // of 16 bytes, in a row
  static constexpr int kVectorPieces = kGroup * kBits / 64;  // in a vector, both planes of q8
  static constexpr int kStride = kVectorPieces + 1;
  uint4 rows[kBlockTiles][kPieces][kTileRows];
  uint4 vectors[kVectors][kStride];
  __half row_scales[kBlockRows];
  float vector_scales[kVectors];
  int offsets[kVectors];
};

template <int kBits, int kGroup, int kVectors>
__device__ __forceinline__ void stage_group(StagedGroup<kBits, kGroup, kVectors>& to, const uint4* __restrict__ codes,
                                            const __half* __restrict__ scales, const Quantized& x, int g, int tiles,
                                            int first_tile, int first_vector, int n) {
  using S = StagedGroup<kBits, kGroup, kVectors>;
  constexpr int kTilePieces = S::kPieces * kTileRows;
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < kBlockTiles * kTilePieces; i += kMatmulThreads) {
    const int tile = min(first_tile + i / kTilePieces, tiles - 1);  // what is beyond the end is not stored
    const size_t from = (static_cast<size_t>(tile) * x.groups + g) * kTilePieces + i % kTilePieces;
    to.rows[i / kTilePieces][i % kTilePieces / kTileRows][i % kTileRows] = load_once(codes + from);
  }
  constexpr int kPlanePieces = kGroup / 16;
  for (int i = t; i < kVectors * S::kVectorPieces; i += kMatmulThreads) {
    const int vector = min(first_vector + i / S::kVectorPieces, n - 1), piece = i % S::kVectorPieces;
    const size_t plane = static_cast<size_t>(vector) * (kBits / 4) + piece / kPlanePieces;
    to.vectors[i / S::kVectorPieces][piece] =
        reinterpret_cast<const uint4*>(x.codes)[(plane * x.groups + g) * kPlanePieces + piece % kPlanePieces];
  }
  if (t < kBlockRows) {
    const int tile = min(first_tile + t / kTileRows, tiles - 1);
    to.row_scales[t] = scales[(static_cast<size_t>(tile) * x.groups + g) * kTileRows + t % kTileRows];
  }
  if (t < kVectors) {
    const size_t at = static_cast<size_t>(min(first_vector + t, n - 1)) * x.groups + g;
    to.vector_scales[t] = x.scales[at];
    if (kBits == 4) to.offsets[t] = x.offsets[at];
  }
}

}  // namespace

// Tiles of a matrix -> out and kv (see MatmulOutput) = the products with n vectors, or += them. Grid (tiles / 2, n /
// 64).
template <int kBits, int kGroup>
__global__ void __launch_bounds__(kMatmulThreads)
    matmul(const uint4* __restrict__ codes, const __half* __restrict__ scales, int tiles, int rows, int parts,
           int groups, const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
           const int* __restrict__ x_offsets, int n, float* out, int accumulate, float* kv, int kv_rows) {
  constexpr int kVectors = 64, kEach = 4, kApart = 16;  // a thread's rows and vectors are 16 apart
  using S = StagedGroup<kBits, kGroup, kVectors>;
  __shared__ S staged;
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const int first_tile = static_cast<int>(blockIdx.x) * kBlockTiles,
            first_vector = static_cast<int>(blockIdx.y) * kVectors;
  const int own_row = static_cast<int>(threadIdx.x) % kApart, own_vector = static_cast<int>(threadIdx.x) / kApart;
  float totals[kEach][kEach] = {};
  for (int g = 0; g < groups; g++) {
    __syncthreads();
    stage_group(staged, codes, scales, x, g, tiles, first_tile, first_vector, n);
    __syncthreads();
    int sums[kEach][kEach], others[kEach][kEach] = {};
#pragma unroll
    for (int c = 0; c < kEach; c++)
#pragma unroll
      for (int r = 0; r < kEach; r++) sums[r][c] = kBits == 4 ? staged.offsets[own_vector + c * kApart] : 0;
#pragma unroll 1
    for (int h = 0; h < S::kPieces; h++) {
      uint4 row[kEach];
#pragma unroll
      for (int r = 0; r < kEach; r++)
        row[r] = staged.rows[(own_row + r * kApart) / kTileRows][h][(own_row + r * kApart) % kTileRows];
#pragma unroll
      for (int c = 0; c < kEach; c++) {
        const uint4* vector = staged.vectors[own_vector + c * kApart] + h;
        const uint4 first = vector[0], second = vector[kBits == 4 ? S::kPieces : kGroup / 16];
#pragma unroll
        for (int r = 0; r < kEach; r++) dot_piece<kBits>(row[r], first, second, sums[r][c], others[r][c]);
      }
    }
#pragma unroll
    for (int r = 0; r < kEach; r++)
#pragma unroll
      for (int c = 0; c < kEach; c++) {
        const int sum = kBits == 4 ? sums[r][c] + others[r][c] / 16 : sums[r][c] * 256 + others[r][c];
        const float scale =
            __half2float(staged.row_scales[own_row + r * kApart]) * staged.vector_scales[own_vector + c * kApart];
        totals[r][c] = fmaf(static_cast<float>(sum), scale, totals[r][c]);
      }
  }
  const MatmulOutput output = {out, rows, parts, kv, kv_rows, n, accumulate != 0};
#pragma unroll
  for (int r = 0; r < kEach; r++) {
    const int row = own_row + r * kApart, tile = first_tile + row / kTileRows;
    if (tile >= tiles) break;
    const TileOutput to = output.of(tile);
#pragma unroll
    for (int c = 0; c < kEach; c++) to.put(row % kTileRows, first_vector + own_vector + c * kApart, totals[r][c]);
  }
}
