/* Steps written once with GCC's and Clang's vector types. Each table includes this file with
 *
 *   NAME(f)           f with the table's suffix
 *   TARGET            the attribute that selects its instruction set
 *   MIN8(a, b), MAX8  of two v8f: compilers do not make one instruction of a comparison and a selection
 *
 * which the table undefines afterwards.
 *
 * Sums have eight lanes, which are added at the end in a fixed order. So the bits depend neither on the instruction set
 * nor on how the compiler unrolls.
 */

/* The sum of squares has 512 partial sums of every 512th square, which are added up in pairs: first within each 32, as
 * the lanes of a GPU's warp do. */
TARGET static void NAME(rms_norm)(const float* x, const float* w, float eps, int64_t n, float* y) {
  v8f sums[64];
  float of_32[16], rest[8] = {0};
  for (int j = 0; j < 64; j++) sums[j] = V8F(0.0f);
  int64_t i = 0;
  for (; i + 512 <= n; i += 512)
    for (int j = 0; j < 64; j++) sums[j] += LOAD8(x + i + 8 * j) * LOAD8(x + i + 8 * j);
  v8f* next = sums;
  for (; i + 8 <= n; i += 8) *next++ += LOAD8(x + i) * LOAD8(x + i);
  if (i < n) {
    memcpy(rest, x + i, (size_t)(n - i) * 4);
    *next += LOAD8(rest) * LOAD8(rest);
  }
  for (int j = 0; j < 16; j++) {
    v8f sum = (sums[4 * j] + sums[4 * j + 2]) + (sums[4 * j + 1] + sums[4 * j + 3]);
    of_32[j] = SUM8(sum);
  }
  float scale = 1.0f / sqrtf(SUM16(of_32) / (float)n + eps);
  for (i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

/* e^x within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN.
 * e^x = 2^k e^r with |r| <= ln(2)/2 and a polynomial for e^r. */
TARGET INLINE void NAME(exp8)(const v8f* in, v8f* out) {
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

TARGET INLINE void NAME(silu_product_8)(float* gate, const float* x) {
  v8f z = LOAD8(gate), e = -z;
  NAME(exp8)(&e, &e);
  STORE8(gate, z / (V8F(1.0f) + e) * LOAD8(x));
}

TARGET static void NAME(silu_product)(float* gate, const float* x, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) NAME(silu_product_8)(gate + i, x + i);
  if (i < n) {
    float g[8] = {0}, u[8] = {0};
    memcpy(g, gate + i, (size_t)(n - i) * 4);
    memcpy(u, x + i, (size_t)(n - i) * 4);
    NAME(silu_product_8)(g, u);
    memcpy(gate + i, g, (size_t)(n - i) * 4);
  }
}

/* Largest magnitude of n numbers, n a multiple of 8. NaN counts as infinite. */
TARGET INLINE float NAME(largest_magnitude)(const float* x, int64_t n) {
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

/* The integers nearest to x * factor, limited to low .. high, of n numbers, n a multiple of 8. */
TARGET INLINE void NAME(round_all)(const float* x, float factor, float low, float high, int n, float* rounded) {
  for (int i = 0; i < n; i += 8) {
    v8f v = LOAD8(x + i) * V8F(factor);
    v = MAX8(MIN8(v, V8F(high)), V8F(low));
    STORE8(rounded + i, v + V8F(ROUNDER) - V8F(ROUNDER));
  }
}

/* Eight numbers at a time, with zeros after the last. */
TARGET static float NAME(quantize_vector)(const float* x, int64_t n, int8_t* codes) {
  float most = 0.0f;
  for (int64_t i = 0; i < n; i += 8) {
    float part[8] = {0};
    memcpy(part, x + i, (size_t)(n - i < 8 ? n - i : 8) * 4);
    float magnitude = NAME(largest_magnitude)(part, 8);
    most = magnitude > most ? magnitude : most;
  }
  if (most < 127.0f * SMALLEST_SCALE) most = 0.0f;
  float scale = most / 127.0f, factor = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < n; i += 8) {
    float part[8] = {0};
    int64_t m = n - i < 8 ? n - i : 8;
    memcpy(part, x + i, (size_t)m * 4);
    NAME(round_all)(part, factor, -127.0f, 127.0f, 8, part);
    for (int64_t j = 0; j < m; j++) codes[i + j] = (int8_t)part[j];
  }
  return scale;
}

/* Quantize one group of activations, whose numbers after the first n are zeros. Returns the scale; rounded gets the
 * codes within +-limit, as floats. An infinite or NaN input makes the scale NaN, and so every result: errors must stay
 * visible. */
TARGET INLINE float NAME(quantize_activation_group)(const float* x, int64_t n, int size, float limit, float* rounded) {
  float padded[MAX_GROUP];
  if (n < size) {
    memset(padded, 0, sizeof padded);
    memcpy(padded, x, (size_t)n * 4);
    x = padded;
  }
  float most = NAME(largest_magnitude)(x, size);
  if (most < limit * SMALLEST_SCALE) most = 0.0f;
  float factor = most > 0.0f ? limit / most : 0.0f;
  NAME(round_all)(x, factor, -limit, limit, size, rounded);
  return most < INFINITY ? most / limit : NAN;
}

/* Copies a column's steps to places that are interleave steps apart. */
INLINE void NAME(scatter_steps)(const void* column, int64_t n, int interleave, char* steps) {
  for (int64_t s = 0; s < n; s++) memcpy(steps + s * interleave * 4, (const char*)column + s * 4, 4);
}

TARGET INLINE int32_t NAME(whole_offset)(const int8_t* codes, int n) {
  int32_t sum = 0;
  for (int i = 0; i < n; i++) sum += codes[i];
  return -8 * sum;
}

/* offset(codes, n) is called for each group, or for each of its parts of so many inputs if they are fewer. */
TARGET INLINE void NAME(prepare_q4_with)(const Matrix* w, const float* x, int interleave, int32_t* steps, float* scales,
                                         int32_t* offsets, int32_t (*const offset)(const int8_t*, int),
                                         const int MOST_INPUTS) {
  const int size = w->group_size, part = size < MOST_INPUTS ? size : MOST_INPUTS;
  for (int64_t g = 0; g < groups_of(w); g++, scales += interleave, steps += size / QUAD * interleave) {
    float rounded[MAX_GROUP];
    int8_t codes[MAX_GROUP];
    *scales = NAME(quantize_activation_group)(x + g * size, w->columns - g * size, size, 127.0f, rounded);
    for (int i = 0; i < size; i++) codes[i] = (int8_t)rounded[i];
    for (int i = 0; i < size; i += part, offsets += interleave) *offsets = offset(codes + i, part);
    NAME(scatter_steps)(codes, size / QUAD, interleave, (char*)steps);
  }
}

TARGET static void NAME(prepare_q4)(const Matrix* w, const float* x, int interleave, void* steps, float* scales,
                                    int32_t* offsets) {
  NAME(prepare_q4_with)(w, x, interleave, steps, scales, offsets, NAME(whole_offset), MAX_GROUP);
}

TARGET static void NAME(prepare_q8)(const Matrix* w, const float* x, int interleave, void* steps, float* scales,
                                    int32_t* offsets) {
  const int size = w->group_size;
  (void)offsets;
  for (int64_t g = 0; g < groups_of(w); g++) {
    float rounded[MAX_GROUP];
    int16_t codes[MAX_GROUP];
    scales[g * interleave] =
        NAME(quantize_activation_group)(x + g * size, w->columns - g * size, size, 32767.0f, rounded);
    for (int i = 0; i < size; i++) codes[i] = (int16_t)rounded[i];
    NAME(scatter_steps)(codes, size / 2, interleave, (char*)steps + g * size * 2 * interleave);
  }
}

TARGET static void NAME(prepare_float)(const Matrix* w, const float* x, int interleave, void* steps, float* scales,
                                       int32_t* offsets) {
  float* target = steps;
  (void)scales, (void)offsets;
  if (interleave == 1) return; /* block() reads the values */
  for (int64_t lane = 0; lane < LANES; lane++)
    for (int64_t i = lane; i < steps_of(w); i += LANES, target += interleave) *target = i < w->columns ? x[i] : 0.0f;
}

TARGET INLINE float NAME(quantize_group_constant_q8)(const float* x, const int group_size, int8_t* codes) {
  float most = NAME(largest_magnitude)(x, group_size);
  float scale = half_to_float(float_to_half(most / 127.0f));
  if (!(scale < INFINITY)) return NAN;
  float rounded[MAX_GROUP];
  NAME(round_all)(x, scale > 0.0f ? 1.0f / scale : 0.0f, -127.0f, 127.0f, group_size, rounded);
  for (int i = 0; i < group_size; i++) codes[i] = (int8_t)rounded[i];
  return scale;
}

/* The group size is a constant in each call: loops of known length become straight vector code. */
TARGET static float NAME(quantize_group_q8)(const float* x, int group_size, int8_t* codes) {
  if (group_size == 32) return NAME(quantize_group_constant_q8)(x, 32, codes);
  if (group_size == 64) return NAME(quantize_group_constant_q8)(x, 64, codes);
  return NAME(quantize_group_constant_q8)(x, 128, codes);
}
