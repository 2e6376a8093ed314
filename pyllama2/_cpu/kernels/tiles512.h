/* Products with a few columns in 512-bit vectors: as tiles256.h, with half of the instructions, and the same bits.
 * Included by a table after tiles256.h. Of a float matrix, one register holds 16 inputs of a row; of a quantized one, 8
 * rows x 4 inputs of each of two blocks.
 *
 *   DOT_U8_AT, DOT_S16_AT   with 512-bit vectors, and what is at p repeated 16 times
 */

/* How far ahead to prefetch one of several streams that are read side by side, such as the rows of a block. Each has so
 * many bytes, and they lie one after the other. What is read after a stream's end lies beyond the other streams, so the
 * distance is longer from the byte `turn` on. */
typedef struct {
  int64_t before, after, turn;
} NAME(Ahead);

TARGET_INLINE NAME(Ahead) NAME(ahead_of)(int64_t distance, int64_t bytes, int streams) {
  const int64_t passed = distance / bytes, others = (streams - 1) * bytes;
  return (NAME(Ahead)){distance + passed * others, distance + (passed + 1) * others, (passed + 1) * bytes - distance};
}

/* The distance at a byte of the stream. */
TARGET_INLINE int64_t NAME(distance)(NAME(Ahead) ahead, int64_t at) {
  return at < ahead.turn ? ahead.before : ahead.after;
}

TARGET_INLINE void NAME(ask_beside)(const char* p, int64_t l2, int64_t l1) {
  __builtin_prefetch(p + l2, 0, 2);
  __builtin_prefetch(p + l1, 0, 3);
}

enum { WIDE_FLOAT_ROWS = 4, WIDE_FLOAT_COLUMNS = 4 };

TARGET_INLINE __m512 NAME(load_16)(const void* row, int64_t i, const int HALF) {
  if (HALF) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)((const uint16_t*)row + i)));
  return _mm512_loadu_ps((const float*)row + i);
}

/* sum += 16 inputs of some rows times COLUMNS columns. */
TARGET_INLINE void NAME(multiply_16)(const void* const row[WIDE_FLOAT_ROWS], int64_t i, const float* x,
                                     int64_t x_stride, const int COLUMNS, const int HALF,
                                     __m512 sum[WIDE_FLOAT_ROWS][WIDE_FLOAT_COLUMNS]) {
  __m512 weights[WIDE_FLOAT_ROWS];
  for (int r = 0; r < WIDE_FLOAT_ROWS; r++) weights[r] = NAME(load_16)(row[r], i, HALF);
#pragma GCC unroll 8
  for (int c = 0; c < COLUMNS; c++) {
    __m512 column = _mm512_loadu_ps(x + c * x_stride);
    KEEP(column); /* or it would be loaded for each row */
#pragma GCC unroll 8
    for (int r = 0; r < WIDE_FLOAT_ROWS; r++) {
      sum[r][c] = _mm512_fmadd_ps(weights[r], column, sum[r][c]);
      KEEP(sum[r][c]);
    }
  }
}

