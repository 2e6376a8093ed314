/* Loops over the logits of one token, with one table per instruction set. All tables give the same bits: sums have a
 * fixed number of lanes, and setup.py forbids the compiler to fuse a multiplication and an addition.
 *
 * wide.h   the loops, written once for vectors of any width
 *
 * A weight is e^((logit - highest) / temperature): a probability that is not divided by the sum yet.
 */
#ifndef PYLLAMA2_SAMPLING_LOOPS_H
#define PYLLAMA2_SAMPLING_LOOPS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  ROW = 16, /* logits that are looked at together */
  GROUP = 16, /* rows whose logits number l form one group */
};

typedef struct {
  float highest, lowest;
  int nan; /* whether there is a NaN, which highest and lowest leave out */
} Extremes;

typedef struct {
  const char* name;
  Extremes (*extremes)(const float* x, int64_t n);
  /* The largest logit of each group in the n / 256 full blocks of 16 rows, then the logits that are left over. Returns
   * the number of both. */
  int64_t (*group_maxima)(const float* x, int64_t n, float* maxima);
  /* Indices of the logits that are at least cut, ascending. Returns their number. */
  int64_t (*at_least)(const float* x, int64_t n, float cut, int32_t* places);
  /* Sum of the weights of the logits below cut, in float32. Its error is less than 1e-5 of it plus 1e-9. */
  double (*rough_sum_below)(const float* x, int64_t n, float highest, double temperature, float cut);
  /* Sum of the weights of the logits below cut, in float64. */
  double (*sum_below)(const float* x, int64_t n, double highest, double temperature, float cut);
  /* x = e^x in place, for x of at most 0, within a unit in the last place; 0 for x below -708. */
  void (*exponentials)(double* x, int64_t n);
} Loops;

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

#define SUFFIX scalar
#define TARGET
#define DOUBLES 2
#include "wide.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define SUFFIX avx2
#define TARGET __attribute__((target("avx2")))
#define DOUBLES 4
#define MAX(a, b) ((FLOATS)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MIN(a, b) ((FLOATS)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define BITS_AT_LEAST(p, cut) \
  ((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), _mm256_set1_ps(cut), _CMP_GE_OQ)))
#include "wide.h"

#define SUFFIX avx512
#define TARGET __attribute__((target("avx512f,avx512dq")))
#define DOUBLES 8
#define MAX(a, b) ((FLOATS)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MIN(a, b) ((FLOATS)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define BITS_AT_LEAST(p, cut) ((unsigned)_mm512_cmp_ps_mask(_mm512_loadu_ps(p), _mm512_set1_ps(cut), _CMP_GE_OQ))
#include "wide.h"
#endif

/* The table for this CPU. PYLLAMA2_CPU_ISA can ask for a smaller instruction set, by the CPU backend's names. */
static inline const Loops* loops_find(void) {
#if defined(__x86_64__)
  const char* name = getenv("PYLLAMA2_CPU_ISA");
  int any = !name || !*name;
  if ((any || strcmp(name, "avx512") == 0) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    return &loops_avx512;
  if ((any || strncmp(name, "avx", 3) == 0) && __builtin_cpu_supports("avx2")) return &loops_avx2;
#endif
  return &loops_scalar;
}

/* An unsigned integer for each double, in the order of the doubles; 0.0 and -0.0 differ. */
INLINE uint64_t ordered_bits(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & 0x8000000000000000u ? ~bits : bits | 0x8000000000000000u;
}

INLINE double from_ordered_bits(uint64_t bits) {
  bits = bits & 0x8000000000000000u ? bits & 0x7fffffffffffffffu : ~bits;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

#endif
