/* The table for x86-64 with AVX2, FMA and F16C.
 *
 * One 32-byte register holds 8 rows x 4 inputs of a quantized matrix. Each tile function takes its number of columns
 * as a constant and is inlined, so that its accumulators live in registers; what one column computes does not depend
 * on that number.
 */
#ifndef PYLLAMA2_AVX2_H
#define PYLLAMA2_AVX2_H

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))
/* Keeps the accumulator in its register here: GCC otherwise moves the additions below all the products and spills. */
#define KEEP(x) __asm__("" : "+x"(x))

#define NAME(f) f##_avx2
#define TARGET AVX2
#define MIN8(a, b) ((v8f)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define MAX8(a, b) ((v8f)_mm256_max_ps((__m256)(a), (__m256)(b)))
#include "portable.h"

AVX2 static void widen_f16_avx2(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
  for (; i < n; i++) y[i] = half_to_float(x[i]);
}

AVX2 static void narrow_f16_avx2(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; i++) y[i] = float_to_half(x[i]);
}

AVX2_INLINE float sum_lanes(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* Four rows (the last repeated when there are fewer) times COLUMNS columns. */
AVX2_INLINE void tile_f32(const float* const w[4], int rows, int64_t inputs, const float* x, int64_t x_stride,
                          const int COLUMNS, float* out) {
  __m256 sum[4][3];
  for (int r = 0; r < 4; r++)
    for (int c = 0; c < COLUMNS; c++) sum[r][c] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= inputs; i += 8)
    for (int c = 0; c < COLUMNS; c++) {
      __m256 column = _mm256_loadu_ps(x + c * x_stride + i);
      for (int r = 0; r < 4; r++) sum[r][c] = _mm256_fmadd_ps(_mm256_loadu_ps(w[r] + i), column, sum[r][c]);
    }
  if (i < inputs) {
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(inputs - i)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int c = 0; c < COLUMNS; c++) {
      __m256 column = _mm256_maskload_ps(x + c * x_stride + i, mask);
      for (int r = 0; r < 4; r++) sum[r][c] = _mm256_fmadd_ps(_mm256_maskload_ps(w[r] + i, mask), column, sum[r][c]);
    }
  }
  for (int c = 0; c < COLUMNS; c++)
    for (int r = 0; r < rows; r++) out[c * ROW_BLOCK + r] = sum_lanes(sum[r][c]);
}

AVX2 static void matmul_f32_avx2(const float* w, int64_t w_stride, int rows, int64_t inputs, const Activations* x,
                                 int n, float* out) {
  for (int r0 = 0; r0 < rows; r0 += 4) {
    int count = rows - r0 < 4 ? rows - r0 : 4;
    const float* row[4];
    for (int r = 0; r < 4; r++) row[r] = w + (r0 + (r < count ? r : count - 1)) * w_stride;
    int c = 0;
    for (; c + 3 <= n; c += 3)
      tile_f32(row, count, inputs, x->values + c * x->value_stride, x->value_stride, 3, out + c * ROW_BLOCK + r0);
    const float* rest = x->values + c * x->value_stride;
    if (n - c == 2) tile_f32(row, count, inputs, rest, x->value_stride, 2, out + c * ROW_BLOCK + r0);
    if (n - c == 1) tile_f32(row, count, inputs, rest, x->value_stride, 1, out + c * ROW_BLOCK + r0);
  }
}

AVX2_INLINE __m256i broadcast4(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

/* total += sums * (weight scales * activation scale), with no fused operation: the same bits in every table */
AVX2_INLINE __m256 add_scaled(__m256 total, __m256i sums, __m256 w_scale, float x_scale) {
  return _mm256_add_ps(total, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(w_scale, _mm256_set1_ps(x_scale))));
}

AVX2_INLINE __m256i broadcast4x16(const int16_t* p) {
  int64_t four;
  memcpy(&four, p, 8);
  return _mm256_set1_epi64x(four);
}

