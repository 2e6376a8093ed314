// Needs: matmul.cu, tensor_cores.cu
// The products of matmul.cu on tensor cores with integers of 8 bits, for sm_75 and later.
//
// A block of 8 warps has 64 rows and 128 vectors, a warp 32 rows and 32 vectors. It takes a part of a group at a time:
// while it multiplies one, the next ones are copied to shared memory (sm_80 and later). The inputs of a product may have
// any order, as long as rows and vectors have the same. So lane t of four takes word t of each piece of 16 bytes: of q4
// its low and its high nibbles, of q8 word t of two pieces. Tensor cores get 16 times the codes of q4 minus 8: the high
// nibbles of signed bytes.

#if __CUDA_ARCH__ >= 750

namespace {

constexpr int kMmaVectors = 128;
constexpr int kMmaRows = 2, kMmaColumns = 4;  // a warp has so many times 16 rows and 8 columns
constexpr int kStages = __CUDA_ARCH__ >= 800 ? 3 : 2;  // parts in shared memory

// A part of a group: of q4 at most 64 inputs, of q8 32. Distances of vectors are such that eight of them lie in
// different banks.
template <int kBits, int kGroup>
struct Part {
  static constexpr int kInputs = kBits == 8 ? 32 : kGroup < 64 ? kGroup : 64;
  static constexpr int kOfGroup = kGroup / kInputs;
  static constexpr int kRowPieces = kInputs * kBits / 128;
  static constexpr int kVectorPieces = 2 * kRowPieces;  // both halves of a q4 group, both planes of q8
  uint4 rows[kBlockTiles][kRowPieces][kTileRows];
  uint4 vectors[kMmaVectors][kVectorPieces + 1];
  float vector_scales[kMmaVectors];  // of the group, as the row scales, in its last part
  uint4 row_scales[kBlockTiles][kTileRows / 8];
};

// What a thread copies to shared memory. What is beyond the end of the matrix or of the vectors is not stored later.
template <int kBits, int kGroup>
struct Copies {
  using P = Part<kBits, kGroup>;
  static constexpr int kTilePieces = P::kRowPieces * kTileRows;
  static constexpr int kOfThread = kMmaVectors * P::kVectorPieces / kMatmulThreads;  // pieces of vectors
  const uint4 *row, *vectors[kOfThread], *row_scales;
  const float* vector_scale;

  __device__ __forceinline__ Copies(const uint4* codes, const __half* scales, const Quantized& x, int tiles,
                                    int first_tile, int first_vector, int n) {
    const int t = static_cast<int>(threadIdx.x);
    const size_t tile = min(first_tile + t / kTilePieces % kBlockTiles, tiles - 1);
    row = codes + tile * x.groups * (P::kOfGroup * kTilePieces) + t % kTilePieces;
#pragma unroll
    for (int i = 0; i < kOfThread; i++) {
      const int at = i * kMatmulThreads + t, piece = at % P::kVectorPieces;
      const int half = piece / P::kRowPieces, rest = piece % P::kRowPieces;
      const size_t vector = min(first_vector + at / P::kVectorPieces, n - 1), plane = x.groups * (kGroup / 16);
      vectors[i] = reinterpret_cast<const uint4*>(x.codes) + vector * (kBits / 4) * plane +
                   half * (kBits == 4 ? kGroup / 32 : plane) + rest;
    }
    const size_t scales_tile = min(first_tile + t / (kTileRows / 8) % kBlockTiles, tiles - 1);
    row_scales =
        reinterpret_cast<const uint4*>(scales) + scales_tile * x.groups * (kTileRows / 8) + t % (kTileRows / 8);
    vector_scale = x.scales + static_cast<size_t>(min(first_vector + t % kMmaVectors, n - 1)) * x.groups;
  }

