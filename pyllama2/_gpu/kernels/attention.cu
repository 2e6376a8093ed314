// Needs: common.cu, cache.cu, softmax.cu, quantize.cu, prefetch.cu
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
constexpr int kSpanWarps = kSpan / 32;

template <int kHeadDim, int kQueries, class Code>
struct AttendScratch {
  alignas(16) Code values[kChunk * kHeadDim];
  alignas(16) float queries[kQueries][kHeadDim];
  alignas(16) float weights[kQueries][kSpanStride];  // of int8 values times their scales
  alignas(16) float plain[sizeof(Code) == 1 ? kQueries : 1][sizeof(Code) == 1 ? kSpanStride : 1];
  float of_warps[kQueries][kSpanWarps];
  float maxima[kQueries];
  float sums[kQueries];

  // Weights without scales.
  __device__ __forceinline__ float* plain_weights(int query) {
    if constexpr (sizeof(Code) == 1)
      return plain[query];
    else
      return weights[query];
  }
  // Up to 32 merges of spans, where the weights have been.
  __device__ __forceinline__ SpanMerge* merges(int query) { return reinterpret_cast<SpanMerge*>(weights[query]); }
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

// The key of a thread's position, of which the first pieces are loaded before the queries are there.
template <int kHeadDim, int kQueries, class Code>
struct HeldKey {
  static constexpr int kPiece = kKeyPiece<kHeadDim, Code>, kPieces = kHeadDim / kPiece;
  static constexpr int kMost = kQueries > 4 ? 4 : kQueries > 2 ? 8 : 16;  // or registers would be spilled
  static constexpr int kHeld = kPieces < kMost ? kPieces : kMost;
  using Piece = Raw<kPiece* static_cast<int>(sizeof(Code))>;
  const Code* key;
  Piece held[kHeld];

  __device__ __forceinline__ void load(const Code* __restrict__ from) {
    key = from;
#pragma unroll
    for (int i = 0; i < kHeld; i++) held[i] = piece(i);
  }

  // Adds the products with the queries to scores.
  __device__ __forceinline__ void score(const float (&queries)[kQueries][kHeadDim], float (&scores)[kQueries]) const {
#pragma unroll
    for (int i = 0; i < kHeld; i++) add(held[i], i * kPiece, queries, scores);
#pragma unroll(kQueries > 4 ? 4 : 8)
    for (int i = kHeld; i < kPieces; i++) add(piece(i), i * kPiece, queries, scores);
  }

 private:
  __device__ __forceinline__ Piece piece(int i) const {
    return __ldg(reinterpret_cast<const Piece*>(key + i * kPiece * kKeyBlock));
  }

  __device__ __forceinline__ static void add(const Piece& raw, int d, const float (&queries)[kQueries][kHeadDim],
                                             float (&scores)[kQueries]) {
#pragma unroll
    for (int i = 0; i < kPiece; i++) {
      const float number = widened<Code>(raw, i);
#pragma unroll
      for (int j = 0; j < kQueries; j++) scores[j] = fmaf(number, queries[j][d + i], scores[j]);
    }
  }
};

// Maxima of each query's scores, of which a thread has one; those of threads without a position are the lowest number.
// All threads of a block must call it.
template <int kQueries>
__device__ __forceinline__ void maxima_of_block(const float (&scores)[kQueries],
                                                float (&of_warps)[kQueries][kSpanWarps], float (&maxima)[kQueries]) {
#pragma unroll
  for (int j = 0; j < kQueries; j++) maxima[j] = fmaxf(lowest(), scores[j]);  // not NaN
  for (int offset = 16; offset > 0; offset /= 2)
#pragma unroll
    for (int j = 0; j < kQueries; j++) maxima[j] = fmaxf(maxima[j], __shfl_xor_sync(kAllLanes, maxima[j], offset));
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int j = 0; j < kQueries; j++) of_warps[j][threadIdx.x / 32] = maxima[j];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kQueries; j++)
#pragma unroll
    for (int w = 0; w < kSpanWarps; w++) maxima[j] = fmaxf(maxima[j], of_warps[j][w]);
}

