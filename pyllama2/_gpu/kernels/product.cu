// Needs: common.cu, ptx.cu, norm.cu
// Products of some tiles of a quantized matrix with 1 to 8 vectors: the inner loop of every decode kernel.
//
// A lane has a row of the tile. The 16 warps of a block take the groups of a tile in turn, a few at a time. While a
// warp multiplies some groups, the next ones are on their way from memory. A block may have half of a tile's rows, so
// that there are twice as many blocks: then the upper half of a warp has the same rows' next group. The codes of a vector are the same for all
// lanes: a warp loads them in whole sectors, and distributes them through shared memory. Each warp puts the exact sums
// of its groups into shared memory. There warp c adds those of vector c in the order of the groups. That costs less
// than shuffles would, and fixes the order of additions.
//
// A single vector may come as what it is a norm of. Then each block norms it, while its first weights are on their way,
// and each warp quantizes the groups that it multiplies. That takes the norm out of the chain of kernels.

namespace {

constexpr int kWarps = 16;
constexpr int kSharedBytes = 48 * 1024;  // what a block can have without asking for more
constexpr int kFusedBytes = 640;  // a part of them, for the steps that are fused with a product

template <int kBits, int kGroup, int kColumns, int kTiles, int kRows = kTileRows>
struct Plan {
  static constexpr int kSides = kTileRows / kRows;  // groups that a warp multiplies side by side
  static constexpr int kPlanes = kBits / 4;  // of a vector
  static constexpr int kChunks = kGroup * kBits / 128;  // of 16 bytes, in one row's group
  static constexpr int kGroupBytes = kTiles * kRows * (4 * kColumns + 2);  // of shared memory
  // Groups of a lane that are on their way: 64 bytes, if there is enough shared memory.
  static constexpr int kWanted = kChunks * kTiles >= 4 ? 1 : 4 / (kChunks * kTiles);
  static constexpr int kFits = 19 * 1024 / (kWarps * kSides * kGroupBytes);
  static constexpr int kAhead = kFits >= kWanted ? kWanted : kFits >= 2 && kWanted >= 2 ? 2 : 1;
  static constexpr int kOfWarp = kAhead * kSides;  // groups of a warp
  static constexpr int kStep = kOfWarp * kWarps;  // groups between two barriers
  // Vectors that are multiplied at once. The loop over more of them is not unrolled, or registers would be spilled.
  static constexpr int kFew = kColumns <= 4 ? kColumns : (kColumns + 1) / 2;
  static constexpr int kAtOnce = kChunks * kTiles >= 8 ? 1 : kChunks * kTiles >= 4 && kFew > 2 ? 2 : kFew;
  static constexpr int kPlanePieces = kOfWarp * kGroup / 16;  // pieces of 16 bytes that a warp takes of a plane
  static constexpr int kPieces = kAtOnce * kPlanes * kPlanePieces;  // and of all planes of kAtOnce vectors
  static constexpr int kSlotBytes =
      kWarps * kPieces * 16 + (kColumns == 1 ? 4 : kColumns) * kStep * 8;  // of shared memory
  static constexpr int kBuffers = 2 * kStep * kGroupBytes + kSlotBytes + kFusedBytes <= kSharedBytes ? 2 : 1;
  static constexpr int kPiecesOfLane = (kPieces + 31) / 32;
  // Two blocks on a multiprocessor, if no registers have to be spilled for it.
  static constexpr int kBlocks = kColumns == 1 && kAhead * kTiles * kChunks <= 4 ? 2 : 1;
};

// What warps give to each other between two barriers, in the order of the groups, as lanes have it.
template <class P, int kColumns, int kTiles>
struct Staged {
  float sums[kTiles][kColumns][kWarps * P::kAhead][32];
  __half scales[kTiles][kWarps * P::kAhead][32];
};

// Where a warp reads the next groups of a tile: codes and scales of this lane's row.
struct Place {
  const uint4* codes;
  const __half* scale;
};

template <int kChunks>
struct RowGroup {  // one group of one row
  uint4 codes[kChunks];
  __half scale;

  __device__ __forceinline__ void load(const Place& from, int groups_later) {
#pragma unroll
    for (int h = 0; h < kChunks; h++) codes[h] = load_once(from.codes + (groups_later * kChunks + h) * kTileRows);
    scale = from.scale[groups_later * kTileRows];
  }
};

// What one warp multiplies with next: its groups of kAtOnce vectors, loaded into registers, then distributed.
template <class P, int kGroup>
struct WarpVectors {
  uint4 pieces[P::kPiecesOfLane];

