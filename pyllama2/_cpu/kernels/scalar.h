/* The table for any machine: plain C that says what each function computes. */
#ifndef PYLLAMA2_SCALAR_H
#define PYLLAMA2_SCALAR_H

#define NAME(f) f##_scalar
#define TARGET
#define MIN8(a, b) SELECT8((a) < (b), a, b)
#define MAX8(a, b) SELECT8((a) > (b), a, b)
#include "portable.h"

static void widen_f16_scalar(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = half_to_float(x[i]);
}

static void narrow_f16_scalar(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = float_to_half(x[i]);
}

static void matmul_f32_scalar(const float* w, int64_t w_stride, int rows, int64_t inputs, const Activations* x, int n,
                              float* out) {
  for (int c = 0; c < n; c++) {
    const float* column = x->values + c * x->value_stride;
    for (int r = 0; r < rows; r++) {
      const float* row = w + r * w_stride;
      v8f lanes = V8F(0.0f);
      int64_t i = 0;
      for (; i + 8 <= inputs; i += 8) lanes += LOAD8(row + i) * LOAD8(column + i);
      float sum = SUM8(lanes);
      for (; i < inputs; i++) sum += row[i] * column[i];
      out[c * ROW_BLOCK + r] = sum;
    }
  }
}

static void matmul_q8_scalar(const int8_t* codes, const uint16_t* scales, int64_t n_groups, int group_size,
                             const Activations* x, int n, float* out) {
  for (int c = 0; c < n; c++) {
    const int16_t* x_codes = (const int16_t*)x->codes + c * x->stride;
    const float* x_scales = x->scales + c * (x->stride / group_size);
    float total[ROW_BLOCK] = {0};
    for (int64_t g = 0; g < n_groups; g++) {
      const int8_t* w = codes + g * group_size * ROW_BLOCK;
      for (int r = 0; r < ROW_BLOCK; r++) {
        int32_t sum = 0;
        for (int i = 0; i < group_size; i++)
          sum += w[i / QUAD * ROW_BLOCK * QUAD + r * QUAD + i % QUAD] * x_codes[g * group_size + i];
        total[r] += (float)sum * (half_to_float(scales[g * ROW_BLOCK + r]) * x_scales[g]);
      }
    }
    memcpy(out + c * ROW_BLOCK, total, sizeof total);
  }
}

/* Groups of 64 and 128 hold inputs i and i + group_size/2 in one byte; a group of 32 activations is then the low or
 * the high nibbles of 8 quads, taken alternately. A group of 32 weights is one group of activations. */
static void matmul_q4_scalar(const uint8_t* codes, const uint16_t* scales, int64_t n_groups, int group_size,
                             const Activations* x, int n, float* out) {
  const int half = group_size / 2, pieces = group_size / INT8_GROUP;
  for (int c = 0; c < n; c++) {
    const int8_t* x_codes = (const int8_t*)x->codes + c * x->stride;
    const float* x_scales = x->scales + c * (x->stride / INT8_GROUP);
    float total[ROW_BLOCK] = {0};
    for (int64_t g = 0; g < n_groups; g++)
      for (int p = 0; p < pieces; p++) {
        int a = pieces == 1 ? 0 : p / 2 + p % 2 * (pieces / 2);
        const uint8_t* w = codes + g * half * ROW_BLOCK;
        const int8_t* xq = x_codes + g * group_size;
        for (int r = 0; r < ROW_BLOCK; r++) {
          int32_t sum = 0;
          for (int i = a * INT8_GROUP; i < (a + 1) * INT8_GROUP; i++) {
            int j = i % half; /* which byte */
            uint8_t byte = w[j / QUAD * ROW_BLOCK * QUAD + r * QUAD + j % QUAD];
            sum += ((i < half ? byte & 15 : byte >> 4) - 8) * xq[i];
          }
          total[r] += (float)sum * (half_to_float(scales[g * ROW_BLOCK + r]) * x_scales[g * pieces + a]);
        }
      }
    memcpy(out + c * ROW_BLOCK, total, sizeof total);
  }
}

static const Kernels kernels_scalar = {
    "scalar",          matmul_f32_scalar,   matmul_q8_scalar,         matmul_q4_scalar,         widen_f16_scalar,
    narrow_f16_scalar, rms_norm_scalar,     quantize_int8_scalar,     quantize_int16_scalar,    silu_product_scalar,
    exp_sum_scalar,    weighted_sum_scalar, quantize_group_q8_scalar, quantize_group_q4_scalar,
};

#endif