TARGET_INLINE void NAME(some_rows)(const void* const row[WIDE_FLOAT_ROWS], int64_t inputs, const float* x,
                                   int64_t x_stride, const int COLUMNS, const int HALF, const int FIRST, float* out) {
  const int64_t bytes = inputs * (HALF ? 2 : 4);
  const NAME(Ahead) l2 = NAME(ahead_of)(PREFETCH_L2, bytes, WIDE_FLOAT_ROWS),
                    l1 = NAME(ahead_of)(PREFETCH_L1, bytes, WIDE_FLOAT_ROWS);
  __m512 sum[WIDE_FLOAT_ROWS][WIDE_FLOAT_COLUMNS];
  for (int r = 0; r < WIDE_FLOAT_ROWS; r++)
    for (int c = 0; c < COLUMNS; c++) sum[r][c] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    const int64_t at = i * (HALF ? 2 : 4);
    if (FIRST && at % 64 == 0)
      for (int r = 0; r < WIDE_FLOAT_ROWS; r++)
        NAME(ask_beside)((const char*)row[r] + at, NAME(distance)(l2, at), NAME(distance)(l1, at));
    NAME(multiply_16)(row, i, x + i, x_stride, COLUMNS, HALF, sum);
  }
  if (i < inputs) {
    const size_t count = (size_t)(inputs - i), size = HALF ? 2 : 4;
    float last[WIDE_FLOAT_ROWS][LANES] = {{0}}, values[WIDE_FLOAT_COLUMNS][LANES] = {{0}};
    const void* last_row[WIDE_FLOAT_ROWS];
    for (int r = 0; r < WIDE_FLOAT_ROWS; r++)
      last_row[r] = memcpy(last[r], (const char*)row[r] + (size_t)i * size, count * size);
    for (int c = 0; c < COLUMNS; c++) memcpy(values[c], x + c * x_stride + i, count * 4);
    NAME(multiply_16)(last_row, 0, values[0], LANES, COLUMNS, HALF, sum);
  }
  for (int c = 0; c < COLUMNS; c++)
#pragma GCC unroll 8
    for (int r = 0; r < WIDE_FLOAT_ROWS; r++)
      out[c * ROW_BLOCK + r] = NAME(sum_lanes)(_mm512_castps512_ps256(sum[r][c]), _mm512_extractf32x8_ps(sum[r][c], 1));
}

TARGET_INLINE void NAME(wide_block_of)(const Matrix* w, int64_t block, const Activations* x, int n, const int HALF,
                                       float* out) {
  if (n == 1) {
    NAME(block_of)(w, block, x, n, HALF, out);
    return;
  }
  const int64_t first = block * ROW_BLOCK, rows = w->rows - first < ROW_BLOCK ? w->rows - first : ROW_BLOCK;
  const int64_t row_bytes = w->columns * (HALF ? 2 : 4);
  const char* data = (const char*)w->data + first * row_bytes;
  const int width = equal_parts(n, WIDE_FLOAT_COLUMNS);
  for (int64_t r = 0; r < rows; r += WIDE_FLOAT_ROWS) {
    const void* row[WIDE_FLOAT_ROWS];
    for (int64_t k = 0; k < WIDE_FLOAT_ROWS; k++) row[k] = data + (r + k < rows ? r + k : r) * row_bytes;
#define FLOAT_TILE(COLUMNS, FIRST)                                                                         \
  NAME(some_rows)(row, w->columns, x->values + c * x->value_stride, x->value_stride, COLUMNS, HALF, FIRST, \
                  out + c * ROW_BLOCK + r)
#define TILE(COLUMNS)         \
  {                           \
    if (c == 0)               \
      FLOAT_TILE(COLUMNS, 1); \
    else                      \
      FLOAT_TILE(COLUMNS, 0); \
  }
    SWEEP_COLUMNS(n, width, WIDE_FLOAT_COLUMNS, 0, TILE);
#undef TILE
#undef FLOAT_TILE
  }
}

TARGET static void NAME(wide_block_f32)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(wide_block_of)(w, block, x, n, 0, out);
}

TARGET static void NAME(wide_block_f16)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(wide_block_of)(w, block, x, n, 1, out);
}

TARGET_INLINE __m512i NAME(of_both)(const void* first, const void* second) {
  const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)first));
  return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)second), 1);
}

TARGET_INLINE void NAME(add_groups)(__m512* total, const __m512i* sums, const uint16_t* first, const uint16_t* second,
                                    const float* x_scales, const int COLUMNS) {
  const __m256i halves = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)first)),
                                                 _mm_loadu_si128((const __m128i*)second), 1);
  const __m512 w_scale = _mm512_cvtph_ps(halves);
  for (int c = 0; c < COLUMNS; c++) {
    __m512 scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(x_scales[c]));
    total[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[c]), scale, total[c]);
  }
}