  // Begins to copy the next part, which is number part_of_group of its group.
  __device__ __forceinline__ void begin(P& to, int part_of_group) {
    const int t = static_cast<int>(threadIdx.x);
    if (t < kBlockTiles * kTilePieces)
      copy_piece(&to.rows[t / kTilePieces][t % kTilePieces / kTileRows][t % kTileRows], row);
    row += kTilePieces;
#pragma unroll
    for (int i = 0; i < kOfThread; i++) {
      const int at = i * kMatmulThreads + t;
      copy_piece(&to.vectors[at / P::kVectorPieces][at % P::kVectorPieces], vectors[i]);
      const bool skips = kBits == 4 && part_of_group == P::kOfGroup - 1;  // the group's other half
      vectors[i] += skips ? kGroup / 32 + P::kRowPieces : P::kRowPieces;
    }
    if (part_of_group < P::kOfGroup - 1) return;
    if (t < kMmaVectors) copy_word(&to.vector_scales[t], vector_scale);
    vector_scale++;
    constexpr int kScalePieces = kTileRows / 8;
    if (t < kBlockTiles * kScalePieces) copy_piece(&to.row_scales[t / kScalePieces][t % kScalePieces], row_scales);
    row_scales += kScalePieces;
  }
};

template <int kBits>
struct Accumulators {
  int sums[kMmaRows][kMmaColumns][4];
  int others[kBits == 8 ? kMmaRows : 1][kBits == 8 ? kMmaColumns : 1][4];
};

// Adds a part to the sums of the warp, or begins them with it.
template <int kBits, int kGroup>
__device__ __forceinline__ void multiply_part(const Part<kBits, kGroup>& part, int tile, int vector, bool begins,
                                              Accumulators<kBits>& to) {
  using P = Part<kBits, kGroup>;
  constexpr int kSteps = P::kInputs / 32;
  constexpr int kStart = kBits == 4 ? kFloatBits : 0;
  const int start[4] = {kStart, kStart, kStart, kStart};
  const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;  // of which the lane gives a row
  unsigned a[kSteps][kMmaRows][4];
  if (kBits == 4) {
    const unsigned rows = shared_address(&part.rows[tile][0][lane]);
#pragma unroll
    for (int h = 0; h < kSteps; h++) {
      unsigned words[4];
      load_matrices(words, rows + h * kTileRows * 16);
#pragma unroll
      for (int i = 0; i < 4; i++) {  // rows 8i ..
        a[h][i / 2][i % 2] = masked_and_flipped(words[i] << 4, 0xf0f0f0f0u, 0x80808080u);
        a[h][i / 2][2 + i % 2] = masked_and_flipped(words[i], 0xf0f0f0f0u, 0x80808080u);
      }
    }
  } else {
    const unsigned rows = shared_address(&part.rows[tile][matrix / 2][matrix % 2 * 8 + lane % 8]);
#pragma unroll
    for (int m = 0; m < kMmaRows; m++) load_matrices(a[0][m], rows + m * 16 * 16);
  }
  // Of q4 the low and the high half for a step are neighbours, then comes the next step, or 8 more vectors.
  constexpr int kTogether = 4 / P::kVectorPieces;  // times 8 vectors that are loaded at a time
  const int piece = matrix % P::kVectorPieces;
  const int place = kBits == 4 ? piece % 2 * P::kRowPieces + piece / 2 : piece;
  const unsigned vectors = shared_address(&part.vectors[vector + matrix / P::kVectorPieces * 8 + lane % 8][place]);
  unsigned b[4];
#pragma unroll
  for (int c = 0; c < kMmaColumns; c++) {
    if (c % kTogether == 0) load_matrices(b, vectors + c * 8 * static_cast<int>(sizeof(part.vectors[0])));
    const int first = c % kTogether * P::kVectorPieces;
#pragma unroll
    for (int m = 0; m < kMmaRows; m++) {
#pragma unroll
      for (int h = 0; h < kSteps; h++)
        multiply_add<false>(to.sums[m][c], a[h][m], b[first + 2 * h], b[first + 2 * h + 1],
                            begins && h == 0 ? start : to.sums[m][c]);
      if constexpr (kBits == 8)
        multiply_add<true>(to.others[m][c], a[0][m], b[2], b[3], begins ? start : to.others[m][c]);
    }
  }
}

// totals += the group of which this is the last part.
template <int kBits, int kGroup>
__device__ __forceinline__ void add_group(const Part<kBits, kGroup>& part, int tile, int vector,
                                          const Accumulators<kBits>& from, float (&totals)[kMmaRows][kMmaColumns][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float row_scales[2 * kMmaRows];
#pragma unroll
  for (int i = 0; i < 2 * kMmaRows; i++)
    row_scales[i] = __half2float(reinterpret_cast<const __half*>(part.row_scales[tile])[i * 8 + lane / 4]);
#pragma unroll
  for (int c = 0; c < kMmaColumns; c++) {
    const float2 scales = reinterpret_cast<const float2*>(part.vector_scales)[(vector + c * 8) / 2 + lane % 4];
#pragma unroll
    for (int m = 0; m < kMmaRows; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float scale = row_scales[m * 2 + i / 2] * (i % 2 == 0 ? scales.x : scales.y);
        const int other = kBits == 8 ? from.others[kBits == 8 ? m : 0][kBits == 8 ? c : 0][i] : 0;
        totals[m][c][i] = fmaf(float_of<kBits>(from.sums[m][c][i], other), scale, totals[m][c][i]);
      }
  }
}

}  // namespace

// As matmul. Grid (tiles / 2, n / 128).
template <int kBits, int kGroup>
__global__ void __launch_bounds__(kMatmulThreads, kBits == 4 ? 2 : 1)
    matmul_mma(const uint4* __restrict__ codes, const __half* __restrict__ scales, int tiles, int rows, int parts,
               int groups, const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
               const int* __restrict__ x_offsets, int n, float* out, int accumulate, float* kv, int kv_rows) {
  using P = Part<kBits, kGroup>;
  __shared__ P staged[kStages];
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const int first_tile = static_cast<int>(blockIdx.x) * kBlockTiles;
  const int first_vector = static_cast<int>(blockIdx.y) * kMmaVectors;
  const int warp = static_cast<int>(threadIdx.x) / 32, own_tile = warp % 2, own_vector = warp / 2 * 8 * kMmaColumns;
  Copies<kBits, kGroup> copies(codes, scales, x, tiles, first_tile, first_vector, n);
  const int n_parts = groups * P::kOfGroup;
#pragma unroll
  for (int i = 0; i < kStages - 1; i++) {
    if (i < n_parts) copies.begin(staged[i], i % P::kOfGroup);
    end_of_batch();
  }
  float totals[kMmaRows][kMmaColumns][4] = {};
  Accumulators<kBits> sums;
  int here = 0, part = 0;
#pragma unroll 1
  for (int g = 0; g < groups; g++)
#pragma unroll
    for (int i = 0; i < P::kOfGroup; i++, part++) {
      wait_for_copies<kStages - 2>();
      __syncthreads();  // the part is there, and the one before has been read by all
      const int next = here == 0 ? kStages - 1 : here - 1;
      if (part + kStages - 1 < n_parts) copies.begin(staged[next], (i + kStages - 1) % P::kOfGroup);
      end_of_batch();
      multiply_part<kBits, kGroup>(staged[here], own_tile, own_vector, i == 0, sums);
      if (i == P::kOfGroup - 1) add_group<kBits, kGroup>(staged[here], own_tile, own_vector, sums, totals);
      here = here == kStages - 1 ? 0 : here + 1;
    }
  const int lane_row = static_cast<int>(threadIdx.x) % 32 / 4, lane_column = static_cast<int>(threadIdx.x) % 4 * 2;
  if (first_tile + own_tile >= tiles) return;
  const TileOutput to = MatmulOutput{out, rows, parts, kv, kv_rows, n, accumulate != 0}.of(first_tile + own_tile);
#pragma unroll
  for (int m = 0; m < kMmaRows; m++)
#pragma unroll
    for (int c = 0; c < kMmaColumns; c++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        to.put(m * 16 + i / 2 * 8 + lane_row, first_vector + own_vector + c * 8 + lane_column + i % 2, totals[m][c][i]);
}

#endif
