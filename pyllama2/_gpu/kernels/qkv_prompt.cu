// Needs: rope.cu, cache.cu
// What follows the products of wq, wk and wv: biases -> rope -> kv append, for any number of tokens.

// q (n, n_heads, head_dim) += its bias, then it is rotated in place. kv (2, n, n_kv_heads, head_dim): biases are added,
// keys are rotated, and both go to the cache.
//
//   bias             (n_heads + 2 n_kv_heads, head_dim) of queries, keys and values, or null
//   rope_table       (positions, head_dim / 2, 2) cosines and sines
//   rows, positions  (n,) of the tokens
//
// Each warp has a head of queries, keys or values. Grid (n, blocks that have so many warps together).
template <int kHeadDim, class Code>
__global__ void finish_qkv(float* __restrict__ q, const float* __restrict__ kv, int n_heads, int n_kv_heads,
                           const float* __restrict__ bias, const float2* __restrict__ rope_table,
                           const int* __restrict__ rows, const int* __restrict__ positions, int n_positions, Code* keys,
                           Code* values, float* key_scales, float* value_scales) {
  const int head = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) / 32;
  if (head >= n_heads + 2 * n_kv_heads) return;
  const int lane = threadIdx.x % 32, token = blockIdx.x, n = gridDim.x, position = positions[token];
  const bool is_query = head < n_heads, is_value = head >= n_heads + n_kv_heads;
  const int own_head = head - (is_query ? 0 : is_value ? n_heads + n_kv_heads : n_heads);
  float* query = q + (static_cast<size_t>(token) * n_heads + own_head) * kHeadDim;
  const size_t at = ((is_value ? n : 0) + static_cast<size_t>(token)) * n_kv_heads + own_head;
  const float* from = is_query ? query : kv + at * kHeadDim;
  const float2* angles = rope_table + static_cast<size_t>(position) * (kHeadDim / 2);
  float x[kPerLane<kHeadDim>];
  for (int i = 0; i < kPerLane<kHeadDim>; i++) {
    const int d = i * 32 + lane;
    const bool there = d < kHeadDim;
    x[i] = there ? from[d] : 0.0f;
    if (bias != nullptr && there) x[i] += bias[head * kHeadDim + d];
    if (!is_value) x[i] = rotated(x[i], d, there ? angles[d / 2] : float2{});
    if (is_query && there) query[d] = x[i];
  }
  if (is_query) return;
  const int place = rows[token] * n_kv_heads + own_head;
  if (is_value)
    store_value<kHeadDim>(values, value_scales, place, n_positions, position, x);
  else
    store_key<kHeadDim>(keys, key_scales, place, n_positions, position, x);
}
