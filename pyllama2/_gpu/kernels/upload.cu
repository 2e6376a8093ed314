// Needs: common.cu
// From a quantized matrix of our file, eight rows interleaved by four inputs (weights.py), to tiles of 32 rows
// (common.cu). In both, a row's words of four bytes have the same order, so that codes of either kind are only moved.

// from (rows / 8, words, 8), to (tiles, words / 4, 32, 4): words of 4 bytes of one row. Tile t of the matrix becomes
// tile first_tile + t * tile_step of `to`. One thread per word: grid (words / 4, tiles), 128 threads.
extern "C" __global__ void arrange_codes(const unsigned* __restrict__ from, unsigned* __restrict__ to, int row_blocks,
                                         int words, int first_tile, int tile_step) {
  const int row = static_cast<int>(threadIdx.x) / 4, chunk = static_cast<int>(blockIdx.x);
  const int word = chunk * 4 + static_cast<int>(threadIdx.x % 4);
  const size_t block = static_cast<size_t>(blockIdx.y) * (kTileRows / 8) + row / 8;
  const size_t tile = first_tile + static_cast<size_t>(blockIdx.y) * tile_step;
  const unsigned value = block < row_blocks ? from[(block * words + word) * 8 + row % 8] : 0u;
  to[(tile * (words / 4) + chunk) * (kTileRows * 4) + threadIdx.x] = value;
}

// from (rows / 8, groups, 8), to (tiles, groups, 32): grid (groups, tiles), 32 threads.
extern "C" __global__ void arrange_scales(const unsigned short* __restrict__ from, unsigned short* __restrict__ to,
                                          int row_blocks, int groups, int first_tile, int tile_step) {
  const int row = static_cast<int>(threadIdx.x), group = static_cast<int>(blockIdx.x);
  const size_t block = static_cast<size_t>(blockIdx.y) * (kTileRows / 8) + row / 8;
  const size_t tile = first_tile + static_cast<size_t>(blockIdx.y) * tile_step;
  const unsigned short value = block < row_blocks ? from[(block * groups + group) * 8 + row % 8] : 0;
  to[(tile * groups + group) * kTileRows + row] = value;
}
