/* Products of blocks of 8 rows with a few columns, in 128-bit NEON vectors. A table includes this file with
 *
 *   NAME, TARGET, TARGET_INLINE
 *   TILE_COLUMNS, FLOAT_COLUMNS     see blocks.h
 *   KEEP(x)                         keeps an accumulator in its register
 *   Q4Sums                          accumulators of 4 rows of q4
 *   ZERO_Q4(sums, offset)           start of a group; unsigned codes need the offset, see types.h
 *   UNPACK_Q4(bytes, low, high)     codes of 4 rows x 4 inputs from each nibble
 *   DOT_Q4(sums, codes, x, i)       sums += codes times int8 inputs 4 i .. 4 i + 3 of x
 *   KEEP_Q4(sums)                   as KEEP
 *   TOTAL_Q4(sums)                  4 int32, one per row
 *
 * A single column has several chains of additions for each row: integers may be added in any order.
 */

TARGET_INLINE float32x4_t NAME(load_half)(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }

TARGET_INLINE float32x4_t NAME(load_weights)(const void* row, int64_t i, const int HALF) {
  if (HALF) return NAME(load_half)((const uint16_t*)row + i);
  return vld1q_f32((const float*)row + i);
}

/* Adds 16 lanes in the order of SUM16. */
TARGET_INLINE float NAME(sum_lanes)(const float32x4_t lanes[4]) {
  float32x4_t sum = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
  return vpadds_f32(vadd_f32(vget_low_f32(sum), vget_high_f32(sum)));
}

/* sum += 16 inputs of ROWS rows times COLUMNS columns. */
TARGET_INLINE void NAME(multiply_float)(const void* const row[2], int64_t i, const float* x, int64_t x_stride,
                                        const int ROWS, const int COLUMNS, const int HALF,
                                        float32x4_t sum[2][FLOAT_COLUMNS][4]) {
#pragma GCC unroll 4
  for (int part = 0; part < 4; part++) {
    float32x4_t column[FLOAT_COLUMNS];
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; c++) column[c] = vld1q_f32(x + c * x_stride + 4 * part);
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++) {
      float32x4_t weights = NAME(load_weights)(row[r], i + 4 * part, HALF);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) {
        sum[r][c][part] = vfmaq_f32(sum[r][c][part], weights, column[c]);
        KEEP(sum[r][c][part]);
      }
    }
  }
}

/* ROWS rows times COLUMNS columns. first: the rows come from memory, which makes no difference here. */
TARGET_INLINE void NAME(tile_float)(const void* const row[2], int64_t inputs, const float* x, int64_t x_stride,
                                    const int ROWS, const int COLUMNS, const int HALF, int first, float* out) {
  (void)first;
  float32x4_t sum[2][FLOAT_COLUMNS][4];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS; c++)
      for (int part = 0; part < 4; part++) sum[r][c][part] = vdupq_n_f32(0.0f);
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) NAME(multiply_float)(row, i, x + i, x_stride, ROWS, COLUMNS, HALF, sum);
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
    for (int r = 0; r < ROWS; r++) out[c * ROW_BLOCK + r] = NAME(sum_lanes)(sum[r][c]);
}

/* total += sums of a group times the scales of rows and column: 4 rows. */
TARGET_INLINE float32x4_t NAME(add_group)(float32x4_t total, int32x4_t sums, const uint16_t* scales, float x_scale) {
  return vfmaq_f32(total, vcvtq_f32_s32(sums), vmulq_n_f32(NAME(load_half)(scales), x_scale));
}

/* A load of 4 parts gives a register of 8 rows for each of 4 inputs, which is then a factor of its own. The largest sum
 * of a group, 128 * 127 * 32767, fits 32 bits. */
TARGET_INLINE void NAME(tile_q8)(const int8_t* w, const uint16_t* scales, const Activations* x, int c0, const int GROUP,
                                 const int COLUMNS, float* out) {
  const int CHAINS = COLUMNS == 1 ? 4 : COLUMNS == 2 ? 2 : 1;
  const int64_t stride = x->n_steps * 2;
  const int16_t* xq = (const int16_t*)x->steps + c0 * stride;
  const float* xs = x->scales + c0 * x->n_groups;
  float32x4_t total[TILE_COLUMNS][2];
  for (int c = 0; c < COLUMNS; c++) total[c][0] = total[c][1] = vdupq_n_f32(0.0f);
  for (int64_t g = 0; g < x->n_groups; g++, scales += ROW_BLOCK) {
    int32x4_t low[TILE_COLUMNS][4], high[TILE_COLUMNS][4];
    for (int c = 0; c < COLUMNS; c++)
      for (int i = 0; i < CHAINS; i++) low[c][i] = high[c][i] = vdupq_n_s32(0);
#pragma GCC unroll 2
    for (int j = 0; j < GROUP / QUAD; j++, w += 32, xq += QUAD) {
      if (j % 2 == 0) ask_ahead(w);
      const int8x8x4_t codes = vld4_s8(w);
      int16x4_t inputs[TILE_COLUMNS];
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) inputs[c] = vld1_s16(xq + c * stride);
#define MULTIPLY(i)                                                                              \
  do {                                                                                           \
    int16x8_t rows = vmovl_s8(codes.val[i]);                                                     \
    _Pragma("GCC unroll 8") for (int c = 0; c < COLUMNS; c++) {                                  \
      low[c][i % CHAINS] = vmlal_lane_s16(low[c][i % CHAINS], vget_low_s16(rows), inputs[c], i); \
      high[c][i % CHAINS] = vmlal_high_lane_s16(high[c][i % CHAINS], rows, inputs[c], i);        \
      KEEP(low[c][i % CHAINS]);                                                                  \
      KEEP(high[c][i % CHAINS]);                                                                 \
    }                                                                                            \
  } while (0)
      MULTIPLY(0);
      MULTIPLY(1);
      MULTIPLY(2);
      MULTIPLY(3);
#undef MULTIPLY
    }
    for (int c = 0; c < COLUMNS; c++) {
      for (int i = 1; i < CHAINS; i++) {
        low[c][0] = vaddq_s32(low[c][0], low[c][i]);
        high[c][0] = vaddq_s32(high[c][0], high[c][i]);
      }
      const float x_scale = xs[c * x->n_groups + g];
      total[c][0] = NAME(add_group)(total[c][0], low[c][0], scales, x_scale);
      total[c][1] = NAME(add_group)(total[c][1], high[c][0], scales + 4, x_scale);
    }
  }
  for (int c = 0; c < COLUMNS; c++) {
    vst1q_f32(out + (c0 + c) * ROW_BLOCK, total[c][0]);
    vst1q_f32(out + (c0 + c) * ROW_BLOCK + 4, total[c][1]);
  }
}

