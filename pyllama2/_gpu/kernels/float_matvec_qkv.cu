// Needs: float_product.cu, qkv_steps.cu
// wq wk wv -> biases -> rope -> kv append for a float16 or float32 matrix, as in matvec_qkv.cu.

// x (columns, 16, stretches * 8) is normed. The other arguments are those of matvec_qkv.
template <int kBits, int kColumns, int kHeadDim, class Code>
__global__ void __launch_bounds__(kFloatThreads, FloatPlan<kBits, kColumns, 1>::kBlocks)
    float_matvec_qkv(const uint4* __restrict__ codes, int q_dim, int kv_dim, int stretches,
                     const signed char* __restrict__ x, const float2* __restrict__ rope_table,
                     const int* __restrict__ rows, const int* __restrict__ positions, float* __restrict__ q, float* kv,
                     unsigned* counters, int n_positions, Code* keys, Code* values, float* key_scales,
                     float* value_scales, const float* __restrict__ bias) {
  float total[1];
  multiply_floats<kBits, kColumns>(codes, reinterpret_cast<const float*>(x), stretches, static_cast<int>(blockIdx.x),
                                   total);
  const LayerCache<Code> cache = {keys, values, key_scales, value_scales, kv_dim / kHeadDim, n_positions};
  const QkvOutput<Code> to = {rope_table, rows, positions, q, kv, counters, cache, bias};
  finish_qkv_tile<kHeadDim, kColumns>(total[0], q_dim, kv_dim, to);
}
