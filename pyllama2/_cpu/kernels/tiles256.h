/* Products of blocks of 8 rows with a few columns, in 256-bit vectors. An x86 table includes this file with
 *
 *   NAME, TARGET          as for portable.h
 *   TARGET_INLINE         TARGET, and inlined
 *   TILE_COLUMNS          number of columns whose accumulators fit into the registers
 *   FLOAT_COLUMNS         the same for 2 rows of float32
 *   DOT_U8_AT(acc, u, p)  acc += products of unsigned bytes with the 4 signed bytes at p, repeated 8 times
 *   SUM_U8(acc)           8 int32 sums, of at most MOST_DOTS DOT_U8_AT of q4's codes with int8
 *   DOT_S16(acc, a, b)    acc (8 int32) += sums of two products of int16
 *   DOT_S16_AT(acc, a, p) the same with the 2 int16 at p, repeated 8 times
 *
 * One register holds 8 rows x 4 inputs of a quantized matrix. Its columns are interleaved, so that all steps of a tile
 * are at constant distances from one pointer. Tile functions are inlined, and their number of columns and group size
 * are constants, so that the accumulators are in registers. The result of a column does not depend on the number of
 * columns.
 */

TARGET_INLINE float NAME(sum_lanes)(__m256 low, __m256 high) { /* in the order of SUM16 */
  __m256 v = _mm256_add_ps(low, high);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

TARGET_INLINE __m256 NAME(load_weights)(const void* row, int64_t i, const int HALF) {
  if (HALF) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)((const uint16_t*)row + i)));
  return _mm256_loadu_ps((const float*)row + i);
}

/* sum += 16 inputs of ROWS rows times COLUMNS columns. */
TARGET_INLINE void NAME(multiply_float)(const void* const row[2], int64_t i, const float* x, int64_t x_stride,
                                        const int ROWS, const int COLUMNS, const int HALF,
                                        __m256 sum[2][FLOAT_COLUMNS][2]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    __m256 column[FLOAT_COLUMNS];
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; c++) {
      column[c] = _mm256_loadu_ps(x + c * x_stride + 8 * half);
      if (ROWS > 1) KEEP(column[c]); /* or it would be loaded for each row */
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++) {
      __m256 weights = NAME(load_weights)(row[r], i + 8 * half, HALF);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) {
        sum[r][c][half] = _mm256_fmadd_ps(weights, column[c], sum[r][c][half]);
        KEEP(sum[r][c][half]);
      }
    }
  }
}

/* ROWS rows times COLUMNS columns. first: the rows come from memory, and not from a cache. */
TARGET_INLINE void NAME(tile_float)(const void* const row[2], int64_t inputs, const float* x, int64_t x_stride,
                                    const int ROWS, const int COLUMNS, const int HALF, int first, float* out) {
  __m256 sum[2][FLOAT_COLUMNS][2];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS; c++) sum[r][c][0] = sum[r][c][1] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    if (first)
      for (int r = 0; r < ROWS; r++) ask_ahead((const char*)row[r] + i * (HALF ? 2 : 4));
    NAME(multiply_float)(row, i, x + i, x_stride, ROWS, COLUMNS, HALF, sum);
  }
  if (i < inputs) {
    const size_t count = (size_t)(inputs - i), size = HALF ? 2 : 4;
    float last[2][LANES] = {{0}}, values[FLOAT_COLUMNS][LANES] = {{0}};
    const void* last_row[2];
    for (int r = 0; r < ROWS; r++) last_row[r] = memcpy(last[r], (const char*)row[r] + (size_t)i * size, count * size);
    for (int c = 0; c < COLUMNS; c++) memcpy(values[c], x + c * x_stride + i, count * 4);
    NAME(multiply_float)(last_row, 0, values[0], LANES, ROWS, COLUMNS, HALF, sum);
  }
  for (int c = 0; c < COLUMNS; c++)
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++) out[c * ROW_BLOCK + r] = NAME(sum_lanes)(sum[r][c][0], sum[r][c][1]);
}

/* total[c] += sums[c] times the scales of rows and column, for the sums of a group. */
TARGET_INLINE void NAME(add_group)(__m256* total, const __m256i* sums, const uint16_t* scales, const float* x_scales,
                                   const int COLUMNS) {
  const __m256 w_scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)scales));
  for (int c = 0; c < COLUMNS; c++) {
    __m256 scale = _mm256_mul_ps(w_scale, _mm256_broadcast_ss(x_scales + c));
    total[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[c]), scale, total[c]);
  }
}

/* A single column, whose four inputs lie together. Two registers of int16 hold 4 rows x 4 inputs each; adding neighbours
 * at the end of a group gives 8 sums. */
TARGET_INLINE void NAME(column_q8)(const int8_t* w, const uint16_t* scales, const Activations* x, int c,
                                   const int GROUP, float* out) {
  const int16_t* inputs = (const int16_t*)x->steps + c * x->n_steps * 2;
  const float* x_scales = x->scales + c * x->n_groups;
  __m256 total = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, scales += ROW_BLOCK) {
    __m256i lower = _mm256_setzero_si256(), upper = lower;
#pragma GCC unroll 8
    for (int j = 0; j < GROUP / QUAD; j++, w += 32, inputs += QUAD) {
      if (j % 2 == 0) ask_ahead(w);
      __m256i input = _mm256_castpd_si256(_mm256_broadcast_sd((const double*)inputs));
      lower = DOT_S16(lower, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w)), input);
      upper = DOT_S16(upper, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 16))), input);
      KEEP(lower);
      KEEP(upper);
    }
    /* hadd works within 128-bit halves: rows 0 1 4 5 | 2 3 6 7 */
    __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(lower, upper), _MM_SHUFFLE(3, 1, 2, 0));
    NAME(add_group)(&total, &sums, scales, x_scales + g, 1);
  }
  _mm256_storeu_ps(out + c * ROW_BLOCK, total);
}

