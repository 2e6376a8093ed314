// Needs: common.cu, ptx.cu
// Products of some tiles of a float16 or float32 matrix with some vectors: the inner loop of every kernel for them.
//
// A sum of floats depends on the order of additions, so they have the CPU's (SUM16 of _cpu/kernels/vector.h): a product
// is 16 running sums of every 16th input, which are added up in pairs. A block has a warp for each running sum, and a
// lane has a row of the tile. So a warp reads its inputs of 32 rows in one piece, and a number of a vector is the same
// for all of its lanes. At the end the sums go through shared memory. That also rules out tensor cores, whose sums of
// floats have no order that could be known.
//
// Nothing waits for other warps before the end. A warp's weights are on their way while it multiplies the ones before,
// and so are its numbers of the vectors, which it distributes through shared memory.

namespace {

constexpr int kFloatThreads = 32 * kRunningSums;
constexpr int kStretch = kFloatGroup / kRunningSums;  // a warp's inputs in 128 inputs of a row, loaded together
constexpr int kMostColumns = 8;  // whose running sums are in shared memory at the same time

// The CUDA compiler's option -ftz=true, which CuPy gives it, makes zeros of denormal numbers. The CPU does not.
__device__ __forceinline__ float exact_fma(float a, float b, float c) { return __fmaf_ieee_rn(a, b, c); }
__device__ __forceinline__ float exact_sum(float a, float b) { return __fmaf_ieee_rn(a, 1.0f, b); }

template <int kBits, int kColumns, int kTiles>
struct FloatPlan {
  static constexpr int kOfPiece = 128 / kBits;  // numbers in 16 bytes
  static constexpr int kPieces = kStretch / kOfPiece;
  // Stretches that are on their way: 64 bytes per lane, or fewer where registers would be spilled for them.
  static constexpr int kWanted = kColumns > kMostColumns ? 1 : kColumns > 2 && kColumns <= 4 ? 2 : 4;  // times 16 bytes
  static constexpr int kAhead = kWanted > kPieces* kTiles ? kWanted / (kPieces * kTiles) : 1;
  static constexpr int kQuads = kAhead * kStretch / 4;  // float4 of a vector that a warp takes at a time
  static constexpr int kSlot = kColumns * kQuads;  // and of all vectors
  static constexpr int kHeld = (kSlot + 31) / 32;  // of a lane
  static constexpr int kTogether = kColumns < kMostColumns ? kColumns : kMostColumns;
  static constexpr int kBlocks = kColumns <= 4 ? 2 : 1;  // on a multiprocessor
};

// What the warps have one after the other: their vectors while they multiply, then their running sums.
template <class P, int kTiles>
union FloatShared {
  float4 slots[kRunningSums][P::kSlot];
  float sums[kRunningSums][kTiles][P::kTogether][kTileRows];
};

// Four of the numbers of 16 bytes: the first ones, or those of the second half.
template <int kBits>
__device__ __forceinline__ float4 widen_quad(const uint4& piece, bool second) {
  if constexpr (kBits == 32) {
    return {__uint_as_float(piece.x), __uint_as_float(piece.y), __uint_as_float(piece.z), __uint_as_float(piece.w)};
  } else {
    const unsigned words[2] = {second ? piece.z : piece.x, second ? piece.w : piece.y};
    const auto number = [&](int i) {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(words[i / 2] >> i % 2 * 16)));
    };
    return {number(0), number(1), number(2), number(3)};
  }
}

// sums += one stretch of this lane's rows times one stretch of the vectors, which begin at `vectors`.
template <class P, int kBits, int kColumns, int kTiles>
__device__ __forceinline__ void multiply_stretch(const uint4 (&rows)[kTiles][P::kPieces], const float4* vectors,
                                                 float (&sums)[kTiles][kColumns]) {
#pragma unroll
  for (int q = 0; q < kStretch / 4; q++) {
    float4 weights[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; j++) weights[j] = widen_quad<kBits>(rows[j][q * 4 / P::kOfPiece], q * 4 % P::kOfPiece);
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      const float4 numbers = vectors[c * P::kQuads + q];
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        float sum = exact_fma(weights[j].x, numbers.x, sums[j][c]);
        sum = exact_fma(weights[j].y, numbers.y, sum);
        sum = exact_fma(weights[j].z, numbers.z, sum);
        sums[j][c] = exact_fma(weights[j].w, numbers.w, sum);
      }
    }
  }
}

