/* Products in 256-bit vectors that read several streams side by side: with a single column four rows of a float matrix,
 * or four blocks of a quantized one; with more columns two blocks, which share what is loaded of the columns. Included by
 * a table after tiles256.h, whose bits they have.
 *
 * On a Zen 3, a loop that reads rows of 8 KB with two threads gets 17 to 19 GB/s one after the other, and 21 to 27 GB/s
 * four at a time. Prefetches make that slower where a loop has few instructions for each cache line, as that of float32.
 */

TARGET_INLINE void NAME(rows_float)(const void* const row[STREAMS], int64_t inputs, const float* x, const int HALF,
                                    float* out) {
  __m256 sum[STREAMS][2];
  for (int r = 0; r < STREAMS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    if (HALF && i % (2 * LANES) == 0)
      for (int r = 0; r < STREAMS; r++) {
        const char* p = (const char*)row[r] + 2 * i;
        __builtin_prefetch(p + stream_ahead(2 * i, 2 * inputs, STREAMS, STREAM_AHEAD));
      }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256 column = _mm256_loadu_ps(x + i + 8 * half);
#pragma GCC unroll 4
      for (int r = 0; r < STREAMS; r++)
        sum[r][half] = _mm256_fmadd_ps(NAME(load_weights)(row[r], i + 8 * half, HALF), column, sum[r][half]);
    }
  }
  if (i < inputs) {
    const size_t count = (size_t)(inputs - i), size = HALF ? 2 : 4;
    float values[LANES] = {0};
    memcpy(values, x + i, count * 4);
    for (int r = 0; r < STREAMS; r++) {
      float last[LANES] = {0};
      memcpy(last, (const char*)row[r] + (size_t)i * size, count * size);
      for (int half = 0; half < 2; half++)
        sum[r][half] =
            _mm256_fmadd_ps(NAME(load_weights)(last, 8 * half, HALF), _mm256_loadu_ps(values + 8 * half), sum[r][half]);
    }
  }
  for (int r = 0; r < STREAMS; r++) out[r] = NAME(sum_lanes)(sum[r][0], sum[r][1]);
}

TARGET_INLINE void NAME(streams_of)(const Matrix* w, int64_t block, const Activations* x, int n, const int HALF,
                                    float* out) {
  if (n > 1) {
    NAME(block_of)(w, block, x, n, HALF, out);
    return;
  }
  const int64_t first = block * ROW_BLOCK, rows = w->rows - first < ROW_BLOCK ? w->rows - first : ROW_BLOCK;
  const int64_t row_bytes = w->columns * (HALF ? 2 : 4);
  const char* data = (const char*)w->data + first * row_bytes;
  for (int64_t r = 0; r < rows; r += STREAMS) {
    const void* row[STREAMS];
    for (int64_t k = 0; k < STREAMS; k++) row[k] = data + (r + k < rows ? r + k : r) * row_bytes;
    NAME(rows_float)(row, w->columns, x->values, HALF, out + r);
  }
}

TARGET static void NAME(streams_f32)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(streams_of)(w, block, x, n, 0, out);
}

TARGET static void NAME(streams_f16)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(streams_of)(w, block, x, n, 1, out);
}

/* Some blocks from one on, and room for their products with n columns. */
TARGET_INLINE NAME(Blocks) NAME(blocks_from)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  const int64_t bytes = block_bytes(w), scales = x->n_groups * ROW_BLOCK;
  const int64_t whole = (n + x->interleave - 1) / x->interleave * x->interleave;
  return (NAME(Blocks)){
      (const char*)w->data + block * bytes, w->scales + block * scales, bytes, scales, whole * ROW_BLOCK, out};
}

/* STREAMS blocks with a single column, or two with tiles of 3 or 4 columns. */
#define STREAMS_OF_GROUP(KIND, GROUP)                                                                   \
  TARGET static void NAME(streams_##KIND##_##GROUP)(NAME(Blocks) blocks, const Activations* x) {        \
    NAME(tiles_##KIND)(blocks, x, 0, GROUP, STREAMS, 1);                                                \
  }                                                                                                     \
  TARGET static void NAME(pairs_##KIND##_##GROUP)(NAME(Blocks) blocks, const Activations* x, int n) {   \
    for (int c = 0; x->interleave == 3 && c < n; c += 3) NAME(tiles_##KIND)(blocks, x, c, GROUP, 2, 3); \
    for (int c = 0; x->interleave == 4 && c < n; c += 4) NAME(tiles_##KIND)(blocks, x, c, GROUP, 2, 4); \
  }
#define STREAMS_OF(KIND)                                                                                             \
  STREAMS_OF_GROUP(KIND, 32)                                                                                         \
  STREAMS_OF_GROUP(KIND, 64)                                                                                         \
  STREAMS_OF_GROUP(KIND, 128)                                                                                        \
  TARGET static void NAME(streams_##KIND)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) { \
    (void)n; /* 1 */                                                                                                 \
    if (w->group_size == 32) NAME(streams_##KIND##_32)(NAME(blocks_from)(w, block, x, 1, out), x);                   \
    if (w->group_size == 64) NAME(streams_##KIND##_64)(NAME(blocks_from)(w, block, x, 1, out), x);                   \
    if (w->group_size == 128) NAME(streams_##KIND##_128)(NAME(blocks_from)(w, block, x, 1, out), x);                 \
  }                                                                                                                  \
  TARGET static void NAME(pairs_##KIND)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {   \
    if (w->group_size == 32) NAME(pairs_##KIND##_32)(NAME(blocks_from)(w, block, x, n, out), x, n);                  \
    if (w->group_size == 64) NAME(pairs_##KIND##_64)(NAME(blocks_from)(w, block, x, n, out), x, n);                  \
    if (w->group_size == 128) NAME(pairs_##KIND##_128)(NAME(blocks_from)(w, block, x, n, out), x, n);                \
  }
STREAMS_OF(q8)
STREAMS_OF(q4)
#undef STREAMS_OF
#undef STREAMS_OF_GROUP
