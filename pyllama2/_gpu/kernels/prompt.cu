// Needs: norm.cu, silu.cu
// The step after the products of w1 and w3, for any number of tokens.

// gate_up (gridDim.x, 2, hidden_dim) -> silu(gate) * up, quantized for a matrix of so many bits: one block per token.
template <int kGroup>
__global__ void __launch_bounds__(kThreads, 2)
    swiglu_quantize(const float* __restrict__ gate_up, int hidden_dim, int bits, signed char* codes, float* scales,
                    int* offsets) {
  const Quantized to = {codes, scales, offsets, (hidden_dim + kGroup - 1) / kGroup};
  const float* gate = gate_up + static_cast<size_t>(blockIdx.x) * 2 * hidden_dim;
  const float* up = gate + hidden_dim;
  for (int g = threadIdx.x / 32; g < to.groups; g += kThreads / 32) {
    float y[kGroup / 32];
    for (int k = 0; k < kGroup / 32; k++) {
      const int i = g * kGroup + k * 32 + static_cast<int>(threadIdx.x % 32);
      y[k] = i < hidden_dim ? silu_product(gate[i], up[i]) : 0.0f;
    }
    quantize_group_for<kGroup>(bits, y, to, static_cast<int>(blockIdx.x), g);
  }
}
