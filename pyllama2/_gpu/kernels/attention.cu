// Needs: common.cu, cache.cu, softmax.cu, quantize.cu
// Attention of a few tokens, of any rows at any positions, to the cache, split over its length. For decoding.
//
//   out_h = sum over s <= position of softmax_s(q_h . k_s / sqrt(head_dim)) v_s
//
// Positions are cut at multiples of kSpan, counted from 0. One block computes one span for a unit: kQueries query heads
// that share a key head. For the scores a thread has one position. For the values, which come through shared memory, it
// has one place in head_dim. So a score is summed over head_dim in order, and an output over the positions in order, as
// on the CPU. The last block of a token and a unit to finish merges the spans, in order. The result depends on the
// sequence alone: neither on the batch, nor on the number of spans that the grid has room for.

namespace {

constexpr int kChunk = 64;  // positions whose values are in shared memory at a time

template <int kHeadDim, int kQueries, class Code>
struct AttendScratch {
  alignas(16) Code values[kChunk * kHeadDim];
  alignas(16) float queries[kQueries][kHeadDim];
  alignas(16) float weights[kQueries][kSpanStride];
  float maxima[kQueries];
  float sums[kQueries];
};

// How threads share the outputs: each of kGroups * kHeadDim threads has one place in head_dim of kMine queries.
template <int kHeadDim, int kQueries>
struct OutputShares {
  static_assert(kHeadDim <= kSpan, "one thread for each place in head_dim");
  static constexpr int kGroups = kSpan / kHeadDim;
  static constexpr int kMine = (kQueries + kGroups - 1) / kGroups;
};
template <int kHeadDim, int kQueries>
using Outputs = float[OutputShares<kHeadDim, kQueries>::kMine];

// A chunk of values on its way from the cache to shared memory.
template <int kHeadDim, class Code>
struct HeldChunk {
  static constexpr int kPiece = piece_of(kHeadDim, 16 / static_cast<int>(sizeof(Code)));
  static constexpr int kHeld = (kChunk * kHeadDim / kPiece + kSpan - 1) / kSpan;
  using Piece = Raw<kPiece* static_cast<int>(sizeof(Code))>;
  Piece held[kHeld];

  // Loads values of the next n positions, at most kChunk of them.
  __device__ __forceinline__ void load(const Code* __restrict__ values, int n) {
    const int pieces = min(n, kChunk) * (kHeadDim / kPiece);
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      const int piece = i * kSpan + threadIdx.x;
      if (piece < pieces) held[i] = __ldg(reinterpret_cast<const Piece*>(values) + piece);
    }
  }

  __device__ __forceinline__ void store(Code* target, int n) const {
    const int pieces = min(n, kChunk) * (kHeadDim / kPiece);
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      const int piece = i * kSpan + threadIdx.x;
      if (piece < pieces) reinterpret_cast<Piece*>(target)[piece] = held[i];
    }
  }
};

// Scores of one position.
template <int kHeadDim, int kQueries, class Code>
__device__ __forceinline__ void score_position(const Code* __restrict__ key, const float (&queries)[kQueries][kHeadDim],
                                               float (&scores)[kQueries]) {
  constexpr int kPiece = kKeyPiece<kHeadDim, Code>;
  using Piece = Raw<kPiece* static_cast<int>(sizeof(Code))>;
#pragma unroll(kQueries > 4 ? 4 : 8)
  for (int d = 0; d < kHeadDim; d += kPiece) {
    const Piece raw = __ldg(reinterpret_cast<const Piece*>(key + d * kKeyBlock));
#pragma unroll
    for (int i = 0; i < kPiece; i++) {
      const float number = widened<Code>(raw, i);
#pragma unroll
      for (int j = 0; j < kQueries; j++) scores[j] = fmaf(number, queries[j][d + i], scores[j]);
    }
  }
}

// out += weights * values, for the thread's place d and its queries group, group + kGroups, ...; n positions from first
// on.
template <int kHeadDim, int kQueries, class Code>
__device__ __forceinline__ void add_values(const AttendScratch<kHeadDim, kQueries, Code>& scratch, int first, int n,
                                           int group, int d, Outputs<kHeadDim, kQueries>& out) {
  using Shares = OutputShares<kHeadDim, kQueries>;
  int s = 0;
#pragma unroll 2
  for (; s + 4 <= n; s += 4) {
    float number[4];
#pragma unroll
    for (int i = 0; i < 4; i++) number[i] = widened(scratch.values[(s + i) * kHeadDim + d]);
#pragma unroll
    for (int k = 0; k < Shares::kMine; k++) {
      const int j = min(group + k * Shares::kGroups, kQueries - 1);
      const float4 weight = *reinterpret_cast<const float4*>(&scratch.weights[j][first + s]);
      out[k] = fmaf(number[0], weight.x, out[k]);
      out[k] = fmaf(number[1], weight.y, out[k]);
      out[k] = fmaf(number[2], weight.z, out[k]);
      out[k] = fmaf(number[3], weight.w, out[k]);
    }
  }
  for (; s < n; s++) {
    const float number = widened(scratch.values[s * kHeadDim + d]);
#pragma unroll
    for (int k = 0; k < Shares::kMine; k++) {
      const int j = min(group + k * Shares::kGroups, kQueries - 1);
      out[k] = fmaf(number, scratch.weights[j][first + s], out[k]);
    }
  }
}

