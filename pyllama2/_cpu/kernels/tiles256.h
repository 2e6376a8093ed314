/* Products of blocks of 8 rows with a few columns, in 256-bit vectors. An x86 table includes this file with
 *
 *   NAME, TARGET          as for portable.h
 *   TARGET_INLINE         TARGET, and inlined
 *   TILE_COLUMNS          number of columns whose accumulators fit into the registers
 *   FLOAT_COLUMNS         the same for 2 rows of float32
 *   DOT_U8_AT(acc, u, p)  acc += products of unsigned bytes with the 4 signed bytes at p, repeated 8 times
 *   OFFSET_INPUTS         inputs of a group of q4 that an accumulator of these can hold, together with their offset
 *   SUM_U8(acc)           the 8 int32 sums in such an accumulator
 *   DOT_S16(acc, a, b)    acc (8 int32) += sums of two products of int16
 *   DOT_S16_AT(acc, a, p) the same with the 2 int16 at p, repeated 8 times
 *   APART                 whether the halves of a register's inputs have accumulators of their own
 *
 * One register holds 8 rows x 4 inputs of a quantized matrix. Its columns are interleaved, so that all steps of a tile
 * are at constant distances from one pointer. Tile functions are inlined, and their number of columns and group size
 * are constants, so that the accumulators are in registers. So is their number of blocks, of which streams256.h takes
 * several. The result of a column does not depend on the number of columns, or of blocks.
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

/* Some blocks, one after the other, and their results. */
typedef struct {
  const char* codes;
  const uint16_t* scales;
  int64_t code_bytes, n_scales, floats; /* of one block */
  float* out;
} NAME(Blocks);

TARGET_INLINE void NAME(prefetch_codes)(const void* codes, int64_t ahead, const int BLOCKS) {
  if (BLOCKS == 1)
    ask_ahead(codes);
  else
    __builtin_prefetch((const char*)codes + ahead);
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
TARGET_INLINE void NAME(column_q8)(NAME(Blocks) w, const Activations* x, int c, const int GROUP, const int BLOCKS) {
  const int16_t* inputs = (const int16_t*)x->steps + c * x->n_steps * 2;
  const float* x_scales = x->scales + c * x->n_groups;
  __m256 total[STREAMS];
  for (int b = 0; b < BLOCKS; b++) total[b] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, w.scales += ROW_BLOCK) {
    const int64_t ahead = stream_ahead((g + 1) * GROUP * ROW_BLOCK, w.code_bytes, BLOCKS, STREAM_AHEAD);
    __m256i lower[STREAMS], upper[STREAMS];
    for (int b = 0; b < BLOCKS; b++) lower[b] = upper[b] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < GROUP / QUAD; j += 2, w.codes += 64, inputs += 2 * QUAD) {
      const __m256i input[2] = {_mm256_castpd_si256(_mm256_broadcast_sd((const double*)inputs)),
                                _mm256_castpd_si256(_mm256_broadcast_sd((const double*)(inputs + QUAD)))};
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; b++) {
        const __m128i* codes = (const __m128i*)(w.codes + b * w.code_bytes);
        NAME(prefetch_codes)(codes, ahead, BLOCKS);
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
          lower[b] = DOT_S16(lower[b], _mm256_cvtepi8_epi16(_mm_loadu_si128(codes + 2 * k)), input[k]);
          upper[b] = DOT_S16(upper[b], _mm256_cvtepi8_epi16(_mm_loadu_si128(codes + 2 * k + 1)), input[k]);
          KEEP(lower[b]);
          KEEP(upper[b]);
        }
      }
    }
    for (int b = 0; b < BLOCKS; b++) {
      /* hadd works within 128-bit halves: rows 0 1 4 5 | 2 3 6 7 */
      const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(lower[b], upper[b]), _MM_SHUFFLE(3, 1, 2, 0));
      NAME(add_group)(total + b, &sums, w.scales + b * w.n_scales, x_scales + g, 1);
    }
  }
  for (int b = 0; b < BLOCKS; b++) _mm256_storeu_ps(w.out + b * w.floats + c * ROW_BLOCK, total[b]);
}