// sums[j][c] = the warp's running sum of row `lane` of tile first_tile + j, at most last_tile, times vector first + c, at
// most last, of x (vectors, 16, stretches * 8).
template <int kBits, int kColumns, int kTiles>
__device__ __forceinline__ void running_sums(const uint4* __restrict__ codes, const float* __restrict__ x,
                                             int stretches, int first_tile, int last_tile, int first, int last,
                                             float4* slot, float (&sums)[kTiles][kColumns]) {
  using P = FloatPlan<kBits, kColumns, kTiles>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned places[kTiles], vectors[P::kHeld];  // of codes and x, in units of 16 bytes
  uint4 rows[P::kAhead][kTiles][P::kPieces];
  float4 held[P::kHeld];
  const auto load_row = [&](int a, int stretch) {
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int p = 0; p < P::kPieces; p++)
        if (stretch < stretches) rows[a][j][p] = load_once(codes + places[j] + (stretch * P::kPieces + p) * kTileRows);
  };
  const auto load_vectors = [&](int stretch) {
#pragma unroll
    for (int r = 0; r < P::kHeld; r++) {
      const int i = r * 32 + lane, later = i % P::kQuads / (kStretch / 4);
      if (i < P::kSlot && stretch + later < stretches)
        held[r] = __ldg(reinterpret_cast<const float4*>(x) + vectors[r] + stretch * (kStretch / 4));
    }
  };
  const auto hand_round = [&] {
    __syncwarp();  // what was there has been read
#pragma unroll
    for (int r = 0; r < P::kHeld; r++)
      if (r * 32 + lane < P::kSlot) slot[r * 32 + lane] = held[r];
    __syncwarp();
  };
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
    const unsigned tile = min(first_tile + j, last_tile);
    places[j] = (tile * kRunningSums + warp) * stretches * (P::kPieces * kTileRows) + lane;
#pragma unroll
    for (int c = 0; c < kColumns; c++) sums[j][c] = 0.0f;
  }
#pragma unroll
  for (int r = 0; r < P::kHeld; r++) {
    const int i = r * 32 + lane, c = min(first + i / P::kQuads, last);
    vectors[r] = static_cast<unsigned>(c * kRunningSums + warp) * stretches * (kStretch / 4) + i % P::kQuads;
  }
#pragma unroll
  for (int a = 0; a < P::kAhead; a++) load_row(a, a);
  load_vectors(0);
#pragma unroll 1
  for (int stretch = 0; stretch < stretches; stretch += P::kAhead) {
    hand_round();
    load_vectors(stretch + P::kAhead);
#pragma unroll
    for (int a = 0; a < P::kAhead; a++) {
      if (stretch + a < stretches)
        multiply_stretch<P, kBits, kColumns, kTiles>(rows[a], slot + a * (kStretch / 4), sums);
      load_row(a, stretch + P::kAhead + a);
    }
  }
}

// The product whose running sums are those of a row, tile and vector in each warp: SUM16 of the CPU.
template <class Sums>
__device__ __forceinline__ float added_up(const Sums& sums, int tile, int column, int row) {
  float half[8];
#pragma unroll
  for (int i = 0; i < 8; i++) half[i] = exact_sum(sums[i][tile][column][row], sums[i + 8][tile][column][row]);
#pragma unroll
  for (int i = 0; i < 4; i++) half[i] = exact_sum(half[i], half[i + 4]);
  return exact_sum(exact_sum(half[0], half[2]), exact_sum(half[1], half[3]));
}

// totals[j] = row `lane` of tile first_tile + j, times vector `warp`, in the first kColumns warps. Other warps get
// nothing. All threads of a block must call it. x is (kColumns, 16, stretches * 8).
template <int kBits, int kColumns, int kTiles>
__device__ __forceinline__ void multiply_floats(const uint4* __restrict__ codes, const float* __restrict__ x,
                                                int stretches, int first_tile, float (&totals)[kTiles]) {
  using P = FloatPlan<kBits, kColumns, kTiles>;
  __shared__ FloatShared<P, kTiles> shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sums[kTiles][kColumns];
  running_sums<kBits, kColumns, kTiles>(codes, x, stretches, first_tile, first_tile + kTiles - 1, 0, kColumns - 1,
                                        shared.slots[warp], sums);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int c = 0; c < kColumns; c++) shared.sums[warp][j][c][lane] = sums[j][c];
  __syncthreads();
  if (warp < kColumns)
#pragma unroll
    for (int j = 0; j < kTiles; j++) totals[j] = added_up(shared.sums, j, warp, lane);
}

}  // namespace