  // Vectors from c0 on, groups from `group` on.
  __device__ __forceinline__ void load(const Quantized& x, int c0, int group) {
    const int lane = threadIdx.x % 32, plane_stride = x.groups * (kGroup / 16);
#pragma unroll
    for (int r = 0; r < P::kPiecesOfLane; r++) {
      const int piece = r * 32 + lane, plane = P::kPieces == P::kPlanePieces ? 0 : piece / P::kPlanePieces;
      const int i = piece - plane * P::kPlanePieces;
      if (piece < P::kPieces && i < (x.groups - group) * (kGroup / 16))
        pieces[r] = reinterpret_cast<const uint4*>(
            x.codes)[(c0 * P::kPlanes + plane) * plane_stride + group * (kGroup / 16) + i];
    }
  }

  // Writes them to shared memory. A barrier of the warp or block must follow before they are read.
  __device__ __forceinline__ void hand_round(uint4* slot) const {
    const int lane = threadIdx.x % 32;
    __syncwarp();  // what was there has been read
#pragma unroll
    for (int r = 0; r < P::kPiecesOfLane; r++)
      if (r * 32 + lane < P::kPieces) slot[r * 32 + lane] = pieces[r];
  }
};

// The same for a vector that is normed here.
template <class P, int kBits, int kGroup>
struct NormedGroups {
  float x[P::kAhead][kGroup / 32], weight[P::kAhead][kGroup / 32];

  // Groups from `group` on; zeros after the end of the vector.
  __device__ __forceinline__ void load(const NormInput& from, int group) {
    load_numbers(from.x, from.dim, group, x);
    load_numbers(from.weight, from.dim, group, weight);
  }

  // Writes their codes to the warp's slot, and scales and offsets to its places of a step.
  __device__ __forceinline__ void hand_round(float scale, uint4* slot, float2* scales) const {
    signed char* codes = reinterpret_cast<signed char*>(slot);
    __syncwarp();  // what was there has been read
#pragma unroll
    for (int a = 0; a < P::kAhead; a++) {
      float y[kGroup / 32];
#pragma unroll
      for (int k = 0; k < kGroup / 32; k++) y[k] = x[a][k] * scale * weight[a][k];
      const ScaleAndOffset made =
          quantize_numbers<kBits, kGroup>(y, codes + a * kGroup, codes + P::kPlanePieces * 16 + a * kGroup);
      if (threadIdx.x % 32 == 0)
        scales[threadIdx.x / 32 * P::kAhead + a] = {made.scale, kBits == 4 ? static_cast<float>(made.offset) : 0.0f};
    }
  }

 private:
  __device__ __forceinline__ static void load_numbers(const float* __restrict__ from, int dim, int group,
                                                      float (&to)[P::kAhead][kGroup / 32]) {
#pragma unroll
    for (int a = 0; a < P::kAhead; a++)
#pragma unroll
      for (int k = 0; k < kGroup / 32; k++) {
        const int i = (group + a) * kGroup + k * 32 + static_cast<int>(threadIdx.x % 32);
        to[a][k] = i < dim ? __ldg(from + i) : 0.0f;
      }
  }
};

// The exact sum of one group of a row times the same group of a vector, whose planes are `apart` pieces apart. The zero
// point of q4 is not subtracted yet.
template <int kBits, int kGroup>
__device__ __forceinline__ int group_sum(const RowGroup<kGroup * kBits / 128>& row, const uint4* x, int apart) {
  constexpr int kChunks = kGroup * kBits / 128;
  int sum = 0, other = 0;
#pragma unroll
  for (int h = 0; h < kChunks; h++) {
    const uint4 first = x[h], second = x[kBits == 4 ? kChunks + h : apart + h];
    dot_piece<kBits>(row.codes[h], first, second, sum, other);
  }
  return kBits == 4 ? sum + (other >> 4) : sum * 256 + other;
}

// Scales and offsets of kCount groups of a vector on their way to shared memory: warp c takes those of vector c
// of a step, or, with half tiles, each warp those of its groups, which takes fewer registers.
template <int kBits, int kCount>
struct VectorScales {
  float2 values[(kCount + 31) / 32];

  // Groups from `first` on.
  __device__ __forceinline__ void load(const Quantized& x, int vector, int first) {
#pragma unroll
    for (int r = 0; r < (kCount + 31) / 32; r++) {
      const int i = r * 32 + static_cast<int>(threadIdx.x % 32);
      if (i >= kCount || first + i >= x.groups) continue;
      const int at = vector * x.groups + first + i;
      values[r] = {x.scales[at], kBits == 4 ? static_cast<float>(x.offsets[at]) : 0.0f};
    }
  }

