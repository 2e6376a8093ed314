/* Steps written once with GCC's and Clang's vector types; each table compiles them for its own instruction set.
 *
 * Sums run in eight lanes that are added at the end in one fixed order, so that the bits depend neither on the
 * instruction set nor on how the compiler unrolls.
 */
#ifndef PYLLAMA2_PORTABLE_H
#define PYLLAMA2_PORTABLE_H

#define INLINE static inline __attribute__((always_inline))

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

/* Macros rather than functions where a vector would be passed by value: its calling convention changes with the
 * instruction set. */
#define V8F(x) ((v8f){(x), (x), (x), (x), (x), (x), (x), (x)})
#define LOAD8(p) (*(const v8f_unaligned *)(p))
#define STORE8(p, v) (*(v8f_unaligned *)(p) = (v))
#define SUM8(v) ((((v)[0] + (v)[4]) + ((v)[2] + (v)[6])) + (((v)[1] + (v)[5]) + ((v)[3] + (v)[7])))
/* mask ? a : b, where mask is the result of a comparison */
#define SELECT8(mask, a, b) ((v8f)(((v8i)(mask) & (v8i)(a)) | (~(v8i)(mask) & (v8i)(b))))

typedef v8f v8f_unaligned __attribute__((aligned(4), may_alias));

/* Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, for |x| < 2^22. */
#define ROUNDER 12582912.0f

