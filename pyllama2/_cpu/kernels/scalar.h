/* The table for any machine: plain C that says what each function computes. */
#ifndef PYLLAMA2_SCALAR_H
#define PYLLAMA2_SCALAR_H

#define NAME(f) f##_scalar
#define TARGET
#define MIN8(a, b) SELECT8((a) < (b), a, b)
#define MAX8(a, b) SELECT8((a) > (b), a, b)
#include "portable.h"

/* Vectors of 4 floats, which every machine has in some form. */
INLINE v4f load_half4(const uint16_t* p) {
  return (v4f){half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}

INLINE v4f exponent4(v4f x) { return (v4f)((v4i)x << 23); }

#define TARGET_INLINE INLINE
#define KEEP(x)
#define WIDE v4f
#define WIDE_ROWS 4
#define wide_set(x) ((v4f){(x), (x), (x), (x)})
#define wide_zero_float() wide_set(0.0f)
#define wide_load(p) LOAD4(p)
#define wide_store(p, v) STORE4(p, v)
#define wide_broadcast(p) wide_set(*(p))
#define wide_add(a, b) ((a) + (b))
#define wide_sub(a, b) ((a) - (b))
#define wide_mul(a, b) ((a) * (b))
#define wide_fma(a, b, c) ((a) * (b) + (c))
#define wide_max(a, b) max4(a, b)
#define wide_min(a, b) min4(a, b)
#define wide_exponent(a) exponent4(a)
#define wide_load_half(p) load_half4(p)
#define wide_load_codes(p) ((v4f){(float)(p)[0], (float)(p)[1], (float)(p)[2], (float)(p)[3]})
#define ATTEND_COLUMNS 4
#define ATTEND_REGISTERS 8
#include "attention.h"
#include "quantize.h"

static void widen_f16_scalar(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = half_to_float(x[i]);
}

static void narrow_f16_scalar(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = float_to_half(x[i]);
}

static void block_float_scalar(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  for (int c = 0; c < n; c++)
    for (int64_t r = block * ROW_BLOCK; r < (block + 1) * ROW_BLOCK; r++, out++) {
      const float* column = x->values + c * x->value_stride;
      float lanes[LANES] = {0};
      for (int64_t i = 0; r < w->rows && i < w->columns; i++) {
        int64_t at = r * w->columns + i;
        float weight = w->kind == FLOAT16 ? half_to_float(((const uint16_t*)w->data)[at]) : ((const float*)w->data)[at];
        lanes[i % LANES] += weight * column[i];
      }
      *out = SUM16(lanes);
    }
}

static void block_q8_scalar(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  const int8_t* codes = (const int8_t*)w->data + block * block_bytes(w);
  const uint16_t* scales = w->scales + block * groups_of(w) * ROW_BLOCK;
  for (int c = 0; c < n; c++)
    for (int r = 0; r < ROW_BLOCK; r++) {
      const int16_t* column = (const int16_t*)x->steps + c * x->n_steps * 2;
      float total = 0;
      for (int64_t g = 0; g < x->n_groups; g++) {
        int32_t sum = 0;
        for (int64_t i = g * w->group_size; i < (g + 1) * w->group_size; i++)
          sum += codes[i / QUAD * ROW_BLOCK * QUAD + r * QUAD + i % QUAD] * column[i];
        total = fmaf((float)sum, half_to_float(scales[g * ROW_BLOCK + r]) * x->scales[c * x->n_groups + g], total);
      }
      out[c * ROW_BLOCK + r] = total;
    }
}

static void block_q4_scalar(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  const uint8_t* codes = (const uint8_t*)w->data + block * block_bytes(w);
  const uint16_t* scales = w->scales + block * groups_of(w) * ROW_BLOCK;
  const int half = w->group_size / 2; /* a byte holds inputs j and half + j of a group */
  for (int c = 0; c < n; c++)
    for (int r = 0; r < ROW_BLOCK; r++) {
      const int8_t* column = (const int8_t*)x->steps + c * x->n_steps * 4;
      float total = 0;
      for (int64_t g = 0; g < x->n_groups; g++) {
        int32_t sum = x->offsets[c * x->n_groups + g];
        for (int j = 0; j < half; j++) {
          uint8_t byte = codes[(g * half + j / QUAD * QUAD) * ROW_BLOCK + r * QUAD + j % QUAD];
          sum += (byte & 15) * column[g * w->group_size + j] + (byte >> 4) * column[g * w->group_size + half + j];
        }
        total = fmaf((float)sum, half_to_float(scales[g * ROW_BLOCK + r]) * x->scales[c * x->n_groups + g], total);
      }
      out[c * ROW_BLOCK + r] = total;
    }
}

static const Kernels kernels_scalar = {
    .name = "scalar",
    .tile_columns = 1,
    .products =
        {
            [FLOAT32] = {.prepare = prepare_float_scalar, .block = block_float_scalar},
            [FLOAT16] = {.prepare = prepare_float_scalar, .block = block_float_scalar},
            [Q8] = {.prepare = prepare_q8_scalar, .block = block_q8_scalar},
            [Q4] = {.prepare = prepare_q4_scalar, .block = block_q4_scalar},
        },
    .widen_f16 = widen_f16_scalar,
    .narrow_f16 = narrow_f16_scalar,
    .rms_norm = rms_norm_scalar,
    .silu_product = silu_product_scalar,
    .attend = attend_scalar,
    .merge_spans = merge_spans_scalar,
    .quantize_vector = quantize_vector_scalar,
    .quantize_group_q8 = quantize_group_q8_scalar,
    .quantize_columns_q4 = quantize_columns_q4_scalar,
};

#include "undefine.h"

#endif