/* apart: how many numbers of out lie between the two blocks. */
TARGET_INLINE void NAME(store_both)(const __m512* total, int c0, int64_t apart, const int COLUMNS, float* out) {
  for (int c = 0; c < COLUMNS; c++) {
    _mm256_storeu_ps(out + (c0 + c) * ROW_BLOCK, _mm512_castps512_ps256(total[c]));
    _mm256_storeu_ps(out + apart + (c0 + c) * ROW_BLOCK, _mm512_extractf32x8_ps(total[c], 1));
  }
}

/* Two blocks, one after the other. */
typedef struct {
  const char* codes;
  const uint16_t* scales;
  int64_t code_bytes, n_scales; /* of one block */
} NAME(Pair);

TARGET_INLINE void NAME(pair_q8)(NAME(Pair) w, const Activations* x, int c0, int64_t apart, const int GROUP,
                                 const int COLUMNS, float* out) {
  enum { ZERO = -128 };
  const __m512i input0 = _mm512_broadcast_i32x4(
                    _mm_setr_epi8(ZERO, 0, ZERO, 1, ZERO, 4, ZERO, 5, ZERO, 8, ZERO, 9, ZERO, 12, ZERO, 13)),
                input2 = _mm512_add_epi8(input0, _mm512_set1_epi16(0x0200));
  const int32_t* steps = (const int32_t*)x->steps + c0 * x->n_steps;
  const float* x_scales = x->scales + c0 * x->n_groups;
  __m512 total[TILE_COLUMNS];
  for (int c = 0; c < COLUMNS; c++) total[c] = _mm512_setzero_ps();
  const NAME(Ahead) l2 = NAME(ahead_of)(PREFETCH_L2, w.code_bytes, 2),
                    l1 = NAME(ahead_of)(PREFETCH_L1, w.code_bytes, 2);
  const char *first = w.codes, *second = w.codes + w.code_bytes;
  const uint16_t *first_scales = w.scales, *second_scales = w.scales + w.n_scales;
  int64_t at = 0;
  for (int64_t g = 0; g < x->n_groups;
       g++, first_scales += ROW_BLOCK, second_scales += ROW_BLOCK, x_scales += COLUMNS, at += GROUP * ROW_BLOCK) {
    const int64_t to_l2 = NAME(distance)(l2, at), to_l1 = NAME(distance)(l1, at);
    __m512i sums[TILE_COLUMNS], more[TILE_COLUMNS];
    for (int c = 0; c < COLUMNS; c++) sums[c] = more[c] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < GROUP / QUAD; j++, first += 32, second += 32, steps += 2 * COLUMNS) {
      if (j % 2 == 0) {
        NAME(ask_beside)(first, to_l2, to_l1);
        NAME(ask_beside)(second, to_l2, to_l1);
      }
      __m512i bytes = NAME(of_both)(first, second);
      __m512i inputs0 = _mm512_srai_epi16(_mm512_shuffle_epi8(bytes, input0), 8);
      __m512i inputs2 = _mm512_srai_epi16(_mm512_shuffle_epi8(bytes, input2), 8);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) {
        DOT_S16_AT(sums[c], inputs0, steps + c);
        DOT_S16_AT(more[c], inputs2, steps + COLUMNS + c);
        KEEP(sums[c]);
        KEEP(more[c]);
      }
    }
    for (int c = 0; c < COLUMNS; c++) sums[c] = _mm512_add_epi32(sums[c], more[c]);
    NAME(add_groups)(total, sums, first_scales, second_scales, x_scales, COLUMNS);
  }
  NAME(store_both)(total, c0, apart, COLUMNS, out);
}