/* Accumulators of a tile. A table whose products have a long latency has twice as many, so that there are enough of them
 * to be added to at the same time. */
typedef __m256i NAME(Sums)[STREAMS][TILE_COLUMNS];

/* sums += rows times a step of each column: of 4 inputs in bytes, or of 2 in int16. */
TARGET_INLINE void NAME(add_products)(NAME(Sums) sums, const __m256i* rows, const int32_t* steps, const int BYTES,
                                      const int BLOCKS, const int COLUMNS) {
#pragma GCC unroll 8
  for (int c = 0; c < COLUMNS; c++)
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; b++) {
      if (BYTES)
        DOT_U8_AT(sums[b][c], rows[b], steps + c);
      else
        DOT_S16_AT(sums[b][c], rows[b], steps + c);
      KEEP(sums[b][c]);
    }
}

/* A register of codes becomes two of int16, with inputs 0 and 1, and 2 and 3 of each row. The largest sum,
 * 128 * 127 * 32767, fits 32 bits. */
TARGET_INLINE void NAME(tiles_q8)(NAME(Blocks) w, const Activations* x, int c0, const int GROUP, const int BLOCKS,
                                  const int COLUMNS) {
  if (COLUMNS == 1) {
    NAME(column_q8)(w, x, c0, GROUP, BLOCKS);
    return;
  }
  enum { ZERO = -128 };
  const __m256i input0 = _mm256_broadcastsi128_si256(
                    _mm_setr_epi8(ZERO, 0, ZERO, 1, ZERO, 4, ZERO, 5, ZERO, 8, ZERO, 9, ZERO, 12, ZERO, 13)),
                input2 = _mm256_add_epi8(input0, _mm256_set1_epi16(0x0200));
  const int32_t* steps = (const int32_t*)x->steps + c0 * x->n_steps;
  const float* x_scales = x->scales + c0 * x->n_groups;
  __m256 total[STREAMS][TILE_COLUMNS];
  for (int b = 0; b < BLOCKS; b++)
    for (int c = 0; c < COLUMNS; c++) total[b][c] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, w.scales += ROW_BLOCK, x_scales += COLUMNS) {
    const int64_t ahead = stream_ahead((g + 1) * GROUP * ROW_BLOCK, w.code_bytes, BLOCKS, PREFETCH_L1);
    NAME(Sums) sums, more;
    for (int b = 0; b < BLOCKS; b++)
      for (int c = 0; c < COLUMNS; c++) sums[b][c] = more[b][c] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < GROUP / QUAD; j += 2, w.codes += 64, steps += 4 * COLUMNS) {
      for (int b = 0; b < BLOCKS; b++) NAME(prefetch_codes)(w.codes + b * w.code_bytes, ahead, BLOCKS);
#pragma GCC unroll 2
      for (int k = 0; k < 2; k++) {
        __m256i inputs0[STREAMS], inputs2[STREAMS];
#pragma GCC unroll 4
        for (int b = 0; b < BLOCKS; b++) {
          __m256i bytes = _mm256_loadu_si256((const __m256i*)(w.codes + b * w.code_bytes) + k);
          inputs0[b] = _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, input0), 8);
          inputs2[b] = _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, input2), 8);
        }
        NAME(add_products)(sums, inputs0, steps + 2 * k * COLUMNS, 0, BLOCKS, COLUMNS);
        NAME(add_products)(APART ? more : sums, inputs2, steps + (2 * k + 1) * COLUMNS, 0, BLOCKS, COLUMNS);
      }
    }
    for (int b = 0; b < BLOCKS; b++) {
      for (int c = 0; APART && c < COLUMNS; c++) sums[b][c] = _mm256_add_epi32(sums[b][c], more[b][c]);
      NAME(add_group)(total[b], sums[b], w.scales + b * w.n_scales, x_scales, COLUMNS);
    }
  }
  for (int b = 0; b < BLOCKS; b++)
    for (int c = 0; c < COLUMNS; c++) _mm256_storeu_ps(w.out + b * w.floats + (c0 + c) * ROW_BLOCK, total[b][c]);
}

