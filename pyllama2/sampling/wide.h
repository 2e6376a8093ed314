/* The loops of loops.h. Each table includes this file with
 *
 *   SUFFIX, TARGET, DOUBLES    its name, the attribute that selects its instructions, doubles in one vector
 *   MAX, MIN                   of two vectors; b where a is NaN
 *   BITS_AT_LEAST              a bit for each lane that is at least cut
 *
 * The last three are written out below where they are not defined. Compilers do not turn that into one instruction.
 */

#define NAME(f) JOIN(f, SUFFIX)
#define WIDTH (2 * DOUBLES) /* floats in one vector */
#define PARTS (ROW / WIDTH) /* vectors of floats in a row */
#define HALVES (8 / DOUBLES) /* vectors of 8 doubles */
#define FLOATS NAME(floats)
#define INTS NAME(ints)
#define REALS NAME(reals)
#define LONGS NAME(longs)
#define LOAD(p) (*(const NAME(floats_unaligned)*)(p))

typedef float FLOATS __attribute__((vector_size(4 * WIDTH)));
typedef float NAME(floats_unaligned) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t INTS __attribute__((vector_size(4 * WIDTH)));
typedef double REALS __attribute__((vector_size(8 * DOUBLES)));
typedef double NAME(reals_unaligned) __attribute__((vector_size(8 * DOUBLES), aligned(8), may_alias));
typedef int64_t LONGS __attribute__((vector_size(8 * DOUBLES)));
typedef float NAME(narrow) __attribute__((vector_size(4 * DOUBLES), aligned(4), may_alias));

#ifndef MAX
#define MAX(a, b) ((FLOATS)((((a) > (b)) & (INTS)(a)) | (~((a) > (b)) & (INTS)(b))))
#define MIN(a, b) ((FLOATS)((((a) < (b)) & (INTS)(a)) | (~((a) < (b)) & (INTS)(b))))
#define BITS_AT_LEAST(p, cut) \
  ((unsigned)((p)[0] >= (cut)) | ((p)[1] >= (cut)) << 1 | ((p)[2] >= (cut)) << 2 | ((p)[3] >= (cut)) << 3)
#endif

TARGET static Extremes NAME(extremes)(const float* x, int64_t n) {
  FLOATS high[PARTS], low[PARTS];
  INTS nan[PARTS];
  for (int p = 0; p < PARTS; p++) {
    high[p] = (FLOATS){} - INFINITY, low[p] = (FLOATS){} + INFINITY;
    nan[p] = (INTS){};
  }
  int64_t i = 0;
  for (; i + ROW <= n; i += ROW)
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; p++) {
      FLOATS row = LOAD(x + i + p * WIDTH);
      high[p] = MAX(row, high[p]), low[p] = MIN(row, low[p]);
      nan[p] |= row != row;
    }
  Extremes result = {-INFINITY, INFINITY, 0};
  for (int p = 0; p < PARTS; p++)
    for (int l = 0; l < WIDTH; l++) {
      result.highest = high[p][l] > result.highest ? high[p][l] : result.highest;
      result.lowest = low[p][l] < result.lowest ? low[p][l] : result.lowest;
      result.nan |= nan[p][l];
    }
  for (; i < n; i++) {
    result.highest = x[i] > result.highest ? x[i] : result.highest;
    result.lowest = x[i] < result.lowest ? x[i] : result.lowest;
    result.nan |= x[i] != x[i];
  }
  return result;
}

TARGET static int64_t NAME(group_maxima)(const float* x, int64_t n, float* maxima) {
  int64_t i = 0, count = 0;
  for (; i + GROUP * ROW <= n; i += GROUP * ROW, count += ROW) {
    FLOATS high[PARTS];
    for (int p = 0; p < PARTS; p++) high[p] = LOAD(x + i + p * WIDTH);
    for (int r = 1; r < GROUP; r++)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; p++) {
        FLOATS row = LOAD(x + i + r * ROW + p * WIDTH);
        high[p] = MAX(row, high[p]);
      }
    memcpy(maxima + count, high, sizeof high);
  }
  memcpy(maxima + count, x + i, (size_t)(n - i) * sizeof *x);
  return count + n - i;
}

TARGET static int64_t NAME(at_least)(const float* x, int64_t n, float cut, int32_t* places) {
  int64_t i = 0, count = 0;
  for (; i + WIDTH <= n; i += WIDTH)
    for (unsigned bits = BITS_AT_LEAST(x + i, cut); bits; bits &= bits - 1)
      places[count++] = (int32_t)i + __builtin_ctz(bits);
  for (; i < n; i++)
    if (x[i] >= cut) places[count++] = (int32_t)i;
  return count;
}