  __device__ __forceinline__ void hand_round(float2* slot) const {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < (kCount + 31) / 32; r++) {
      const int i = r * 32 + static_cast<int>(threadIdx.x % 32);
      if (i < kCount) slot[i] = values[r];
    }
    __syncwarp();
  }
};

// totals[j] += groups 0 .. n of what was staged, in order. The offset subtracts q4's zero point: the sum of integers
// below 2^24 is exact.
template <int kBits, int kRows, class S, int kTiles>
__device__ __forceinline__ void add_groups(const S& staged, const float2* vector_scales, int n,
                                           float (&totals)[kTiles]) {
  constexpr int kSides = kTileRows / kRows;
  const int row = threadIdx.x % kRows, warp = threadIdx.x / 32;
#pragma unroll 8
  for (int i = 0; i < n; i++) {
    const float2 vector = vector_scales[i];
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      const float sum = staged.sums[j][warp][i / kSides][i % kSides * kRows + row] + (kBits == 4 ? vector.y : 0.0f);
      totals[j] = fmaf(sum, __half2float(staged.scales[j][i / kSides][i % kSides * kRows + row]) * vector.x, totals[j]);
    }
  }
}

// A warp's share of one step: sums of its n groups, with kAtOnce vectors from c0 on.
template <int kBits, int kGroup, int kRows, class P, class S, int kTiles>
__device__ __forceinline__ void multiply_groups(const RowGroup<P::kChunks> (&rows)[P::kAhead][kTiles],
                                                const uint4* vectors, int c0, int n, S& staged) {
  const int lane = threadIdx.x % 32, side = lane / kRows;
  const int first_place = static_cast<int>(threadIdx.x / 32) * P::kAhead;
#pragma unroll
  for (int a = 0; a < P::kAhead; a++) {
    if (a * P::kSides + side >= n) continue;
#pragma unroll
    for (int c = 0; c < P::kAtOnce; c++)
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        const uint4* vector = vectors + c * P::kPlanes * P::kPlanePieces + (a * P::kSides + side) * (kGroup / 16);
        const int sum = group_sum<kBits, kGroup>(rows[a][j], vector, P::kPlanePieces);
        staged.sums[j][c0 + c][first_place + a][lane] = static_cast<float>(sum);
      }
  }
}

