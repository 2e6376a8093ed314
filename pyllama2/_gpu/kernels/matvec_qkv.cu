// Needs: product_mma.cu, qkv_steps.cu, prefetch.cu
// wq wk wv -> biases -> rope -> kv append, in one launch for 1 to 8 tokens.
//
// The matrix has the tiles of wq, those of wk, and those of wv; each of the three starts a new tile. float16 keys and
// values go straight to the cache. int8 ones have a scale for a whole head, which may be in several tiles: the last
// block to finish a head reads its numbers from scratch memory and stores them.

namespace {

// Prefetches the block's share of the keys before each token, of most bytes for a head.
template <int kColumns, int kHeadDim, class Code>
__device__ __forceinline__ void prefetch_keys(const Code* keys, int kv_dim, int n_positions, const int* rows,
                                              const int* positions, unsigned most) {
  constexpr unsigned kKey = sizeof(Code) * kHeadDim;
  const int n_kv_heads = kv_dim / kHeadDim;
#pragma unroll 1
  for (int c = 0; c < kColumns; c++) {
    const size_t head = static_cast<size_t>(rows[c]) * n_kv_heads;
    const unsigned blocks = (positions[c] + kKeyBlock - 1) / kKeyBlock;
    const char* first = reinterpret_cast<const char*>(keys + key_index<kHeadDim, Code>(head, n_positions, 0, 0));
    prefetch_share({first, static_cast<size_t>(n_positions) * kKey, blocks * kKeyBlock * kKey, n_kv_heads, most},
                   blockIdx.x, gridDim.x);
  }
}

}  // namespace

// q (columns, q_dim) = rotated queries; keys and values go to the cache.
//
//   rope_table       (positions, head_dim / 2, 2) cosines and sines
//   rows, positions  (columns,) of the tokens
//   kv, counters     (2, columns, kv_dim) scratch and (2, n_kv_heads) zeros, for int8 only
//   bias             (q_dim + 2 kv_dim) of queries, keys and values, or null
//   keys_ahead       bytes of the earlier keys of a head that attention finds in the L2 cache; see prefetch.cu
//   unnormed         (dim,) of which the vector is the norm with norm_weight. If kNormed, and x is not used then.
template <int kBits, int kGroup, int kColumns, int kHeadDim, class Code, bool kNormed = false>
__global__ void __launch_bounds__(kThreads, Plan<kBits, kGroup, kColumns, 1>::kBlocks)
    matvec_qkv(const uint4* __restrict__ codes, const __half* __restrict__ scales, int q_dim, int kv_dim, int groups,
               const signed char* __restrict__ x_codes, const float* __restrict__ x_scales,
               const int* __restrict__ x_offsets, const float* __restrict__ unnormed,
               const float* __restrict__ norm_weight, float eps, int dim, const float2* __restrict__ rope_table,
               const int* __restrict__ rows, const int* __restrict__ positions, float* __restrict__ q, float* kv,
               unsigned* counters, int n_positions, Code* keys, Code* values, float* key_scales, float* value_scales,
               const float* __restrict__ bias, unsigned keys_ahead) {
  const Quantized x = {const_cast<signed char*>(x_codes), const_cast<float*>(x_scales), const_cast<int*>(x_offsets),
                       groups};
  const NormInput normed = {unnormed, norm_weight, eps, dim};
  float total[1];
  product<kBits, kGroup, kColumns, 1, kNormed>(codes, scales, x, normed, static_cast<int>(blockIdx.x), total);

  if (keys_ahead > 0) prefetch_keys<kColumns, kHeadDim>(keys, kv_dim, n_positions, rows, positions, keys_ahead);
  const LayerCache<Code> cache = {keys, values, key_scales, value_scales, kv_dim / kHeadDim, n_positions};
  const QkvOutput<Code> to = {rope_table, rows, positions, q, kv, counters, cache, bias};
  finish_qkv_tile<kHeadDim, kColumns>(total[0], q_dim, kv_dim, to);
}