// out += weights * values, for the thread's place d and its queries group, group + kGroups, ...; n positions from first
// on.
template <int kHeadDim, int kQueries, class Code>
__device__ __forceinline__ void add_values(const AttendScratch<kHeadDim, kQueries, Code>& scratch, int first, int n,
                                           int group, int d, Outputs<kHeadDim, kQueries>& out) {
  using Shares = OutputShares<kHeadDim, kQueries>;
  constexpr int kAtOnce = Shares::kMine == 1 ? 8 : 4;  // the next ones are loaded while these are added
  const auto add = [&](const float (&number)[kAtOnce], const float4(&weight)[Shares::kMine][kAtOnce / 4]) {
#pragma unroll
    for (int k = 0; k < Shares::kMine; k++)
#pragma unroll
      for (int i = 0; i < kAtOnce; i += 4) {
        out[k] = fmaf(number[i], weight[k][i / 4].x, out[k]);
        out[k] = fmaf(number[i + 1], weight[k][i / 4].y, out[k]);
        out[k] = fmaf(number[i + 2], weight[k][i / 4].z, out[k]);
        out[k] = fmaf(number[i + 3], weight[k][i / 4].w, out[k]);
      }
  };
  const auto load = [&](int s, float (&number)[kAtOnce], float4(&weight)[Shares::kMine][kAtOnce / 4]) {
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) number[i] = widened(scratch.values[(s + i) * kHeadDim + d]);
#pragma unroll
    for (int k = 0; k < Shares::kMine; k++) {
      const int j = min(group + k * Shares::kGroups, kQueries - 1);
#pragma unroll
      for (int i = 0; i < kAtOnce; i += 4)
        weight[k][i / 4] = *reinterpret_cast<const float4*>(&scratch.weights[j][first + s + i]);
    }
  };
  float number[2][kAtOnce];
  float4 weight[2][Shares::kMine][kAtOnce / 4];
  int s = 0;
  if (kAtOnce <= n) load(0, number[0], weight[0]);
