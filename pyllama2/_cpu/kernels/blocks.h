/* Products of blocks of 8 rows with any number of columns, cut into tiles. Included at the end of tiles256.h and
 * tiles128.h, which define
 *
 *   tile_float                ROWS rows, 1 or 2, of a float kind times COLUMNS columns
 *   tile_q8, tile_q4          a block of 8 rows times COLUMNS columns
 *   TILE_COLUMNS              columns of the largest tile of a quantized kind
 *   FLOAT_COLUMNS             columns of the largest tile of a float kind
 *   INTERLEAVED               whether columns of a quantized kind are, tile by tile
 *
 * Tiles are inlined, and their number of columns and group size are constants, so that the accumulators are in
 * registers. The result of a column does not depend on the number of columns.
 */

/* Takes n columns in tiles of width columns, at most most. The last tile has the rest; if whole, as many columns as the
 * others. TILE gets the number of columns, a constant. Its first column is c. */
#define SWEEP_COLUMNS(n, width, most, whole, TILE)                     \
  for (int c = 0; c < (n); c += (width)) {                             \
    const int wide = (whole) || (n) - c > (width) ? (width) : (n) - c; \
    if (wide == 1) TILE(1);                                            \
    if (wide == 2) TILE(2);                                            \
    if (wide == 3) TILE(3);                                            \
    if ((most) > 3 && wide == 4) TILE(4);                              \
    if ((most) > 4 && wide == 5) TILE(5);                              \
    if ((most) > 5 && wide == 6) TILE(6);                              \
    if ((most) > 6 && wide == 7) TILE(7);                              \
    if ((most) > 7 && wide == 8) TILE(8);                              \
  }

/* The rows of a block, two at a time. With a single column, one at a time, so that memory is read as one stream. */
TARGET_INLINE void NAME(block_of)(const Matrix* w, int64_t block, const Activations* x, int n, const int HALF,
                                  float* out) {
  const int64_t first = block * ROW_BLOCK, rows = w->rows - first < ROW_BLOCK ? w->rows - first : ROW_BLOCK;
  const int64_t row_bytes = w->columns * (HALF ? 2 : 4);
  const char* data = (const char*)w->data + first * row_bytes;
  const int together = n == 1 ? 1 : 2, width = equal_parts(n, FLOAT_COLUMNS);
  for (int64_t r = 0; r < rows; r += together, data += together * row_bytes) {
    const void* row[2] = {data, r + 1 < rows ? data + row_bytes : data};
#define FLOAT_TILE(ROWS, COLUMNS)                                                                                  \
  NAME(tile_float)(row, w->columns, x->values + c * x->value_stride, x->value_stride, ROWS, COLUMNS, HALF, c == 0, \
                   out + c * ROW_BLOCK + r)
#define TILE(COLUMNS) FLOAT_TILE(2, COLUMNS)
    if (n == 1) {
      const int c = 0;
      FLOAT_TILE(1, 1);
    } else {
      SWEEP_COLUMNS(n, width, FLOAT_COLUMNS, 0, TILE);
    }
#undef TILE
#undef FLOAT_TILE
  }
}

TARGET static void NAME(block_f32)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(block_of)(w, block, x, n, 0, out);
}

TARGET static void NAME(block_f16)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(block_of)(w, block, x, n, 1, out);
}

#define TILE_WIDTH (INTERLEAVED ? x->interleave : TILE_COLUMNS)
/* A function for each group size, which is a constant in it, and a function that calls the right one. */
#define BLOCK_OF_GROUP(KIND, GROUP_SIZE)                                                          \
  TARGET static void NAME(block_##KIND##_##GROUP_SIZE)(const void* codes, const uint16_t* scales, \
                                                       const Activations* x, int n, float* out) { \
    enum { GROUP = GROUP_SIZE };                                                                  \
    SWEEP_COLUMNS(n, TILE_WIDTH, TILE_COLUMNS, INTERLEAVED, TILE_##KIND);                         \
  }
#define TILE_q8(COLUMNS) NAME(tile_q8)(codes, scales, x, c, GROUP, COLUMNS, out)
#define TILE_q4(COLUMNS) NAME(tile_q4)(codes, scales, x, c, GROUP, COLUMNS, out)
#define BLOCK(KIND)                                                                                                \
  BLOCK_OF_GROUP(KIND, 32)                                                                                         \
  BLOCK_OF_GROUP(KIND, 64)                                                                                         \
  BLOCK_OF_GROUP(KIND, 128)                                                                                        \
  TARGET static void NAME(block_##KIND)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) { \
    const char* codes = (const char*)w->data + block * block_bytes(w);                                             \
    const uint16_t* scales = w->scales + block * x->n_groups * ROW_BLOCK;                                          \
    if (w->group_size == 32) NAME(block_##KIND##_32)(codes, scales, x, n, out);                                    \
    if (w->group_size == 64) NAME(block_##KIND##_64)(codes, scales, x, n, out);                                    \
    if (w->group_size == 128) NAME(block_##KIND##_128)(codes, scales, x, n, out);                                  \
  }
BLOCK(q8)
BLOCK(q4)

#undef BLOCK
#undef TILE_WIDTH
#undef TILE_q4
#undef TILE_q8
#undef BLOCK_OF_GROUP