// The block's attention to n positions of one span. Each thread's sums are in out.
template <int kHeadDim, int kQueries, class Code>
__device__ __forceinline__ void attend_span(const Code* __restrict__ key, const Code* __restrict__ values,
                                            const float* __restrict__ key_scales,
                                            const float* __restrict__ value_scales, int n,
                                            AttendScratch<kHeadDim, kQueries, Code>& scratch,
                                            Outputs<kHeadDim, kQueries>& out) {
  const int thread = threadIdx.x, group = thread / kHeadDim, query = thread / kHalfWarp;
  HeldChunk<kHeadDim, Code> chunk;
  chunk.load(values, n);
  if (thread < n) {
    float scores[kQueries] = {};
    score_position<kHeadDim, kQueries, Code>(key, scratch.queries, scores);
    const float scale = sizeof(Code) == 1 ? __ldg(key_scales + thread) : 1.0f;
#pragma unroll
    for (int j = 0; j < kQueries; j++) scratch.weights[j][thread] = scores[j] * scale;
  }
  __syncthreads();
  if (query < kQueries) {
    float maximum, sum;
    softmax_of_span(scratch.weights[query], n, sizeof(Code) == 1 ? value_scales : nullptr,
                    thread % 32 < kHalfWarp ? 0xffffu : 0xffff0000u, maximum, sum);
    if (thread % kHalfWarp == 0) scratch.maxima[query] = maximum, scratch.sums[query] = sum;
  }
  for (int first = 0; first < n; first += kChunk) {
    chunk.store(scratch.values, n - first);
    __syncthreads();
    if (first + kChunk < n) chunk.load(values + (first + kChunk) * kHeadDim, n - first - kChunk);
    if (group < OutputShares<kHeadDim, kQueries>::kGroups)
      add_values<kHeadDim, kQueries, Code>(scratch, first, min(kChunk, n - first), group, thread % kHeadDim, out);
    __syncthreads();
  }
}

// Merges the spans of a token and a unit. A span's part has kQueries vectors, their maxima, and their sums.
template <int kHeadDim, int kQueries>
__device__ __forceinline__ void merge_spans(const float* parts, int n_spans, int group, int d,
                                            Outputs<kHeadDim, kQueries>& out, float* sums) {
  using Shares = OutputShares<kHeadDim, kQueries>;
  constexpr int kPart = kQueries * (kHeadDim + 2);
#pragma unroll
  for (int k = 0; k < Shares::kMine; k++) {
    const int j = min(group + k * Shares::kGroups, kQueries - 1);
    const float *maxima = parts + kQueries * kHeadDim + j, *vector = parts + j * kHeadDim + d;
    float maximum = __ldcg(maxima), sum = __ldcg(maxima + kQueries), total = __ldcg(vector);
#pragma unroll 4
    for (int s = 1; s < n_spans; s++) {
      const size_t at = static_cast<size_t>(s) * kPart;
      const Merge merge = merge_softmax(maximum, sum, __ldcg(maxima + at), __ldcg(maxima + kQueries + at));
      total = merge(total, __ldcg(vector + at));
    }
    out[k] = total;
    sums[k] = sum;
  }
}

// Quantizes groups first .. first + n of a token's outputs; x has count numbers of them. kElsewhere: other blocks wrote
// some of x, so it is read from the L2 cache.
template <int kGroup, bool kElsewhere>
__device__ void quantize_outputs(const float* x, int count, int bits, const Quantized& to, int token, int first,
                                 int n) {
  for (int g = threadIdx.x / 32; g < n; g += kSpan / 32) {
    float numbers[kGroup / 32];
    for (int k = 0; k < kGroup / 32; k++) {
      const int i = g * kGroup + k * 32 + static_cast<int>(threadIdx.x) % 32;
      numbers[k] = i >= count ? 0.0f : kElsewhere ? __ldcg(x + i) : x[i];
    }
    quantize_group_for<kGroup>(bits, numbers, to, token, first + g);
  }
}

}  // namespace