INLINE float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
  if (magnitude >= 0x7c00) {
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else {
    float f;
    bits = magnitude << 13;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormals included */
    memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

INLINE uint16_t float_to_half(float f) { /* nearest, ties to even; too large becomes infinity */
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) { /* a subnormal half: adding 0.5 leaves it in the lowest bits, rounded */
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return sign | (uint16_t)(bits - 0x3f000000);
  }
  return sign | (uint16_t)((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13);
}

INLINE void widen_f16_body(const uint16_t *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = half_to_float(x[i]);
}

INLINE void narrow_f16_body(const float *x, uint16_t *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = float_to_half(x[i]);
}

INLINE void rms_norm_body(const float *x, const float *w, float eps, int64_t n, float *y) {
  v8f lanes = V8F(0.0f);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) lanes += LOAD8(x + i) * LOAD8(x + i);
  float sum = SUM8(lanes);
  for (; i < n; i++) sum += x[i] * x[i];
  float scale = 1.0f / sqrtf(sum / (float)n + eps);
  for (i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

/* e^x within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN.
 * e^x = 2^k e^r with |r| <= ln(2)/2 and a polynomial for e^r. */
INLINE void exp8(const v8f *in, v8f *out) {
  v8f x = *in;
  v8f clamped = SELECT8(x > V8F(88.0f), V8F(88.0f), x);
  clamped = SELECT8(clamped < V8F(-87.0f), V8F(-87.0f), clamped);
  v8f k = clamped * V8F(1.44269504f) + V8F(ROUNDER);
  v8i exponent = (v8i)k - (v8i)V8F(ROUNDER);
  k -= V8F(ROUNDER);
  v8f r = clamped - k * V8F(0.693145752f); /* ln 2 in two parts, the first exact in few bits */
  r -= k * V8F(1.42860677e-6f);
  v8f p = V8F(1.0f / 5040);
  p = p * r + V8F(1.0f / 720);
  p = p * r + V8F(1.0f / 120);
  p = p * r + V8F(1.0f / 24);
  p = p * r + V8F(1.0f / 6);
  p = p * r + V8F(0.5f);
  p = p * r + V8F(1.0f);
  p = p * r + V8F(1.0f);
  p *= (v8f)((exponent + 127) << 23);
  p = SELECT8(x > V8F(88.0f), V8F(INFINITY), p);
  p = SELECT8(x < V8F(-87.0f), V8F(0.0f), p);
  *out = SELECT8(x == x, p, x);
}

INLINE void silu_product_body(float *gate, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i += 8) {
    float g[8] = {0}, u[8] = {0};
    int64_t m = n - i < 8 ? n - i : 8;
    memcpy(g, gate + i, (size_t)m * 4);
    memcpy(u, x + i, (size_t)m * 4);
    v8f z = LOAD8(g), e = -z;
    exp8(&e, &e);
    STORE8(g, z / (V8F(1.0f) + e) * LOAD8(u));
    memcpy(gate + i, g, (size_t)m * 4);
  }
}

INLINE float exp_sum_body(float *scores, float maximum, int64_t n) {
  v8f lanes = V8F(0.0f);
  for (int64_t i = 0; i < n; i += 8) {
    float s[8] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY};
    int64_t m = n - i < 8 ? n - i : 8;
    memcpy(s, scores + i, (size_t)m * 4);
    v8f e = LOAD8(s) - V8F(maximum);
    exp8(&e, &e);
    lanes += e;
    STORE8(s, e);
    memcpy(scores + i, s, (size_t)m * 4);
  }
  return SUM8(lanes);
}

INLINE void weighted_sum_body(float *out, float keep, const float *p, const float *values, int64_t n, int64_t dim) {
  int64_t d = 0;
  for (; d + 32 <= dim; d += 32) {
    v8f a = LOAD8(out + d) * V8F(keep), b = LOAD8(out + d + 8) * V8F(keep);
    v8f c = LOAD8(out + d + 16) * V8F(keep), e = LOAD8(out + d + 24) * V8F(keep);
    for (int64_t s = 0; s < n; s++) {
      const float *v = values + s * dim + d;
      v8f weight = V8F(p[s]);
      a += weight * LOAD8(v);
      b += weight * LOAD8(v + 8);
      c += weight * LOAD8(v + 16);
      e += weight * LOAD8(v + 24);
    }
    STORE8(out + d, a);
    STORE8(out + d + 8, b);
    STORE8(out + d + 16, c);
    STORE8(out + d + 24, e);
  }
  for (; d < dim; d++) {
    float a = out[d] * keep;
    for (int64_t s = 0; s < n; s++) a += p[s] * values[s * dim + d];
    out[d] = a;
  }
}

/* Largest magnitude of n numbers, n a multiple of 8. NaN counts as infinite. */
INLINE float largest_magnitude(const float *x, int64_t n) {
  v8i largest = {0};
  for (int64_t i = 0; i < n; i += 8) {
    v8i magnitude = (v8i)LOAD8(x + i) & 0x7fffffff; /* ordered like the floats */
    largest = (v8i)SELECT8(magnitude > largest, magnitude, largest);
  }
  int32_t most = 0;
  for (int i = 0; i < 8; i++) most = largest[i] > most ? largest[i] : most;
  float result;
  memcpy(&result, &most, 4);
  return most > 0x7f800000 ? INFINITY : result;
}

/* Nearest integers of x * factor, within +-limit. */
INLINE void round8(const float *x, float factor, float limit, v8f *rounded) {
  v8f v = LOAD8(x) * V8F(factor);
  v = SELECT8(v > V8F(limit), V8F(limit), v);
  v = SELECT8(v < V8F(-limit), V8F(-limit), v);
  *rounded = v + V8F(ROUNDER) - V8F(ROUNDER);
}

INLINE void quantize_activations_body(const float *x, int64_t n, int64_t code_stride, int8_t *codes, float *scales,
                                      int32_t *sums) {
  for (int64_t g = 0; g * ACT_GROUP < code_stride; g++) {
    float group[ACT_GROUP] = {0};
    int64_t left = n - g * ACT_GROUP;
    if (left > 0) memcpy(group, x + g * ACT_GROUP, (size_t)(left < ACT_GROUP ? left : ACT_GROUP) * 4);
    float most = largest_magnitude(group, ACT_GROUP);
    float factor = most > 0.0f ? 127.0f / most : 0.0f;
    /* An infinite or NaN input makes the scale NaN, and with it every result: errors must stay visible. */
    scales[g] = most < INFINITY ? most / 127.0f : NAN;
    if (!(factor < INFINITY)) factor = 0.0f; /* magnitudes too small to divide by */
    int32_t sum = 0;
    for (int i = 0; i < ACT_GROUP; i += 8) {
      v8f rounded;
      round8(group + i, factor, 127.0f, &rounded);
      for (int k = 0; k < 8; k++) {
        int32_t code = (int32_t)rounded[k];
        codes[g * ACT_GROUP + i + k] = (int8_t)code;
        sum += code;
      }
    }
    sums[g] = sum;
  }
}

INLINE float quantize_group_q8_body(const float *x, int group_size, int8_t *codes) {
  float most = largest_magnitude(x, group_size);
  float scale = half_to_float(float_to_half(most / 127.0f));
  if (!(scale < INFINITY)) return NAN;
  float factor = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < group_size; i += 8) {
    v8f rounded;
    round8(x + i, factor, 127.0f, &rounded);
    for (int k = 0; k < 8; k++) codes[i + k] = (int8_t)rounded[k];
  }
  return scale;
}

