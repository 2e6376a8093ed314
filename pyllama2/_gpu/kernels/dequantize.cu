// Needs: common.cu
// Tiles of a quantized matrix -> float16 (rows, columns), row-major, for a library's matrix product.

// One warp per row and group: grid (groups, tiles), 1024 threads; warp = row of the tile.
template <int kBits, int kGroup>
__global__ void __launch_bounds__(1024)
    dequantize(const signed char* __restrict__ codes, const __half* __restrict__ scales, int rows, int columns,
               __half* __restrict__ out) {
  constexpr int kHalf = kGroup / 2, kPieces = kGroup * kBits / 128;
  const int row_in_tile = static_cast<int>(threadIdx.x) / 32,
            row = static_cast<int>(blockIdx.y) * kTileRows + row_in_tile;
  if (row >= rows) return;
  const size_t group = static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const float scale = __half2float(scales[group * kTileRows + row_in_tile]);
  for (int i = static_cast<int>(threadIdx.x) % 32; i < kGroup; i += 32) {
    const int byte = kBits == 4 ? i % kHalf : i, column = static_cast<int>(blockIdx.x) * kGroup + i;
    const int stored = codes[((group * kPieces + byte / 16) * kTileRows + row_in_tile) * 16 + byte % 16];
    const int code = kBits == 8 ? stored : ((i < kHalf ? stored : stored >> 4) & 15) - 8;
    if (column < columns)
      out[static_cast<size_t>(row) * columns + column] = __float2half_rn(static_cast<float>(code) * scale);
  }
}