/* Weights are widened to 16 bits: the register of 8 rows x 4 inputs becomes two of 4 rows x 4 inputs, and adding
 * neighbours at the end of a group gives 8 sums. The largest, 128 * 127 * 32767, fits 32 bits. */
AVX2_INLINE void tile_q8(const int8_t* w, const uint16_t* scales, int64_t n_groups, const int group_size,
                         const Activations* x, int c0, const int COLUMNS, float* out) {
  const int64_t x_groups = x->stride / group_size;
  const int16_t* xq = (const int16_t*)x->codes + c0 * x->stride;
  const float* xs = x->scales + c0 * x_groups;
  __m256 total[4];
  for (int c = 0; c < COLUMNS; c++) total[c] = _mm256_setzero_ps();
  for (int64_t g = 0; g < n_groups; g++, scales += ROW_BLOCK) {
    __m256i upper[4], lower[4];
    for (int c = 0; c < COLUMNS; c++) upper[c] = lower[c] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < group_size / QUAD; j++, w += 32, xq += QUAD) {
      __m256i rows0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w));
      __m256i rows4 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 16)));
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; c++) {
        __m256i input = broadcast4x16(xq + c * x->stride);
        lower[c] = _mm256_add_epi32(lower[c], _mm256_madd_epi16(rows0, input));
        upper[c] = _mm256_add_epi32(upper[c], _mm256_madd_epi16(rows4, input));
        KEEP(lower[c]);
        KEEP(upper[c]);
      }
    }
    __m256 w_scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)scales));
    for (int c = 0; c < COLUMNS; c++) {
      /* hadd works within 128-bit halves: rows 0 1 4 5 | 2 3 6 7 */
      __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(lower[c], upper[c]), _MM_SHUFFLE(3, 1, 2, 0));
      total[c] = add_scaled(total[c], sums, w_scale, xs[c * x_groups + g]);
    }
  }
  for (int c = 0; c < COLUMNS; c++) _mm256_storeu_ps(out + (c0 + c) * ROW_BLOCK, total[c]);
}

/* Unsigned nibbles times signed bytes: sums of 8 products in 16 bits are at most 8 * 2 * 15 * 127 = 30480. They start
 * at 0 and the zero point of 8 is taken off by the sum of the activations. */
AVX2_INLINE void tile_q4(const uint8_t* w, const uint16_t* scales, int64_t n_groups, const int group_size,
                         const Activations* x, int c0, const int COLUMNS, float* out) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const int pieces = group_size / INT8_GROUP, registers = group_size / 8;
  const int64_t x_groups = x->stride / INT8_GROUP;
  const int8_t* xq = (const int8_t*)x->codes + c0 * x->stride;
  const float* xs = x->scales + c0 * x_groups;
  const int32_t* x_sums = x->sums + c0 * x_groups;
  __m256 total[4];
  for (int c = 0; c < COLUMNS; c++) total[c] = _mm256_setzero_ps();
  for (int64_t g = 0; g < n_groups; g++, scales += ROW_BLOCK, xq += group_size, xs += pieces, x_sums += pieces) {
    __m256 w_scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)scales));
    for (int j0 = 0; j0 < registers; j0 += 8) {
      const int count = registers < 8 ? registers : 8;
      __m256i low[4], high[4];
      for (int c = 0; c < COLUMNS; c++) low[c] = high[c] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int j = 0; j < count; j++, w += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i*)w);
        __m256i lows = _mm256_and_si256(bytes, nibble), highs = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
          const int8_t* input = xq + c * x->stride + QUAD * (j0 + j);
          low[c] = _mm256_add_epi16(low[c], _mm256_maddubs_epi16(lows, broadcast4(input)));
          high[c] = _mm256_add_epi16(high[c], _mm256_maddubs_epi16(highs, broadcast4(input + group_size / 2)));
          KEEP(low[c]);
          KEEP(high[c]);
        }
      }
      for (int c = 0; c < COLUMNS; c++) {
        const int a = j0 / 8; /* the low nibbles' group of activations */
        __m256i sums = _mm256_madd_epi16(low[c], ones), sums_high = _mm256_madd_epi16(high[c], ones);
        if (pieces == 1) {
          sums = _mm256_add_epi32(sums, sums_high);
        }
        sums = _mm256_sub_epi32(sums, _mm256_set1_epi32(8 * x_sums[c * x_groups + a]));
        total[c] = add_scaled(total[c], sums, w_scale, xs[c * x_groups + a]);
        if (pieces > 1) {
          const int b = a + pieces / 2;
          sums_high = _mm256_sub_epi32(sums_high, _mm256_set1_epi32(8 * x_sums[c * x_groups + b]));
          total[c] = add_scaled(total[c], sums_high, w_scale, xs[c * x_groups + b]);
        }
      }
    }
  }
  for (int c = 0; c < COLUMNS; c++) _mm256_storeu_ps(out + (c0 + c) * ROW_BLOCK, total[c]);
}