/* Codes of x under scale 1 / factor, -8 .. 7. */
INLINE void round_q4(const float *x, float factor, v8f *rounded) {
  v8f v = LOAD8(x) * V8F(factor);
  v = SELECT8(v > V8F(7.0f), V8F(7.0f), v);
  v = SELECT8(v < V8F(-8.0f), V8F(-8.0f), v);
  *rounded = v + V8F(ROUNDER) - V8F(ROUNDER);
}

/* The number of largest magnitude lands on code -8, whatever its sign, since -8 has no positive
 * counterpart. From scales around that one, each with its codes c, least squares finds the best scale
 * for those codes, sum(w x c) / sum(w c c), where the weights w = x^2 favour the numbers that matter;
 * the candidate that explains most, (sum w x c)^2 / sum(w c c), is kept. */
INLINE float quantize_group_q4_body(const float *x, int group_size, uint8_t *codes) {
  enum { CANDIDATES = 19 };
  float most = largest_magnitude(x, group_size);
  if (!(most < INFINITY)) return NAN;
  float scale = 0.0f;
  if (most > 0.0f) {
    float unit[MAX_GROUP]; /* x within +-1, so that squares neither overflow nor vanish */
    float sign = 1.0f;
    for (int i = 0; i < group_size; i++) {
      unit[i] = x[i] / most;
      if (fabsf(unit[i]) == 1.0f) sign = unit[i];
    }
    float explained = 0.0f;
    for (int candidate = 0; candidate < CANDIDATES; candidate++) {
      float factor = -sign * (8.0f + 0.1f * (float)(candidate - CANDIDATES / 2));
      v8f xc = V8F(0.0f), cc = V8F(0.0f);
      for (int i = 0; i < group_size; i += 8) {
        v8f code, v = LOAD8(unit + i);
        round_q4(unit + i, factor, &code);
        v8f weighted = v * v * code;
        xc += weighted * v;
        cc += weighted * code;
      }
      float sum_xc = SUM8(xc), sum_cc = SUM8(cc);
      if (sum_xc * sum_xc > explained * sum_cc) {
        explained = sum_xc * sum_xc / sum_cc;
        scale = most * (sum_xc / sum_cc);
      }
    }
  }
  scale = half_to_float(float_to_half(scale));
  if (!(fabsf(scale) < INFINITY)) return NAN;
  float factor = scale != 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < group_size; i += 8) {
    v8f code;
    round_q4(x + i, factor, &code);
    for (int k = 0; k < 8; k++) codes[i + k] = (uint8_t)(int)(code[k] + 8.0f);
  }
  return scale;
}

/* One definition per table: PORTABLE_KERNELS(suffix, target attribute) makes the functions that every table takes
 * from this file. */
#define PORTABLE_KERNELS(SUFFIX, TARGET)                                                                              \
  TARGET static void rms_norm_##SUFFIX(const float *x, const float *w, float eps, int64_t n, float *y) {              \
    rms_norm_body(x, w, eps, n, y);                                                                                   \
  }                                                                                                                   \
  TARGET static void quantize_activations_##SUFFIX(const float *x, int64_t n, int64_t code_stride, int8_t *codes,     \
                                                   float *scales, int32_t *sums) {                                    \
    quantize_activations_body(x, n, code_stride, codes, scales, sums);                                                \
  }                                                                                                                   \
  TARGET static void silu_product_##SUFFIX(float *gate, const float *x, int64_t n) { silu_product_body(gate, x, n); } \
  TARGET static float exp_sum_##SUFFIX(float *scores, float maximum, int64_t n) {                                     \
    return exp_sum_body(scores, maximum, n);                                                                          \
  }                                                                                                                   \
  TARGET static void weighted_sum_##SUFFIX(float *out, float keep, const float *p, const float *values, int64_t n,    \
                                           int64_t dim) {                                                             \
    weighted_sum_body(out, keep, p, values, n, dim);                                                                  \
  }                                                                                                                   \
  TARGET static float quantize_group_q8_##SUFFIX(const float *x, int group_size, int8_t *codes) {                     \
    return quantize_group_q8_body(x, group_size, codes);                                                              \
  }                                                                                                                   \
  TARGET static float quantize_group_q4_##SUFFIX(const float *x, int group_size, uint8_t *codes) {                    \
    return quantize_group_q4_body(x, group_size, codes);                                                              \
  }

#endif