/* A register holds 4 rows x 4 inputs. Of the inputs, a register holds those of 4 registers of rows. */
TARGET_INLINE void NAME(tile_q4)(const uint8_t* w, const uint16_t* scales, const Activations* x, int c0,
                                 const int GROUP, const int COLUMNS, float* out) {
  const int HIGH = COLUMNS <= 2; /* high nibbles have accumulators of their own */
  const int64_t stride = x->n_steps * 4;
  const int8_t* xq = (const int8_t*)x->steps + c0 * stride;
  const float* xs = x->scales + c0 * x->n_groups;
  const int32_t* offsets = x->offsets + c0 * x->n_groups;
  float32x4_t total[TILE_COLUMNS][2];
  for (int c = 0; c < COLUMNS; c++) total[c][0] = total[c][1] = vdupq_n_f32(0.0f);
  for (int64_t g = 0; g < x->n_groups; g++, scales += ROW_BLOCK, xq += GROUP) {
    Q4Sums sums[TILE_COLUMNS][2][2]; /* [column][nibble][rows 0-3, rows 4-7] */
    for (int c = 0; c < COLUMNS; c++)
      for (int r = 0; r < 2; r++) {
        ZERO_Q4(sums[c][0][r], offsets[c * x->n_groups + g]);
        ZERO_Q4(sums[c][1][r], 0);
      }
    for (int j = 0; j < GROUP / 2; j += 4 * QUAD) {
      int8x16_t inputs[TILE_COLUMNS][2];
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; c++) {
        inputs[c][0] = vld1q_s8(xq + c * stride + j);
        inputs[c][1] = vld1q_s8(xq + c * stride + j + GROUP / 2);
      }
#define MULTIPLY(i)                                             \
  do {                                                          \
    int8x16_t low[2], high[2];                                  \
    UNPACK_Q4(vld1q_u8(w), low[0], high[0]);                    \
    UNPACK_Q4(vld1q_u8(w + 16), low[1], high[1]);               \
    w += 32;                                                    \
    _Pragma("GCC unroll 8") for (int c = 0; c < COLUMNS; c++) { \
      DOT_Q4(sums[c][0][0], low[0], inputs[c][0], i);           \
      DOT_Q4(sums[c][0][1], low[1], inputs[c][0], i);           \
      KEEP_Q4(sums[c][0][0]);                                   \
      KEEP_Q4(sums[c][0][1]);                                   \
      DOT_Q4(sums[c][HIGH][0], high[0], inputs[c][1], i);       \
      DOT_Q4(sums[c][HIGH][1], high[1], inputs[c][1], i);       \
      KEEP_Q4(sums[c][HIGH][0]);                                \
      KEEP_Q4(sums[c][HIGH][1]);                                \
    }                                                           \
  } while (0)
      ask_ahead(w);
      MULTIPLY(0);
      MULTIPLY(1);
      ask_ahead(w);
      MULTIPLY(2);
      MULTIPLY(3);
#undef MULTIPLY
    }
    for (int c = 0; c < COLUMNS; c++)
      for (int r = 0; r < 2; r++) {
        int32x4_t sum = vaddq_s32(TOTAL_Q4(sums[c][0][r]), TOTAL_Q4(sums[c][1][r]));
        total[c][r] = NAME(add_group)(total[c][r], sum, scales + 4 * r, xs[c * x->n_groups + g]);
      }
  }
  for (int c = 0; c < COLUMNS; c++) {
    vst1q_f32(out + (c0 + c) * ROW_BLOCK, total[c][0]);
    vst1q_f32(out + (c0 + c) * ROW_BLOCK + 4, total[c][1]);
  }
}

#define INTERLEAVED 0
#include "blocks.h"
#undef INTERLEAVED
