// Needs: rope.cu, cache.cu
// What follows the products of wq, wk and wv: biases -> rope -> kv append, for 1 to 8 tokens.

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

// Where the numbers of wq, wk and wv of some tokens go: see matvec_qkv.cu.
template <class Code>
struct QkvOutput {
  const float2* rope_table;
  const int *rows, *positions;
  float *q, *kv;
  unsigned* counters;
  LayerCache<Code> cache;
  const float* bias;
};

// The steps after the products. total is row `lane` of the block's tile, times the vector of this warp's token.
template <int kHeadDim, int kColumns, class Code>
__device__ __forceinline__ void finish_qkv_tile(float total, int q_dim, int kv_dim, const QkvOutput<Code>& to) {
  const int column = threadIdx.x / 32;
  const int q_tiles = (q_dim + kTileRows - 1) / kTileRows, kv_tiles = (kv_dim + kTileRows - 1) / kTileRows;
  const int tile = static_cast<int>(blockIdx.x);
  const bool is_query = tile < q_tiles, is_value = tile >= q_tiles + kv_tiles;
  const int own_tile = tile - (is_query ? 0 : is_value ? q_tiles + kv_tiles : q_tiles);
  const int i = own_tile * kTileRows + static_cast<int>(threadIdx.x % 32), width = is_query ? q_dim : kv_dim;
  float* scratch = is_value ? to.kv + static_cast<size_t>(kColumns) * kv_dim : to.kv;
  if (column < kColumns) {
    float number = total;
    if (to.bias != nullptr && i < width) number += to.bias[(is_query ? 0 : is_value ? q_dim + kv_dim : q_dim) + i];
    if (!is_value) {
      const size_t angle = static_cast<size_t>(to.positions[column]) * (kHeadDim / 2) + i % kHeadDim / 2;
      number = rotated(number, i, to.rope_table[angle]);
    }
    if (is_query) {
      if (i < width) to.q[static_cast<size_t>(column) * q_dim + i] = number;
    } else if constexpr (sizeof(Code) == 2) {
      store_number<kHeadDim>(to.cache, is_value, to.rows[column], to.positions[column], i, number, i < width);
    } else if (i < width) {
      scratch[static_cast<size_t>(column) * kv_dim + i] = number;
    }
  }
  if constexpr (sizeof(Code) == 1)
    if (!is_query)
      store_finished_heads<kHeadDim, kColumns>(to.cache, scratch, kv_dim, is_value, own_tile, to.rows, to.positions,
                                               to.counters + (is_value ? to.cache.n_kv_heads : 0));
}

}  // namespace
