/* The search for q4's scales. Each number of a vector belongs to another row. Each table includes this file with
 *
 *   NAME, TARGET, TARGET_INLINE
 *   WIDE, WIDE_ROWS       vectors of WIDE_ROWS float32, a divisor of QUANTIZER_COLUMNS
 *   wide_*(...)           operations on them, see avx2.h
 *
 * There are codes -8 .. 7. The number of largest magnitude gets code -8, whatever its sign, since there is no 8. That
 * gives a scale. The search tries scales around it. Each gives codes c, and least squares gives the best scale for
 * those codes, sum(w x c) / sum(w c c). The codes with the largest (sum w x c)^2 / sum(w c c), whose error is least,
 * are kept. If the importance of the inputs is known, it is w: that of x is the mean square of the input that x is
 * multiplied by. Then smaller scales pay as well, down to one that cuts the largest number to 5/8. Else w is about
 * sqrt|x|, which favours large numbers a little. On SmolLM2 the mean KL divergence from float32 was 0.353 with that,
 * 0.424 with w = 1, 0.377 with |x| and 0.391 with x^2.
 *
 * No operation is fused: the bits are the same in every table.
 */

/* The integers nearest to x, limited to low .. high. */
#define ROUND_WITHIN(x, low, high)                                                                                    \
  wide_sub(wide_max(wide_min(wide_add(x, wide_set(ROUNDER)), wide_set(ROUNDER + (high))), wide_set(ROUNDER + (low))), \
           wide_set(ROUNDER))

/* Scales of WIDE_ROWS columns before rounding to float16, relative to the largest magnitude. units = x / largest
 * magnitude, and weights, are [group_size][QUANTIZER_COLUMNS]. sign makes the number of largest magnitude negative. The
 * candidates, a multiple of TOGETHER, bring it to -least, -(least + step), ... */
TARGET_INLINE WIDE NAME(search_scales)(const float* units, const float* weights, int group_size, WIDE sign, float least,
                                       float step, int candidates) {
  enum { TOGETHER = 3 };
  WIDE best_xc = wide_zero_float(), best_cc = wide_set(1.0f);
  for (int first = 0; first < candidates; first += TOGETHER) {
    WIDE factor[TOGETHER], xc[TOGETHER], cc[TOGETHER];
    for (int k = 0; k < TOGETHER; k++) {
      factor[k] = wide_mul(sign, wide_set(least + step * (float)(first + k)));
      xc[k] = cc[k] = wide_zero_float();
    }
    for (int i = 0; i < group_size; i++) {
      WIDE unit = wide_load(units + i * QUANTIZER_COLUMNS), weight = wide_load(weights + i * QUANTIZER_COLUMNS);
      for (int k = 0; k < TOGETHER; k++) {
        WIDE code = ROUND_WITHIN(wide_mul(unit, factor[k]), -8.0f, 7.0f), weighted = wide_mul(weight, code);
        xc[k] = wide_add(xc[k], wide_mul(weighted, unit));
        cc[k] = wide_add(cc[k], wide_mul(weighted, code));
      }
    }
    for (int k = 0; k < TOGETHER; k++) {
      __typeof__(cc[k] > cc[k]) better =
          wide_mul(wide_mul(xc[k], xc[k]), best_cc) > wide_mul(wide_mul(best_xc, best_xc), cc[k]);
      best_xc = (WIDE)((better & (__typeof__(better))xc[k]) | (~better & (__typeof__(better))best_xc));
      best_cc = (WIDE)((better & (__typeof__(better))cc[k]) | (~better & (__typeof__(better))best_cc));
    }
  }
  return best_xc / best_cc;
}

/* Units and weights of WIDE_ROWS columns. Returns the largest magnitudes. sign makes those numbers negative. */
TARGET_INLINE WIDE NAME(normalize_columns)(const float* x, int group_size, float* units, float* weights, WIDE* sign) {
  WIDE zero = wide_zero_float();
  __typeof__(zero > zero) most_bits = zero > zero, positive = most_bits;
  for (int i = 0; i < group_size; i++) {
    WIDE value = wide_load(x + i * QUANTIZER_COLUMNS);
    __typeof__(most_bits) bits = (__typeof__(most_bits))value & 0x7fffffff, larger = bits > most_bits;
    most_bits = (larger & bits) | (~larger & most_bits); /* magnitudes are ordered like their bits, NaN last */
  }
  WIDE most = (WIDE)most_bits;
  __typeof__(most_bits) usable = most > wide_set(1e-30f); /* smaller ones have no float16 scale */
  WIDE factor = (WIDE)(usable & (__typeof__(most_bits))(wide_set(1.0f) / most));
  for (int i = 0; i < group_size; i++) {
    WIDE value = wide_load(x + i * QUANTIZER_COLUMNS), unit = wide_mul(value, factor);
    positive |= value == most;
    wide_store(units + i * QUANTIZER_COLUMNS, unit);
    /* half of the exponent: the square root within 4% */
    wide_store(weights + i * QUANTIZER_COLUMNS, (WIDE)((((__typeof__(most_bits))unit & 0x7fffffff) >> 1) + 0x1fbd1df5));
  }
  *sign =
      (WIDE)((positive & (__typeof__(most_bits))wide_set(-1.0f)) | (~positive & (__typeof__(most_bits))wide_set(1.0f)));
  return most;
}

TARGET static void NAME(quantize_columns_q4)(const float* x, const float* importance, int group_size, uint8_t* codes,
                                             float* scales) {
  float units[MAX_GROUP * QUANTIZER_COLUMNS], weights[MAX_GROUP * QUANTIZER_COLUMNS], factors[QUANTIZER_COLUMNS];
  for (int v = 0; v < QUANTIZER_COLUMNS; v += WIDE_ROWS) {
    WIDE sign, most = NAME(normalize_columns)(x + v, group_size, units + v, weights + v, &sign);
    WIDE relative = importance ? NAME(search_scales)(units + v, importance + v, group_size, sign, 7.0f, 0.5f, 12)
                               : NAME(search_scales)(units + v, weights + v, group_size, sign, 7.125f, 0.125f, 15);
    wide_store(scales + v, wide_mul(most, relative));
  }
  for (int c = 0; c < QUANTIZER_COLUMNS; c++) {
    float scale = half_to_float(float_to_half(scales[c]));
    scales[c] = fabsf(scale) < INFINITY ? scale : NAN;
    factors[c] = fabsf(scale) < INFINITY && scale != 0.0f ? 1.0f / scale : 0.0f;
  }
  for (int i = 0; i < group_size; i++)
    for (int v = 0; v < QUANTIZER_COLUMNS; v += WIDE_ROWS) {
      const int at = i * QUANTIZER_COLUMNS + v;
      wide_store(units + at, ROUND_WITHIN(wide_mul(wide_load(x + at), wide_load(factors + v)), -8.0f, 7.0f));
    }
  for (int k = 0; k < group_size * QUANTIZER_COLUMNS; k++) codes[k] = (uint8_t)(int)(units[k] + 8.0f);
}

#undef ROUND_WITHIN