/* A register of codes becomes two of int16, with inputs 0 and 1, and 2 and 3 of each row. Each has accumulators of its
 * own, so that there are enough of them to be added to at the same time. The largest sum, 128 * 127 * 32767, fits 32
 * bits. */
TARGET_INLINE void NAME(tile_q8)(const int8_t* w, const uint16_t* scales, const Activations* x, int c0, const int GROUP,
                                 const int COLUMNS, float* out) {
  if (COLUMNS == 1) {
    NAME(column_q8)(w, scales, x, c0, GROUP, out);
    return;
  }
  enum { ZERO = -128 };
  const __m256i input0 = _mm256_broadcastsi128_si256(
                    _mm_setr_epi8(ZERO, 0, ZERO, 1, ZERO, 4, ZERO, 5, ZERO, 8, ZERO, 9, ZERO, 12, ZERO, 13)),
                input2 = _mm256_add_epi8(input0, _mm256_set1_epi16(0x0200));
  const int32_t* steps = (const int32_t*)x->steps + c0 * x->n_steps;
  const float* x_scales = x->scales + c0 * x->n_groups;
  __m256 total[TILE_COLUMNS];
  for (int c = 0; c < COLUMNS; c++) total[c] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, scales += ROW_BLOCK, x_scales += COLUMNS) {
    __m256i sums[TILE_COLUMNS], more[TILE_COLUMNS];
    for (int c = 0; c < COLUMNS; c++) sums[c] = more[c] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < GROUP / QUAD; j++, w += 32, steps += 2 * COLUMNS) {
      if (j % 2 == 0) ask_ahead(w);
      __m256i bytes = _mm256_loadu_si256((const __m256i*)w);
      __m256i inputs0 = _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, input0), 8);
      __m256i inputs2 = _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, input2), 8);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) {
        DOT_S16_AT(sums[c], inputs0, steps + c);
        DOT_S16_AT(more[c], inputs2, steps + COLUMNS + c);
        KEEP(sums[c]);
        KEEP(more[c]);
      }
    }
    for (int c = 0; c < COLUMNS; c++) sums[c] = _mm256_add_epi32(sums[c], more[c]);
    NAME(add_group)(total, sums, scales, x_scales, COLUMNS);
  }
  for (int c = 0; c < COLUMNS; c++) _mm256_storeu_ps(out + (c0 + c) * ROW_BLOCK, total[c]);
}

/* Low and high nibbles have accumulators of their own, too. */
TARGET_INLINE void NAME(tile_q4)(const uint8_t* w, const uint16_t* scales, const Activations* x, int c0,
                                 const int GROUP, const int COLUMNS, float* out) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const int REGISTERS = GROUP / 8, COUNT = REGISTERS < MOST_DOTS ? REGISTERS : MOST_DOTS;
  const int32_t* steps = (const int32_t*)x->steps + c0 * x->n_steps;
  const float* x_scales = x->scales + c0 * x->n_groups;
  const int32_t* offsets = x->offsets + c0 * x->n_groups;
  __m256 total[TILE_COLUMNS];
  for (int c = 0; c < COLUMNS; c++) total[c] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, scales += ROW_BLOCK, x_scales += COLUMNS, offsets += COLUMNS) {
    __m256i sums[TILE_COLUMNS];
    for (int c = 0; c < COLUMNS; c++) sums[c] = _mm256_set1_epi32(offsets[c]);
    for (int j0 = 0; j0 < REGISTERS; j0 += COUNT) {
      __m256i low[TILE_COLUMNS], high[TILE_COLUMNS];
      for (int c = 0; c < COLUMNS; c++) low[c] = high[c] = _mm256_setzero_si256();
#pragma GCC unroll 16
      for (int j = 0; j < COUNT; j++, w += 32, steps += COLUMNS) {
        if (j % 2 == 0) ask_ahead(w);
        __m256i bytes = _mm256_loadu_si256((const __m256i*)w);
        __m256i lows = _mm256_and_si256(bytes, nibble), highs = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
          DOT_U8_AT(low[c], lows, steps + c);
          DOT_U8_AT(high[c], highs, steps + REGISTERS * COLUMNS + c);
          KEEP(low[c]);
          KEEP(high[c]);
        }
      }
      for (int c = 0; c < COLUMNS; c++)
        sums[c] = _mm256_add_epi32(sums[c], _mm256_add_epi32(SUM_U8(low[c]), SUM_U8(high[c])));
    }
    steps += REGISTERS * COLUMNS; /* those of the high nibbles */
    NAME(add_group)(total, sums, scales, x_scales, COLUMNS);
  }
  for (int c = 0; c < COLUMNS; c++) _mm256_storeu_ps(out + (c0 + c) * ROW_BLOCK, total[c]);
}

#define INTERLEAVED 1
#include "blocks.h"
#undef INTERLEAVED