// totals[j] = row `lane` of part first + j, times vector `warp`, in the first kColumns warps. A part is a tile, or half
// of one: kRows rows. Lanes beyond its rows, and other warps, get nothing. All threads of a block must call it. kNormed:
// the vector is the norm of `normed`, else those of x.
template <int kBits, int kGroup, int kColumns, int kTiles, bool kNormed = false, int kRows = kTileRows>
__device__ __forceinline__ void multiply(const uint4* __restrict__ codes, const __half* __restrict__ scales,
                                         const Quantized& x, const NormInput& normed, int first,
                                         float (&totals)[kTiles]) {
  using P = Plan<kBits, kGroup, kColumns, kTiles, kRows>;
  using S = Staged<P, kColumns, kTiles>;
  static_assert(!kNormed || kColumns == 1, "only a single vector is normed here");
  static_assert(kRows == kTileRows || (kColumns == 1 && kTiles == 1 && !kNormed), "half tiles are for one vector");
  // Where each warp puts the scales of its groups, there are those of three steps: that are added up, of the step under
  // way, and the next ones.
  constexpr bool kByGroups = kNormed || kRows < kTileRows;
  constexpr int kScaleSlots = kByGroups ? 4 : kColumns;
  __shared__ S staged[P::kBuffers];
  __shared__ uint4 vector_slots[kWarps][P::kPieces];
  __shared__ float2 scale_slots[kScaleSlots][P::kStep];
  static_assert(sizeof(staged) + sizeof(vector_slots) + sizeof(scale_slots) + kFusedBytes <= kSharedBytes,
                "a block cannot have that much shared memory");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane % kRows, side = lane / kRows;
  int group = warp * P::kOfWarp;  // the first of this warp's groups that are on their way
  Place places[kTiles];
  RowGroup<P::kChunks> rows[P::kAhead][kTiles];
  WarpVectors<P, kGroup> vectors;
  VectorScales<kBits, kByGroups ? P::kOfWarp : P::kStep> vector_scales;
  NormedGroups<P, kBits, kGroup> normed_groups;
  float norm = 0.0f;
  const auto load_rows = [&] {
    const int n = x.groups - group;
#pragma unroll
    for (int a = 0; a < P::kAhead; a++)
#pragma unroll
      for (int j = 0; j < kTiles; j++)
        if (a * P::kSides + side < n) rows[a][j].load(places[j], a * P::kSides);
  };
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
    const unsigned at = static_cast<unsigned>(first / P::kSides + j) * x.groups + group + side;
    const int row_of_tile = first % P::kSides * kRows + row;
    places[j] = {codes + static_cast<size_t>(at) * (P::kChunks * kTileRows) + row_of_tile,
                 scales + static_cast<size_t>(at) * kTileRows + row_of_tile};
    totals[j] = 0.0f;
  }
  load_rows();
  if constexpr (kNormed) {
    __shared__ float of_warps[kNormWarps];
    const float squares = squares_of_warp<false>(normed.x, normed.dim);
    normed_groups.load(normed, group);
    if (lane == 0) of_warps[warp] = squares;
    __syncthreads();
    norm = norm_scale(of_warps, normed.dim, normed.eps);
    normed_groups.hand_round(norm, vector_slots[warp], scale_slots[0]);
  } else {
    vectors.load(x, 0, group);
    vectors.hand_round(vector_slots[warp]);
    if (kByGroups) {
      vector_scales.load(x, 0, group);
      vector_scales.hand_round(&scale_slots[0][group]);
    } else if (warp < kColumns) {
      vector_scales.load(x, warp, 0);
    }
  }
  __syncwarp();

  // n is the number of the warp's groups that exist. In whole steps it is a constant. slot is where the scales of the
  // next step's groups go.
  const auto do_step = [&](S& here, int n, [[maybe_unused]] int slot) {
    if constexpr (kNormed) {
      normed_groups.load(normed, group + P::kStep);
      multiply_groups<kBits, kGroup, kRows, P>(rows, vector_slots[warp], 0, n, here);
      if (group + P::kStep < x.groups) normed_groups.hand_round(norm, vector_slots[warp], scale_slots[slot]);
    } else {
      if (kByGroups) vector_scales.load(x, 0, group + P::kStep);
#pragma unroll 1
      for (int c = 0; c < kColumns; c += P::kAtOnce) {
        const int c0 = min(c, kColumns - P::kAtOnce);  // the last vectors may be multiplied twice
        const bool more = c + P::kAtOnce < kColumns;
        vectors.load(x, more ? min(c + P::kAtOnce, kColumns - P::kAtOnce) : 0, more ? group : group + P::kStep);
        multiply_groups<kBits, kGroup, kRows, P>(rows, vector_slots[warp], c0, n, here);
        vectors.hand_round(vector_slots[warp]);
        if (more) __syncwarp();
      }
      if (kByGroups) vector_scales.hand_round(&scale_slots[slot][warp * P::kOfWarp]);
    }
#pragma unroll
    for (int a = 0; a < P::kAhead; a++)
#pragma unroll
      for (int j = 0; j < kTiles; j++)
        if (a * P::kSides + side < n) here.scales[j][warp * P::kAhead + a][lane] = rows[a][j].scale;
    group += P::kStep;
#pragma unroll
    for (int j = 0; j < kTiles; j++)
      places[j].codes += P::kStep * P::kChunks * kTileRows, places[j].scale += P::kStep * kTileRows;
    load_rows();
    __syncthreads();
  };
  const auto add_up = [&](const S& here, [[maybe_unused]] int first_group, int n, [[maybe_unused]] int slot) {
    if (warp < kColumns) {
      if constexpr (!kByGroups) {
        vector_scales.hand_round(scale_slots[warp]);
        vector_scales.load(x, warp, first_group + P::kStep);
      }
      add_groups<kBits, kRows>(here, scale_slots[kByGroups ? slot : warp], n, totals);
    }
    if (P::kBuffers == 1) __syncthreads();  // before the sums are written over
  };
  int step = 0;
#pragma unroll 1
  for (; (step + 1) * P::kStep <= x.groups; step++) {
    do_step(staged[step % P::kBuffers], P::kOfWarp, (step + 1) % 4);
    add_up(staged[step % P::kBuffers], step * P::kStep, P::kStep, step % 4);
  }
  if (step * P::kStep < x.groups) {
    do_step(staged[step % P::kBuffers], x.groups - group, (step + 1) % 4);
    add_up(staged[step % P::kBuffers], step * P::kStep, x.groups - step * P::kStep, step % 4);
  }
}

}  // namespace