/* 2^t = 2^k 2^r with |r| <= 1/2 and a polynomial that is within 3.5e-6 of 2^r. */
TARGET INLINE void NAME(rough_exp2)(const FLOATS* in, FLOATS* out) {
  FLOATS t = MAX(*in, (FLOATS){} - 125.0f);
  FLOATS shifted = t + 0x1.8p23f; /* rounds to an integer, in the lowest bits */
  FLOATS r = t - (shifted - 0x1.8p23f), r2 = r * r;
  FLOATS power = (1.0f + r * 0.693121045f) + r2 * ((0.24022349f + r * 0.055921976f) + r2 * 0.00966636853f);
  *out = (FLOATS)((INTS)power + ((INTS)shifted << 23));
}

TARGET static double NAME(rough_sum_below)(const float* x, int64_t n, float highest, double temperature, float cut) {
  float scale = (float)(1.4426950408889634 / temperature), rest[ROW];
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += GROUP * ROW) {
    FLOATS sums[PARTS];
    memset(sums, 0, sizeof sums);
    for (int64_t j = i; j < n && j < i + GROUP * ROW; j += ROW) {
      const float* row = x + j;
      if (j + ROW > n) { /* filled up with logits that are not below cut */
        for (int l = 0; l < ROW; l++) rest[l] = j + l < n ? x[j + l] : INFINITY;
        row = rest;
      }
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; p++) {
        FLOATS logits = LOAD(row + p * WIDTH), weights = (logits - highest) * scale;
        NAME(rough_exp2)(&weights, &weights);
        sums[p] += (FLOATS)((INTS)weights & (logits < cut));
      }
    }
    float lanes[ROW];
    memcpy(lanes, sums, sizeof lanes);
    for (int l = 0; l < ROW; l++) sum += lanes[l];
  }
  return sum;
}

/* e^x = 2^k e^r with |r| <= ln(2) / 2 and a polynomial of degree 11 for e^r. ln 2 has two parts, the first of few bits,
 * so that its products with k are exact. */
TARGET INLINE void NAME(exponential)(REALS* in) {
  REALS x = *in, shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52, k = shifted - 0x1.8p52;
  REALS r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33, r2 = r * r, r4 = r2 * r2;
  REALS a = 0.5 + r * 0x1.5555555555556p-3, b = 0x1.5555555553d68p-5 + r * 0x1.11111111109b5p-7;
  REALS c = 0x1.6c16c17889ef9p-10 + r * 0x1.a01a01a7c2f03p-13, d = 0x1.a019b914985a9p-16 + r * 0x1.71de0db2f585ep-19;
  REALS e = 0x1.28917c8be7ad6p-22 + r * 0x1.af389ed28db09p-26;
  REALS power = 1.0 + (r + r2 * ((a + r2 * b) + r4 * ((c + r2 * d) + r4 * e)));
  *in = (REALS)(((LONGS)power + ((LONGS)shifted << 52)) & (x >= -708.0));
}

TARGET static double NAME(sum_below)(const float* x, int64_t n, double highest, double temperature, float cut) {
  double scale = 1.0 / temperature; /* faster than to divide; the rounding differs */
  if (scale > DBL_MAX) scale = DBL_MAX; /* since 0 * infinity would be NaN */
  REALS sums[HALVES];
  float rest[8];
  double lanes[8];
  memset(sums, 0, sizeof sums);
  for (int64_t i = 0; i < n; i += 8) {
    const float* row = x + i;
    if (i + 8 > n) {
      for (int l = 0; l < 8; l++) rest[l] = i + l < n ? x[i + l] : INFINITY;
      row = rest;
    }
#pragma GCC unroll 4
    for (int h = 0; h < HALVES; h++) {
      REALS logits = __builtin_convertvector(*(const NAME(narrow)*)(row + h * DOUBLES), REALS);
      REALS weights = (logits - highest) * scale;
      NAME(exponential)(&weights);
      sums[h] += (REALS)((LONGS)weights & (logits < (double)cut));
    }
  }
  memcpy(lanes, sums, sizeof lanes);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

TARGET static void NAME(exponentials)(double* x, int64_t n) {
  int64_t i = 0;
  for (; i + DOUBLES <= n; i += DOUBLES) {
    REALS values = *(NAME(reals_unaligned)*)(x + i);
    NAME(exponential)(&values);
    *(NAME(reals_unaligned)*)(x + i) = values;
  }
  if (i < n) {
    REALS values = {0};
    memcpy(&values, x + i, (size_t)(n - i) * sizeof *x);
    NAME(exponential)(&values);
    memcpy(x + i, &values, (size_t)(n - i) * sizeof *x);
  }
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)
static const Loops NAME(loops) = {
    STRING(SUFFIX),        NAME(extremes),  NAME(group_maxima), NAME(at_least),
    NAME(rough_sum_below), NAME(sum_below), NAME(exponentials),
};

#undef STRING
#undef STRING_
#undef NAME
#undef WIDTH
#undef PARTS
#undef HALVES
#undef FLOATS
#undef INTS
#undef REALS
#undef LONGS
#undef LOAD
#undef MAX
#undef MIN
#undef BITS_AT_LEAST
#undef SUFFIX
#undef TARGET
#undef DOUBLES