/* Sums start with the columns' offsets. Where a group has more products than an accumulator holds, it has two offsets:
 * its low nibbles, which are its first half, are added up before the high ones. */
TARGET_INLINE void NAME(tiles_q4)(NAME(Blocks) w, const Activations* x, int c0, const int GROUP, const int BLOCKS,
                                  const int COLUMNS) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const int REGISTERS = GROUP / 8, PARTS = GROUP > OFFSET_INPUTS ? 2 : 1;
  const int32_t* steps = (const int32_t*)x->steps + c0 * x->n_steps;
  const float* x_scales = x->scales + c0 * x->n_groups;
  const int32_t* offsets = x->offsets + c0 * x->n_offsets;
  __m256 total[STREAMS][TILE_COLUMNS];
  for (int b = 0; b < BLOCKS; b++)
    for (int c = 0; c < COLUMNS; c++) total[b][c] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, w.scales += ROW_BLOCK, x_scales += COLUMNS) {
    const int64_t ahead = stream_ahead((g + 1) * GROUP * ROW_BLOCK / 2, w.code_bytes, BLOCKS,
                                       COLUMNS == 1 ? STREAM_AHEAD_Q4 : PREFETCH_L1);
    NAME(Sums) sums;
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++, offsets += COLUMNS) {
      NAME(Sums) low, high;
      for (int c = 0; c < COLUMNS; c++)
        for (int b = 0; b < BLOCKS; b++) low[b][c] = BROADCAST_STEP(offsets + c), high[b][c] = _mm256_setzero_si256();
#pragma GCC unroll 16
      for (int j = 0; j < REGISTERS; j++) {
        __m256i lows[STREAMS], highs[STREAMS];
#pragma GCC unroll 4
        for (int b = 0; b < BLOCKS; b++) {
          const char* codes = w.codes + b * w.code_bytes + j * 32;
          if (j % 2 == 0 && part == 0) NAME(prefetch_codes)(codes, ahead, BLOCKS);
          __m256i bytes = _mm256_loadu_si256((const __m256i*)codes);
          lows[b] = _mm256_and_si256(bytes, nibble);
          highs[b] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
        }
        if (part == 0) NAME(add_products)(low, lows, steps + j * COLUMNS, 1, BLOCKS, COLUMNS);
        if (part == PARTS - 1)
          NAME(add_products)(APART ? high : low, highs, steps + (REGISTERS + j) * COLUMNS, 1, BLOCKS, COLUMNS);
      }
      for (int b = 0; b < BLOCKS; b++)
        for (int c = 0; c < COLUMNS; c++) {
          __m256i sum = SUM_U8(low[b][c]);
          if (APART) sum = _mm256_add_epi32(sum, SUM_U8(high[b][c]));
          sums[b][c] = part ? _mm256_add_epi32(sums[b][c], sum) : sum;
        }
    }
    w.codes += REGISTERS * 32;
    steps += 2 * REGISTERS * COLUMNS;
    for (int b = 0; b < BLOCKS; b++) NAME(add_group)(total[b], sums[b], w.scales + b * w.n_scales, x_scales, COLUMNS);
  }
  for (int b = 0; b < BLOCKS; b++)
    for (int c = 0; c < COLUMNS; c++) _mm256_storeu_ps(w.out + b * w.floats + (c0 + c) * ROW_BLOCK, total[b][c]);
}

#define TILE_OF_BLOCK(KIND)                                                                                    \
  TARGET_INLINE void NAME(tile_##KIND)(const char* codes, const uint16_t* scales, const Activations* x, int c, \
                                       const int GROUP, const int COLUMNS, float* out) {                       \
    NAME(Blocks) block = {codes, scales, 0, 0, 0, out};                                                        \
    NAME(tiles_##KIND)(block, x, c, GROUP, 1, COLUMNS);                                                        \
  }
TILE_OF_BLOCK(q8)
TILE_OF_BLOCK(q4)
#undef TILE_OF_BLOCK

#define INTERLEAVED 1
#include "blocks.h"
#undef INTERLEAVED
