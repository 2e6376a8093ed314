// Needs: common.cu, cache.cu, softmax.cu
// Attention of many tokens to the cache, in tiles of consecutive tokens of one row. For prompts.
//
//   out_h = sum over s <= position of softmax_s(q_h . k_s / sqrt(head_dim)) v_s
//
// The columns of a tile are the queries of its tokens, for kQueries heads that share a key head: a key or value is read
// once for all of them. Positions are cut into spans of kSpan, counted from 0. For each span, a thread computes the
// scores of two positions with all columns. Half a warp turns the scores of a column into weights. Then a thread sums
// weights * values in some places of head_dim for some columns. Each number has the operations of attention.cu in the
// same order. So prompts and single tokens have the same bits, however a prompt is cut. A position that a column does
// not see is never multiplied with its weights.

namespace {

constexpr int kPromptThreads = 128;
constexpr int kSweeps = kSpan / kPromptThreads;  // positions of a thread

// How threads share the outputs: kLanes threads share the places of head_dim, and each of kGroups has its own columns.
template <int kHeadDim>
struct PromptShares {
  static constexpr int kColumns = kHeadDim <= 128 ? 32 : 16;
  static constexpr int kPiece = piece_of(kHeadDim, 4);
  static constexpr int kLanes = kHeadDim / kPiece;
  static constexpr int kGroups = kPromptThreads / kLanes;
  static constexpr int kMine = (kColumns + kGroups - 1) / kGroups;  // columns of a thread
  static_assert(kLanes <= kPromptThreads, "one thread for each piece of head_dim");
};

template <int kHeadDim>
struct PromptScratch {
  static constexpr int kColumns = PromptShares<kHeadDim>::kColumns;
  union {  // queries are not needed any more when scores are stored
    alignas(16) float queries[kHeadDim][kColumns];
    alignas(16) float weights[kColumns][kSpanStride];
  };
  int counts[kColumns];  // positions that a column sees, ascending
  float maxima[kColumns], sums[kColumns];  // of all spans so far
  float keep[kColumns], add[kColumns];  // factors of the sums so far, and of the last span: see Merge
};

// Scores of the thread's position with every column.
template <int kHeadDim, class Code, int kColumns>
__device__ __forceinline__ void score_columns(const Code* __restrict__ key, const float (&queries)[kHeadDim][kColumns],
                                              float (&scores)[kColumns]) {
  constexpr int kPiece = kKeyPiece<kHeadDim, Code>;
  using Piece = Raw<kPiece* static_cast<int>(sizeof(Code))>;
#pragma unroll 1
  for (int d = 0; d < kHeadDim; d += kPiece) {
    const Piece raw = __ldg(reinterpret_cast<const Piece*>(key + d * kKeyBlock));
#pragma unroll
    for (int i = 0; i < kPiece; i++) {
      const float number = widened<Code>(raw, i);
#pragma unroll
      for (int c = 0; c < kColumns; c += 4) {
        const float4 query = *reinterpret_cast<const float4*>(&queries[d + i][c]);
        scores[c] = fmaf(number, query.x, scores[c]);
        scores[c + 1] = fmaf(number, query.y, scores[c + 1]);
        scores[c + 2] = fmaf(number, query.z, scores[c + 2]);
        scores[c + 3] = fmaf(number, query.w, scores[c + 3]);
      }
    }
  }
}

template <int kHeadDim>
using Gathered = float[PromptShares<kHeadDim>::kMine][PromptShares<kHeadDim>::kPiece];

// out += weights * values over one span, for the thread's columns, from column on, and its piece of head_dim.
template <int kHeadDim, class Code>
__device__ __forceinline__ void gather(const PromptScratch<kHeadDim>& scratch, const Code* __restrict__ values,
                                       int first, int column, Gathered<kHeadDim>& out) {
  using Shares = PromptShares<kHeadDim>;
  constexpr int kPiece = Shares::kPiece, kMine = Shares::kMine, kLast = Shares::kColumns - 1;
  using Piece = Raw<kPiece* static_cast<int>(sizeof(Code))>;
  const int shared = min(kSpan, scratch.counts[min(column, kLast)] - first);
  const int last = min(kSpan, scratch.counts[min(column + kMine - 1, kLast)] - first);
  int s = 0;
  for (; s + 4 <= shared; s += 4) {
    Piece raw[4];
#pragma unroll
    for (int i = 0; i < 4; i++) raw[i] = __ldg(reinterpret_cast<const Piece*>(values + (s + i) * kHeadDim));
#pragma unroll
    for (int c = 0; c < kMine; c++) {
      const float4 four = *reinterpret_cast<const float4*>(&scratch.weights[min(column + c, kLast)][s]);
      const float weight[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int k = 0; k < kPiece; k++) out[c][k] = fmaf(widened<Code>(raw[i], k), weight[i], out[c][k]);
    }
  }
  for (; s < last; s++) {
    const Piece raw = __ldg(reinterpret_cast<const Piece*>(values + s * kHeadDim));
#pragma unroll
    for (int c = 0; c < kMine; c++) {
      const int mine = min(column + c, kLast);
      if (s >= scratch.counts[mine] - first) continue;
      const float weight = scratch.weights[mine][s];
#pragma unroll
      for (int k = 0; k < kPiece; k++) out[c][k] = fmaf(widened<Code>(raw, k), weight, out[c][k]);
    }
  }
}

// Weights of every column at the positions of the span that starts at first.
template <int kHeadDim, class Code>
__device__ __forceinline__ void weigh_span(PromptScratch<kHeadDim>& scratch, const Code* __restrict__ keys,
                                           const float* __restrict__ key_scales, const float* __restrict__ value_scales,
                                           size_t head, int n_positions, int first, int n) {
  constexpr int kColumns = PromptShares<kHeadDim>::kColumns;
  float scores[kSweeps][kColumns] = {};
#pragma unroll
  for (int i = 0; i < kSweeps; i++) {
    const int s = i * kPromptThreads + threadIdx.x;
    if (s < n)
      score_columns<kHeadDim, Code>(keys + key_index<kHeadDim, Code>(head, n_positions, first + s, 0), scratch.queries,
                                    scores[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSweeps; i++) {
    const int s = i * kPromptThreads + threadIdx.x;
    if (s >= n) continue;
    const float scale = sizeof(Code) == 1 ? __ldg(key_scales + head * n_positions + first + s) : 1.0f;
#pragma unroll
    for (int c = 0; c < kColumns; c++) scratch.weights[c][s] = scores[i][c] * scale;
  }
  __syncthreads();
  for (int c = threadIdx.x / kHalfWarp; c < kColumns; c += kPromptThreads / kHalfWarp) {
    float maximum, sum;
    softmax_of_span(scratch.weights[c], min(n, scratch.counts[c] - first),
                    sizeof(Code) == 1 ? value_scales + head * n_positions + first : nullptr,
                    threadIdx.x % 32 < kHalfWarp ? 0xffffu : 0xffff0000u, maximum, sum);
    if (threadIdx.x % kHalfWarp) continue;
    if (first == 0) {
      scratch.maxima[c] = maximum, scratch.sums[c] = sum;
      scratch.keep[c] = 0.0f, scratch.add[c] = 1.0f;
    } else if (scratch.counts[c] > first) {
      const Merge merge = merge_softmax(scratch.maxima[c], scratch.sums[c], maximum, sum);
      scratch.keep[c] = merge.keep, scratch.add[c] = merge.add;
    }
  }
  __syncthreads();
}

}  // namespace

// q (n, n_kv_heads * queries_per_kv, head_dim) float32 after the rotation -> out, the same shape.
//
//   grid   (n_tiles, n_kv_heads * queries_per_kv / kQueries)
//   block  kPromptThreads threads
//   tiles  (n_tiles, 2) first token and number of tokens, of one row, at most kColumns / kQueries
//   scale  log2(e) / sqrt(head_dim)
template <int kHeadDim, int kQueries, class Code>
__global__ void __launch_bounds__(kPromptThreads, 3)
    attend_prompt(const float* __restrict__ q, const Code* __restrict__ keys, const Code* __restrict__ values,
                  const float* __restrict__ key_scales, const float* __restrict__ value_scales,
                  const int* __restrict__ rows, const int* __restrict__ positions, const int* __restrict__ tiles,
                  int n_kv_heads, int n_positions, float scale, float* __restrict__ out) {
  using Shares = PromptShares<kHeadDim>;
  constexpr int kColumns = Shares::kColumns, kPiece = Shares::kPiece, kMine = Shares::kMine;
  constexpr int kRun = piece_of(kHeadDim, 8);  // numbers of a query that are loaded side by side, as a whole sector
  __shared__ PromptScratch<kHeadDim> scratch;
  const int unit = blockIdx.y, n_units = gridDim.y;
  // Later tokens see more positions: the longest tiles come first.
  const int2 tile = reinterpret_cast<const int2*>(tiles)[gridDim.x - 1 - blockIdx.x];
  const int columns = tile.y * kQueries;
  const size_t head = static_cast<size_t>(rows[tile.x]) * n_kv_heads + unit / (n_units / n_kv_heads);
  // Column c is query c % kQueries of token c / kQueries. Columns beyond the tile's repeat its last one.
  const auto vector = [&](int c) {
    const int column = min(c, columns - 1);
    return (static_cast<size_t>(tile.x + column / kQueries) * n_units + unit) * kQueries + column % kQueries;
  };
  const int group = threadIdx.x / Shares::kLanes, column = group * kMine;
  const int d = threadIdx.x % Shares::kLanes * kPiece;
  const bool gathers = group < Shares::kGroups && column < columns;

  if (threadIdx.x < kColumns)
    scratch.counts[threadIdx.x] = positions[tile.x + min(static_cast<int>(threadIdx.x), columns - 1) / kQueries] + 1;
  const int last = positions[tile.x + tile.y - 1] + 1;
  Gathered<kHeadDim> running;
  for (int first = 0; first < last; first += kSpan) {
    for (int i = threadIdx.x; i < kColumns * kHeadDim; i += kPromptThreads) {
      const int place = i / (kRun * kColumns) * kRun + i % kRun, c = i / kRun % kColumns;
      scratch.queries[place][c] = q[vector(c) * kHeadDim + place] * scale;
    }
    __syncthreads();
    weigh_span<kHeadDim, Code>(scratch, keys, key_scales, value_scales, head, n_positions, first,
                               min(kSpan, last - first));
    if (gathers) {
      Gathered<kHeadDim> span = {};
      gather<kHeadDim, Code>(scratch, values + value_index<kHeadDim>(head, n_positions, first) + d, first, column,
                             span);
#pragma unroll
      for (int c = 0; c < kMine; c++) {
        const int mine = min(column + c, kColumns - 1);
        if (scratch.counts[mine] <= first) continue;
        const Merge merge = {scratch.keep[mine], scratch.add[mine]};
#pragma unroll
        for (int k = 0; k < kPiece; k++) running[c][k] = first ? merge(running[c][k], span[c][k]) : span[c][k];
      }
    }
    __syncthreads();
  }
  if (!gathers) return;
#pragma unroll
  for (int c = 0; c < kMine; c++) {
    if (column + c >= columns) continue;
    const float factor = 1.0f / scratch.sums[column + c];
#pragma unroll
    for (int k = 0; k < kPiece; k++) out[vector(column + c) * kHeadDim + d + k] = running[c][k] * factor;
  }
}