// q (n, n_kv_heads * queries_per_kv, head_dim) float32 after the rotation -> out, of the same shape, and out quantized
// for a matrix of so many bits with groups of kGroup inputs.
//
//   grid      (at least the spans of the longest sequence, n_units, n);
//             n_units = n_kv_heads * queries_per_kv / kQueries
//   block     kSpan threads
//   scale     log2(e) / sqrt(head_dim)
//   parts     (n, n_units, gridDim.x, kQueries, head_dim + 2) float32 scratch; not used if there is one span
//   counters  n * n_units + n zeros, which are zeros again at the end
template <int kHeadDim, int kQueries, int kGroup, class Code>
__global__ void __launch_bounds__(kSpan, 2)
    attend(const float* __restrict__ q, const Code* __restrict__ keys, const Code* __restrict__ values,
           const float* __restrict__ key_scales, const float* __restrict__ value_scales, const int* __restrict__ rows,
           const int* __restrict__ positions, int n_kv_heads, int n_positions, float scale, float* parts,
           unsigned* counters, float* out, int bits, signed char* codes, float* scales, int* offsets) {
  using Shares = OutputShares<kHeadDim, kQueries>;
  constexpr int kShare = kQueries * kHeadDim;  // numbers of a block's output
  __shared__ AttendScratch<kHeadDim, kQueries, Code> scratch;
  const int span = blockIdx.x, unit = blockIdx.y, token = blockIdx.z, n_units = gridDim.y;
  const int group = threadIdx.x / kHeadDim, d = threadIdx.x % kHeadDim;
  const int position = positions[token], n_spans = position / kSpan + 1;
  if (span >= n_spans) return;
  const size_t place = static_cast<size_t>(token) * n_units + unit;
  const size_t head = static_cast<size_t>(rows[token]) * n_kv_heads + unit / (n_units / n_kv_heads);
  const int first = span * kSpan;

  float* flat = &scratch.queries[0][0];
  for (int i = threadIdx.x; i < kShare; i += kSpan) flat[i] = q[place * kShare + i] * scale;
  __syncthreads();
  Outputs<kHeadDim, kQueries> gathered = {};
  attend_span<kHeadDim, kQueries, Code>(
      keys + key_index<kHeadDim, Code>(head, n_positions, first + threadIdx.x, 0),
      values + value_index<kHeadDim>(head, n_positions, first), key_scales + head * n_positions + first,
      value_scales + head * n_positions + first, min(kSpan, position + 1 - first), scratch, gathered);
  float sums[Shares::kMine];
#pragma unroll
  for (int k = 0; k < Shares::kMine; k++) sums[k] = scratch.sums[min(group + k * Shares::kGroups, kQueries - 1)];

  if (n_spans > 1) {
    float* part = parts + (place * gridDim.x + span) * (kShare + 2 * kQueries);
#pragma unroll
    for (int k = 0; k < Shares::kMine; k++) {
      const int j = group + k * Shares::kGroups;
      if (group < Shares::kGroups && j < kQueries) part[j * kHeadDim + d] = gathered[k];
    }
    if (threadIdx.x < kQueries) {
      part[kShare + threadIdx.x] = scratch.maxima[threadIdx.x];
      part[kShare + kQueries + threadIdx.x] = scratch.sums[threadIdx.x];
    }
    if (!is_last_block(counters + place, n_spans)) return;
    part = parts + place * gridDim.x * (kShare + 2 * kQueries);
    if (group < Shares::kGroups) merge_spans<kHeadDim, kQueries>(part, n_spans, group, d, gathered, sums);
  }

#pragma unroll
  for (int k = 0; k < Shares::kMine; k++) {
    const int j = group + k * Shares::kGroups;
    if (group < Shares::kGroups && j < kQueries) {
      const float x = gathered[k] * (1.0f / sums[k]);
      out[place * kShare + j * kHeadDim + d] = x;
      flat[j * kHeadDim + d] = x;
    }
  }
  const int count = n_units * kShare;
  const Quantized to = {codes, scales, offsets, (count + kGroup - 1) / kGroup};
  if constexpr (kShare % kGroup == 0) {
    __syncthreads();
    quantize_outputs<kGroup, false>(flat, kShare, bits, to, token, unit * (kShare / kGroup), kShare / kGroup);
  } else if (is_last_block(counters + gridDim.z * n_units + token, n_units)) {
    quantize_outputs<kGroup, true>(out + static_cast<size_t>(token) * count, count, bits, to, token, 0, to.groups);
  }
}