TARGET_INLINE void NAME(pair_q4)(NAME(Pair) w, const Activations* x, int c0, int64_t apart, const int GROUP,
                                 const int COLUMNS, float* out) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const int REGISTERS = GROUP / 8;
  const int32_t* steps = (const int32_t*)x->steps + c0 * x->n_steps;
  const float* x_scales = x->scales + c0 * x->n_groups;
  const int32_t* offsets = x->offsets + c0 * x->n_groups;
  __m512 total[TILE_COLUMNS];
  for (int c = 0; c < COLUMNS; c++) total[c] = _mm512_setzero_ps();
  const NAME(Ahead) l2 = NAME(ahead_of)(PREFETCH_L2, w.code_bytes, 2),
                    l1 = NAME(ahead_of)(PREFETCH_L1, w.code_bytes, 2);
  const char *first = w.codes, *second = w.codes + w.code_bytes;
  const uint16_t *first_scales = w.scales, *second_scales = w.scales + w.n_scales;
  int64_t at = 0;
  for (int64_t g = 0; g < x->n_groups; g++, first_scales += ROW_BLOCK, second_scales += ROW_BLOCK, x_scales += COLUMNS,
               offsets += COLUMNS, at += GROUP * ROW_BLOCK / 2) {
    const int64_t to_l2 = NAME(distance)(l2, at), to_l1 = NAME(distance)(l1, at);
    __m512i low[TILE_COLUMNS], high[TILE_COLUMNS];
    for (int c = 0; c < COLUMNS; c++) low[c] = _mm512_set1_epi32(offsets[c]), high[c] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int j = 0; j < REGISTERS; j++, first += 32, second += 32, steps += COLUMNS) {
      if (j % 2 == 0) {
        NAME(ask_beside)(first, to_l2, to_l1);
        NAME(ask_beside)(second, to_l2, to_l1);
      }
      __m512i bytes = NAME(of_both)(first, second);
      __m512i lows = _mm512_and_si512(bytes, nibble), highs = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) {
        DOT_U8_AT(low[c], lows, steps + c);
        DOT_U8_AT(high[c], highs, steps + REGISTERS * COLUMNS + c);
        KEEP(low[c]);
        KEEP(high[c]);
      }
    }
    steps += REGISTERS * COLUMNS; /* those of the high nibbles */
    for (int c = 0; c < COLUMNS; c++) low[c] = _mm512_add_epi32(low[c], high[c]);
    NAME(add_groups)(total, low, first_scales, second_scales, x_scales, COLUMNS);
  }
  NAME(store_both)(total, c0, apart, COLUMNS, out);
}

#define PAIR_OF_GROUP(KIND, GROUP_SIZE)                                                                         \
  TARGET static void NAME(pair_##KIND##_##GROUP_SIZE)(NAME(Pair) w, const Activations* x, int n, int64_t apart, \
                                                      float* out) {                                             \
    enum { GROUP = GROUP_SIZE };                                                                                \
    SWEEP_COLUMNS(n, x->interleave, TILE_COLUMNS, 1, TILE_##KIND);                                              \
  }
#define TILE_q8(COLUMNS) NAME(pair_q8)(w, x, c, apart, GROUP, COLUMNS, out)
#define TILE_q4(COLUMNS) NAME(pair_q4)(w, x, c, apart, GROUP, COLUMNS, out)
#define PAIR(KIND)                                                                                                  \
  PAIR_OF_GROUP(KIND, 32)                                                                                           \
  PAIR_OF_GROUP(KIND, 64)                                                                                           \
  PAIR_OF_GROUP(KIND, 128)                                                                                          \
  TARGET static void NAME(blocks_##KIND)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) { \
    const int64_t bytes = block_bytes(w), scales = x->n_groups * ROW_BLOCK;                                         \
    const int64_t apart = (n + x->interleave - 1) / x->interleave * x->interleave * ROW_BLOCK;                      \
    NAME(Pair) pair = {(const char*)w->data + block * bytes, w->scales + block * scales, bytes, scales};            \
    if (w->group_size == 32) NAME(pair_##KIND##_32)(pair, x, n, apart, out);                                        \
    if (w->group_size == 64) NAME(pair_##KIND##_64)(pair, x, n, apart, out);                                        \
    if (w->group_size == 128) NAME(pair_##KIND##_128)(pair, x, n, apart, out);                                      \
  }
PAIR(q8)
PAIR(q4)

#undef PAIR
#undef TILE_q4
#undef TILE_q8
#undef PAIR_OF_GROUP
