// Needs: cache.cu
// Copies the beginning of a row: for sequences that start alike, and for a cache that grows.

// Copies the first length positions of row `from`, of every layer and head, to row `to`, which may be of another cache.
// Grid (blocks of 32 positions, n_kv_heads, n_layers), any number of threads.
template <int kHeadDim, class Code>
__global__ void copy_prefix(int from, int to, int length, const Code* from_keys, const Code* from_values,
                            const float* from_key_scales, const float* from_value_scales, int n_from_rows,
                            int n_from_positions, Code* keys, Code* values, float* key_scales, float* value_scales,
                            int n_rows, int n_positions) {
  constexpr int kPiece = kKeyPiece<kHeadDim, Code>;
  using Piece = Raw<kPiece* static_cast<int>(sizeof(Code))>;
  const int n_kv_heads = gridDim.y, first = blockIdx.x * kKeyBlock, n = min(kKeyBlock, length - first);
  const size_t row = (static_cast<size_t>(blockIdx.z) * n_from_rows + from) * n_kv_heads + blockIdx.y;
  const size_t other = (static_cast<size_t>(blockIdx.z) * n_rows + to) * n_kv_heads + blockIdx.y;
  const size_t at = key_index<kHeadDim, Code>(row, n_from_positions, first, 0);
  const size_t target = key_index<kHeadDim, Code>(other, n_positions, first, 0);
  const Piece *key = reinterpret_cast<const Piece*>(from_keys + at),
              *value = reinterpret_cast<const Piece*>(from_values + at);
  Piece *new_key = reinterpret_cast<Piece*>(keys + target), *new_value = reinterpret_cast<Piece*>(values + target);
  for (int i = threadIdx.x; i < kKeyBlock * kHeadDim / kPiece; i += blockDim.x) {
    if (i % kKeyBlock < n) new_key[i] = key[i];  // pieces of keys: 32 positions are side by side
    if (i < n * (kHeadDim / kPiece)) new_value[i] = value[i];  // pieces of values: those of one position are
  }
  if constexpr (sizeof(Code) == 1)
    for (int s = threadIdx.x; s < n; s += blockDim.x) {
      key_scales[other * n_positions + first + s] = from_key_scales[row * n_from_positions + first + s];
      value_scales[other * n_positions + first + s] = from_value_scales[row * n_from_positions + first + s];
    }
}