/* Sweeps n columns in tiles of four, and the rest in one tile; TILE(first column, constant number of columns). */
#define SWEEP_COLUMNS(n, TILE)             \
  int c = 0;                               \
  for (; c + 4 <= (n); c += 4) TILE(c, 4); \
  if ((n) - c == 3) TILE(c, 3);            \
  if ((n) - c == 2) TILE(c, 2);            \
  if ((n) - c == 1) TILE(c, 1)

/* A function for each group size, as a constant. */
#define TILE_Q8(first, columns) tile_q8(codes, scales, n_groups, GROUP, x, first, columns, out)
#define TILE_Q4(first, columns) tile_q4(codes, scales, n_groups, GROUP, x, first, columns, out)
#define MATMUL(TYPE, CODE, TILE, GROUP_SIZE)                                                                         \
  AVX2 static void matmul_##TYPE##_g##GROUP_SIZE##_avx2(const CODE* codes, const uint16_t* scales, int64_t n_groups, \
                                                        const Activations* x, int n, float* out) {                   \
    enum { GROUP = GROUP_SIZE };                                                                                     \
    SWEEP_COLUMNS(n, TILE);                                                                                          \
  }
MATMUL(q8, int8_t, TILE_Q8, 32)
MATMUL(q8, int8_t, TILE_Q8, 64)
MATMUL(q8, int8_t, TILE_Q8, 128)
MATMUL(q4, uint8_t, TILE_Q4, 32)
MATMUL(q4, uint8_t, TILE_Q4, 64)
MATMUL(q4, uint8_t, TILE_Q4, 128)

AVX2 static void matmul_q8_avx2(const int8_t* codes, const uint16_t* scales, int64_t n_groups, int group_size,
                                const Activations* x, int n, float* out) {
  if (group_size == 32) matmul_q8_g32_avx2(codes, scales, n_groups, x, n, out);
  if (group_size == 64) matmul_q8_g64_avx2(codes, scales, n_groups, x, n, out);
  if (group_size == 128) matmul_q8_g128_avx2(codes, scales, n_groups, x, n, out);
}

AVX2 static void matmul_q4_avx2(const uint8_t* codes, const uint16_t* scales, int64_t n_groups, int group_size,
                                const Activations* x, int n, float* out) {
  if (group_size == 32) matmul_q4_g32_avx2(codes, scales, n_groups, x, n, out);
  if (group_size == 64) matmul_q4_g64_avx2(codes, scales, n_groups, x, n, out);
  if (group_size == 128) matmul_q4_g128_avx2(codes, scales, n_groups, x, n, out);
}

static const Kernels kernels_avx2 = {
    "avx2",          matmul_f32_avx2,   matmul_q8_avx2,         matmul_q4_avx2,         widen_f16_avx2,
    narrow_f16_avx2, rms_norm_avx2,     quantize_int8_avx2,     quantize_int16_avx2,    silu_product_avx2,
    exp_sum_avx2,    weighted_sum_avx2, quantize_group_q8_avx2, quantize_group_q4_avx2,
};

#endif
