/* Products of blocks of 8 rows with any number of columns, cut into tiles. Included at the end of tiles256.h and tiles128.h,
 * which define
 *
 *   tile_float                4 rows of a float kind times COLUMNS columns
 *   tile_q8, tile_q4          a block of 8 rows times COLUMNS columns
 *   TILE_COLUMNS              columns of the largest tile of a quantized kind
 *   FLOAT_COLUMNS             columns of the largest tile of a float kind
 *
 * Tiles take their number of columns and their group size as constants and are inlined, so that their accumulators live
 * in registers; what one column computes does not depend on that number.
 */

/* Sweeps n columns in tiles of most, and the rest in one tile; TILE(first column, constant number of columns). */
#define SWEEP_COLUMNS(n, most, TILE)                 \
  int c = 0;                                         \
  for (; c + (most) <= (n); c += (most)) TILE(most); \
  if ((n) - c == 1) TILE(1);                         \
  if ((n) - c == 2) TILE(2);                         \
  if ((most) > 3 && (n) - c == 3) TILE(3);           \
  if ((most) > 4 && (n) - c == 4) TILE(4);           \
  if ((most) > 5 && (n) - c == 5) TILE(5);           \
  if ((most) > 6 && (n) - c == 6) TILE(6);           \
  if ((most) > 7 && (n) - c == 7) TILE(7)

TARGET_INLINE void NAME(block_of)(const Matrix* w, int64_t block, const Activations* x, int n, const int HALF,
                                  float* out) {
  const int size = HALF ? 2 : 4;
  for (int r0 = 0; r0 < ROW_BLOCK; r0 += 4) {
    int64_t first = block * ROW_BLOCK + r0, rows = w->rows - first < 4 ? w->rows - first : 4;
    if (rows <= 0) return;
    const void* row[4];
    for (int r = 0; r < 4; r++) row[r] = (const char*)w->data + (first + (r < rows ? r : rows - 1)) * w->columns * size;
#define TILE(COLUMNS)                                                                                           \
  NAME(tile_float)(row, (int)rows, w->columns, x->values + c * x->value_stride, x->value_stride, COLUMNS, HALF, \
                   out + c * ROW_BLOCK + r0)
    SWEEP_COLUMNS(n, FLOAT_COLUMNS, TILE);
#undef TILE
  }
}

TARGET static void NAME(block_f32)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(block_of)(w, block, x, n, 0, out);
}

TARGET static void NAME(block_f16)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(block_of)(w, block, x, n, 1, out);
}

/* A function for each group size, as a constant. */
#define BLOCK(KIND, CODE, GROUP)                                                                                   \
  TARGET static void NAME(block_##KIND##_##GROUP)(const CODE* codes, const uint16_t* scales, const Activations* x, \
                                                  int n, float* out) {                                             \
    SWEEP_COLUMNS(n, TILE_COLUMNS, TILE);                                                                          \
  }
#define TILE(COLUMNS) NAME(tile_q8)(codes, scales, x, c, 32, COLUMNS, out)
BLOCK(q8, int8_t, 32)
#undef TILE
#define TILE(COLUMNS) NAME(tile_q8)(codes, scales, x, c, 64, COLUMNS, out)
BLOCK(q8, int8_t, 64)
#undef TILE
#define TILE(COLUMNS) NAME(tile_q8)(codes, scales, x, c, 128, COLUMNS, out)
BLOCK(q8, int8_t, 128)
#undef TILE
#define TILE(COLUMNS) NAME(tile_q4)(codes, scales, x, c, 32, COLUMNS, out)
BLOCK(q4, uint8_t, 32)
#undef TILE
#define TILE(COLUMNS) NAME(tile_q4)(codes, scales, x, c, 64, COLUMNS, out)
BLOCK(q4, uint8_t, 64)
#undef TILE
#define TILE(COLUMNS) NAME(tile_q4)(codes, scales, x, c, 128, COLUMNS, out)
BLOCK(q4, uint8_t, 128)
#undef TILE

TARGET static void NAME(block_q8)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  const int8_t* codes = (const int8_t*)w->data + block * block_bytes(w);
  const uint16_t* scales = w->scales + block * x->n_groups * ROW_BLOCK;
  if (w->group_size == 32) NAME(block_q8_32)(codes, scales, x, n, out);
  if (w->group_size == 64) NAME(block_q8_64)(codes, scales, x, n, out);
  if (w->group_size == 128) NAME(block_q8_128)(codes, scales, x, n, out);
}

TARGET static void NAME(block_q4)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  const uint8_t* codes = (const uint8_t*)w->data + block * block_bytes(w);
  const uint16_t* scales = w->scales + block * x->n_groups * ROW_BLOCK;
  if (w->group_size == 32) NAME(block_q4_32)(codes, scales, x, n, out);
  if (w->group_size == 64) NAME(block_q4_64)(codes, scales, x, n, out);
  if (w->group_size == 128) NAME(block_q4_128)(codes, scales, x, n, out);
}

#undef BLOCK
#undef SWEEP_COLUMNS
