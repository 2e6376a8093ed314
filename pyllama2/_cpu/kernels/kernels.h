/* The inner loops of the CPU backend: one table of functions per instruction set.
 *
 * vector.h     vector types, and float16 by hand
 * portable.h   steps written once with vector types, included by every table
 * scalar.h     the table for any machine, and the definition of what each function computes
 * avx2.h       the table for x86-64 with AVX2, FMA and F16C
 *
 * Nothing is compiled for the build machine's CPU: functions carry target attributes, and
 * kernels_find() takes the best table that the CPU can run. All floating-point contraction is off
 * (setup.py), so whatever is not an explicit fused multiply-add gives the same bits everywhere;
 * q8 and q4 products are such.
 *
 * Called by the Cython modules of _cpu; layouts are those of weights.py.
 */
#ifndef PYLLAMA2_KERNELS_H
#define PYLLAMA2_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
  ROW_BLOCK = 8, /* rows of a matrix that are interleaved, and that one call computes */
  QUAD = 4, /* inputs of one row that lie together */
  INT8_GROUP = 32, /* inputs of an int8 activation vector that share a scale */
  MAX_GROUP = 128, /* largest group of weights; quantized vectors are padded to a multiple of it */
};

/* n columns (one per token) that a matrix is multiplied with. values is always there; the quantized form,
 * value = code * scale, in the type that the matrix asks for:
 *
 *   q4   int8 codes in groups of INT8_GROUP. Its own error is far larger.
 *   q8   int16 codes in groups of the matrix's. int8 would add an error larger than that of the weights (on SmolLM2 a
 *        mean KL divergence of 0.0037 to their 0.0025), and signed bytes must be widened for the product anyhow.
 */
typedef struct {
  const float* values; /* [n][value_stride] */
  const void* codes; /* [n][stride] int8 or int16, zeros beyond the last input */
  const float* scales; /* [n][stride / group] */
  const int32_t* sums; /* q4: [n][stride / INT8_GROUP], sum of the codes of a group */
  int64_t value_stride, stride;
} Activations;

typedef struct {
  const char* name;

  /* out[c][r] = sum over i of w[r][i] * x[c][i], for up to 8 rows; out is [n][8].
   * The order of additions for one (r, c) depends on the number of inputs only. */
  void (*matmul_f32)(const float* w, int64_t w_stride, int rows, int64_t inputs, const Activations* x, int n,
                     float* out);
  /* The same for one interleaved block of 8 rows. */
  void (*matmul_q8)(const int8_t* codes, const uint16_t* scales, int64_t n_groups, int group_size, const Activations* x,
                    int n, float* out);
  void (*matmul_q4)(const uint8_t* codes, const uint16_t* scales, int64_t n_groups, int group_size,
                    const Activations* x, int n, float* out);

  void (*widen_f16)(const uint16_t* x, float* y, int64_t n);
  void (*narrow_f16)(const float* x, uint16_t* y, int64_t n);

  /* y = w * x / sqrt(mean(x^2) + eps) */
  void (*rms_norm)(const float* x, const float* w, float eps, int64_t n, float* y);
  /* One activation vector of n numbers in its quantized form, padded to stride. */
  void (*quantize_int8)(const float* x, int64_t n, int64_t stride, int8_t* codes, float* scales, int32_t* sums);
  void (*quantize_int16)(const float* x, int64_t n, int group_size, int64_t stride, int16_t* codes, float* scales);
  /* gate = silu(gate) * x */
  void (*silu_product)(float* gate, const float* x, int64_t n);
  /* scores = exp(scores - maximum); returns their sum */
  float (*exp_sum)(float* scores, float maximum, int64_t n);
  /* out = out * keep + sum over s of p[s] * values[s], values is [n][dim] */
  void (*weighted_sum)(float* out, float keep, const float* p, const float* values, int64_t n, int64_t dim);

  /* Codes of one group of a row. q8: -127..127; q4: 0..15. Returns the scale, a float16's value, or NaN when
   * the group is not finite or does not fit a float16 scale. */
  float (*quantize_group_q8)(const float* x, int group_size, int8_t* codes);
  float (*quantize_group_q4)(const float* x, int group_size, uint8_t* codes);
} Kernels;

#include "vector.h"

#include "scalar.h"
#if defined(__x86_64__)
#include "avx2.h"
#endif

/* The table called name, or the best one when name is NULL or empty; NULL when this CPU cannot run it. */
static inline const Kernels* kernels_find(const char* name) {
  const Kernels* tables[] = {
#if defined(__x86_64__)
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? &kernels_avx2
                                                                                                        : NULL,
#endif
      &kernels_scalar,
  };
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
    if (tables[i] && (!name || !*name || strcmp(tables[i]->name, name) == 0)) return tables[i];
  return NULL;
}

#endif