#pragma unroll 1
  for (; s + 2 * kAtOnce <= n; s += 2 * kAtOnce) {
    load(s + kAtOnce, number[1], weight[1]);
    add(number[0], weight[0]);
    if (s + 3 * kAtOnce <= n) load(s + 2 * kAtOnce, number[0], weight[0]);
    add(number[1], weight[1]);
  }
  if (s + kAtOnce <= n) {
    add(number[0], weight[0]);
    s += kAtOnce;
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

// What a thread has of a span before the queries are there: all that can be loaded without them.
template <int kHeadDim, int kQueries, class Code>
struct HeldSpan {
  HeldKey<kHeadDim, kQueries, Code> key;
  HeldChunk<kHeadDim, Code> chunk;
  float key_scale, value_scale;

  __device__ __forceinline__ void load(const Code* __restrict__ keys, const Code* __restrict__ values,
                                       const float* __restrict__ key_scales, const float* __restrict__ value_scales,
                                       int n) {
    if (static_cast<int>(threadIdx.x) < n) {
      key.load(keys);
      if (sizeof(Code) == 1) key_scale = __ldg(key_scales), value_scale = __ldg(value_scales);
    }
    chunk.load(values, n);
  }
};

// The block's attention to n positions of one span. Each thread's sums are in out.
template <int kHeadDim, int kQueries, class Code>
__device__ __forceinline__ void attend_span(HeldSpan<kHeadDim, kQueries, Code>& held, const Code* __restrict__ values,
                                            int n, AttendScratch<kHeadDim, kQueries, Code>& scratch,
                                            Outputs<kHeadDim, kQueries>& out) {
  const int thread = threadIdx.x, group = thread / kHeadDim;
  float scores[kQueries] = {}, maxima[kQueries];
  if (thread < n) held.key.score(scratch.queries, scores);
#pragma unroll
  for (int j = 0; j < kQueries; j++)
    scores[j] = thread >= n ? lowest() : sizeof(Code) == 1 ? scores[j] * held.key_scale : scores[j];
  maxima_of_block(scores, scratch.of_warps, maxima);
  if (thread < n)
#pragma unroll
    for (int j = 0; j < kQueries; j++) {
      const float weight = exp2_polynomial(scores[j] - maxima[j]);
      scratch.plain_weights(j)[thread] = weight;
      if (sizeof(Code) == 1) scratch.weights[j][thread] = weight * held.value_scale;
    }
  if (thread == 0)
#pragma unroll
    for (int j = 0; j < kQueries; j++) scratch.maxima[j] = maxima[j];
  for (int first = 0; first < n; first += kChunk) {
    held.chunk.store(scratch.values, n - first);
    __syncthreads();
    if (first + kChunk < n) held.chunk.load(values + (first + kChunk) * kHeadDim, n - first - kChunk);
    // The last warps have the fewest outputs.
    if (const int query = (kSpan - 1 - thread) / kHalfWarp; first == 0 && query < kQueries) {
      const float sum = sum_of_span(scratch.plain_weights(query), n, thread % 32 < kHalfWarp ? 0xffffu : 0xffff0000u);
      if (thread % kHalfWarp == 0) scratch.sums[query] = sum;
    }
    if (group < OutputShares<kHeadDim, kQueries>::kGroups && group < kQueries)
      add_values<kHeadDim, kQueries, Code>(scratch, first, min(kChunk, n - first), group, thread % kHeadDim, out);
    __syncthreads();
  }
}

// Merges the spans of a token and a unit, by a whole block. A span's part has kQueries vectors, their maxima, and their
// sums. Warp j finds the factors of query j, 32 spans at a time. Then only a product and a sum wait for the span before.
template <int kHeadDim, int kQueries, class Code>
__device__ __forceinline__ void merge_spans(const float* parts, int n_spans, int group, int d,
                                            AttendScratch<kHeadDim, kQueries, Code>& scratch,
                                            Outputs<kHeadDim, kQueries>& out, float* sums) {
  using Shares = OutputShares<kHeadDim, kQueries>;
  constexpr int kPart = kQueries * (kHeadDim + 2);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* maxima = parts + kQueries * kHeadDim;
  float maximum = warp < kQueries ? __ldcg(maxima + warp) : 0.0f;
#pragma unroll
  for (int k = 0; k < Shares::kMine; k++) {
    const int j = min(group + k * Shares::kGroups, kQueries - 1);
    out[k] = group < Shares::kGroups ? __ldcg(parts + j * kHeadDim + d) : 0.0f;
    sums[k] = __ldcg(maxima + kQueries + j);
  }
  for (int first = 1; first < n_spans; first += 32) {
    const int n = min(32, n_spans - first);
    const float* part = parts + static_cast<size_t>(first) * kPart;
    if (warp < kQueries) {
      const float* of_span = part + lane * kPart + kQueries * kHeadDim + warp;
      const float own = lane < n ? __ldcg(of_span) : lowest(), sum = lane < n ? __ldcg(of_span + kQueries) : 0.0f;
      scratch.merges(warp)[lane] = merges_of_warp(maximum, own, sum);
    }
    __syncthreads();
    if (group < Shares::kGroups && group < kQueries) {
#pragma unroll(8 / Shares::kMine)
      for (int s = 0; s < n; s++)
#pragma unroll
        for (int k = 0; k < Shares::kMine; k++) {
          const int j = min(group + k * Shares::kGroups, kQueries - 1);
          const SpanMerge merge = scratch.merges(j)[s];
          out[k] = merge.outputs(out[k], __ldcg(part + s * kPart + j * kHeadDim + d));
          sums[k] = merge.of_sums(sums[k]);
        }
    }
    __syncthreads();
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
//   ahead     of the matrix that the next kernel reads; see prefetch.cu
template <int kHeadDim, int kQueries, int kGroup, class Code>
__global__ void __launch_bounds__(kSpan, 2)
    attend(const float* __restrict__ q, const Code* __restrict__ keys, const Code* __restrict__ values,
           const float* __restrict__ key_scales, const float* __restrict__ value_scales, const int* __restrict__ rows,
           const int* __restrict__ positions, int n_kv_heads, int n_positions, float scale, float* parts,
           unsigned* counters, float* out, int bits, signed char* codes, float* scales, int* offsets, const void* ahead,
           unsigned ahead_tile_bytes, int ahead_tiles) {
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

  const int n = min(kSpan, position + 1 - first);
  values += value_index<kHeadDim>(head, n_positions, first);
  const size_t at = head * n_positions + first;
  HeldSpan<kHeadDim, kQueries, Code> held;
  held.load(keys + key_index<kHeadDim, Code>(head, n_positions, first + threadIdx.x, 0), values,
            key_scales + at + threadIdx.x, value_scales + at + threadIdx.x, n);
  float* flat = &scratch.queries[0][0];
  for (int i = threadIdx.x; i < kShare; i += kSpan) flat[i] = q[place * kShare + i] * scale;
  __syncthreads();
  Outputs<kHeadDim, kQueries> gathered = {};
  attend_span<kHeadDim, kQueries, Code>(held, values, n, scratch, gathered);
  if (token == 0)
    prefetch_share(next_tiles(ahead, ahead_tile_bytes, ahead_tiles), unit * n_spans + span, n_units * n_spans);
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
    merge_spans<kHeadDim, kQueries, Code>(part, n_spans, group, d, scratch, gathered, sums);
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
