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

// from (rows, columns), numbers of 2 or 4 bytes, to the tiles of a float matrix (common.cu) from first_tile on, every
// tile_step-th. Grid (groups of 128 inputs, tiles), a thread for each row and running sum.
template <class Number>
__global__ void __launch_bounds__(kTileRows* kRunningSums)
    arrange_numbers(const Number* __restrict__ from, uint4* __restrict__ to, int rows, int columns, int first_tile,
                    int tile_step) {
  constexpr int kSteps = kFloatGroup / kRunningSums, kOfPiece = 16 / static_cast<int>(sizeof(Number));
  constexpr int kPieces = kSteps / kOfPiece;
  const int row = static_cast<int>(threadIdx.x) % kTileRows, running = static_cast<int>(threadIdx.x) / kTileRows;
  const int group = static_cast<int>(blockIdx.x), groups = static_cast<int>(gridDim.x);
  const int from_row = static_cast<int>(blockIdx.y) * kTileRows + row;
  const size_t tile = first_tile + static_cast<size_t>(blockIdx.y) * tile_step;
  for (int p = 0; p < kPieces; p++) {
    union {
      Number numbers[kOfPiece];
      uint4 piece;
    };
    for (int i = 0; i < kOfPiece; i++) {
      const int column = group * kFloatGroup + (p * kOfPiece + i) * kRunningSums + running;
      const bool there = from_row < rows && column < columns;
      numbers[i] = there ? from[static_cast<size_t>(from_row) * columns + column] : Number{0};
    }
    const size_t place = (tile * kRunningSums + running) * groups + group;
    to[(place * kPieces + p) * kTileRows + row] = piece;
  }
}
