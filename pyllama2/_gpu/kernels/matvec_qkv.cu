// Needs: product_mma.cu, rope.cu, cache.cu
// wq wk wv -> biases -> rope -> kv append, in one launch for 1 to 8 tokens.
//
// The matrix has the tiles of wq, those of wk, and those of wv; each of the three starts a new tile. float16 keys and
// values go straight to the cache. int8 ones have a scale for a whole head, which may be in several tiles: the last
// block to finish a head reads its numbers from scratch memory and stores them.

namespace {

// Where a layer's keys and values lie; see cache.cu.
template <class Code>
struct LayerCache {
  Code *keys, *values;
  float *key_scales, *value_scales;
  int n_kv_heads, n_positions;
};

// Stores, from kv (columns, kv_dim), the heads of which this block has the last missing numbers.
template <int kHeadDim, int kColumns, class Code>
__device__ __forceinline__ void store_finished_heads(const LayerCache<Code>& cache, const float* kv, int kv_dim,
                                                     bool is_value, int tile, const int* rows, const int* positions,
                                                     unsigned* counters) {
  const int column = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int last = (min((tile + 1) * kTileRows, kv_dim) - 1) / kHeadDim;
  for (int head = tile * kTileRows / kHeadDim; head <= last; head++) {
    const int first_tile = head * kHeadDim / kTileRows, last_tile = ((head + 1) * kHeadDim - 1) / kTileRows;
    const bool finished = is_last_block(counters + head, static_cast<unsigned>(last_tile - first_tile + 1));
    if (!finished || column >= kColumns) continue;
    float numbers[kPerLane<kHeadDim>];
    for (int i = 0; i < kPerLane<kHeadDim>; i++)
      numbers[i] = i * 32 + lane < kHeadDim
                       ? __ldcg(kv + static_cast<size_t>(column) * kv_dim + head * kHeadDim + i * 32 + lane)
                       : 0.0f;
    const int place = rows[column] * cache.n_kv_heads + head;
    if (is_value)
      store_value<kHeadDim>(cache.values, cache.value_scales, place, cache.n_positions, positions[column], numbers);
    else
      store_key<kHeadDim>(cache.keys, cache.key_scales, place, cache.n_positions, positions[column], numbers);
  }
}

// Stores this lane's number of a key or value, which is number i of all heads, in a float16 cache.
template <int kHeadDim>
__device__ __forceinline__ void store_number(const LayerCache<__half>& cache, bool is_value, int row, int position,
                                             int i, float number, bool there) {
  const float other = __shfl_xor_sync(kAllLanes, number, 1);
  if (!there || i % 2) return;
  const int place = row * cache.n_kv_heads + i / kHeadDim, pair = i % kHeadDim / 2;
  if (is_value)
    store_value_pair<kHeadDim>(cache.values, place, cache.n_positions, position, pair, number, other);
  else
    store_key_pair<kHeadDim>(cache.keys, place, cache.n_positions, position, pair, number, other);
}

}  // namespace

// q (columns, q_dim) = rotated queries; keys and values go to the cache.
//
//   rope_table       (positions, head_dim / 2, 2) cosines and sines
//   rows, positions  (columns,) of the tokens
//   kv, counters     (2, columns, kv_dim) scratch and (2, n_kv_heads) zeros, for int8 only
//   bias             (q_dim + 2 kv_dim) of queries, keys and values, or null
//   unnormed         (dim,) of which the vector is the norm with norm_weight. If kNormed, and x is not used then.
template <int kBits, int kGroup, int kColumns, int kHeadDim, class Code, bool kNormed = false>
__global__ void __launch_bounds__(kThreads, Plan<kBits, kGroup, kColumns, 1>::kBlocks)
    matvec_qkv(const uint4* __restrict__ codes, const __half* __restrict__ scales, int q_dim, int kv_dim, int groups,
               const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
               const int* __restrict__ x_offsets, const float* __restrict__ unnormed,
               const float* __restrict__ norm_weight, float eps, int dim, const float2* __restrict__ rope_table,
               const int* __restrict__ rows, const int* __restrict__ positions, float* __restrict__ q, float* kv,
               unsigned* counters, int n_positions, Code* keys, Code* values, float* key_scales, float* value_scales,
               const float* __restrict__ bias) {
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const NormInput normed = {unnormed, norm_weight, eps, dim};
  float total[1];
  product<kBits, kGroup, kColumns, 1, kNormed>(codes, scales, x, normed, static_cast<int>(blockIdx.x), total);

  const int column = threadIdx.x / 32;
  const int q_tiles = (q_dim + kTileRows - 1) / kTileRows, kv_tiles = (kv_dim + kTileRows - 1) / kTileRows;
  const int tile = static_cast<int>(blockIdx.x);
  const bool is_query = tile < q_tiles, is_value = tile >= q_tiles + kv_tiles;
  const int own_tile = tile - (is_query ? 0 : is_value ? q_tiles + kv_tiles : q_tiles);
  const int i = own_tile * kTileRows + static_cast<int>(threadIdx.x % 32), width = is_query ? q_dim : kv_dim;
  const LayerCache<Code> cache = {keys, values, key_scales, value_scales, kv_dim / kHeadDim, n_positions};
  float* scratch = is_value ? kv + static_cast<size_t>(kColumns) * kv_dim : kv;
  if (column < kColumns) {
    float number = total[0];
    if (bias != nullptr && i < width) number += bias[(is_query ? 0 : is_value ? q_dim + kv_dim : q_dim) + i];
    if (!is_value) {
      const size_t angle = static_cast<size_t>(positions[column]) * (kHeadDim / 2) + i % kHeadDim / 2;
      number = rotated(number, i, rope_table[angle]);
    }
    if (is_query) {
      if (i < width) q[static_cast<size_t>(column) * q_dim + i] = number;
    } else if constexpr (sizeof(Code) == 2) {
      store_number<kHeadDim>(cache, is_value, rows[column], positions[column], i, number, i < width);
    } else if (i < width) {
      scratch[static_cast<size_t>(column) * kv_dim + i] = number;
    }
  }
  if constexpr (sizeof(Code) == 1)
    if (!is_query)
      store_finished_heads<kHeadDim, kColumns>(cache, scratch, kv_dim, is_value, own_tile, rows, positions,
                                               counters + (is_value ? cache.n_kv_heads : 0));
}
