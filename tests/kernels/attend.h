/* Attention of one table against attention.h itself, compiled with plain fused multiply-adds: equal bits but for the
 * scalar table, which does not fuse. */
#include "harness.h"

INLINE v4f fused4(v4f a, v4f b, v4f c) {
  for (int i = 0; i < 4; i++) c[i] = fmaf(a[i], b[i], c[i]);
  return c;
}

#define NAME(f) f##_fused
#define TARGET
#define TARGET_INLINE INLINE
#undef KEEP
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
#define wide_fma(a, b, c) fused4(a, b, c)
#define wide_max(a, b) max4(a, b)
#define wide_min(a, b) min4(a, b)
#define wide_exponent(a) exponent4(a)
#define wide_load_half(p) load_half4(p)
#define wide_load_codes(p) ((v4f){(float)(p)[0], (float)(p)[1], (float)(p)[2], (float)(p)[3]})
#define ATTEND_COLUMNS 4
#define ATTEND_REGISTERS 8
#include "../../pyllama2/_cpu/kernels/attention.h"

typedef struct {
  AttentionTile tile;
  Room weights, wide, maxima, sums, out;
} TileRoom;

static TileRoom room_for_tile(const CacheSpan* span, int n, const float* queries, const int32_t* counts) {
  const size_t whole = (size_t)((n + ATTENTION_COLUMNS - 1) / ATTENTION_COLUMNS * ATTENTION_COLUMNS);
  TileRoom room = {.weights = room_for(whole * SPAN * 4),
                   .wide = room_for((size_t)span->value_dim * 64 * 4),
                   .maxima = room_for((size_t)n * 4),
                   .sums = room_for((size_t)n * 4),
                   .out = room_for(whole * (size_t)span->value_dim * 4)};
  room.tile = (AttentionTile){.n = n,
                              .queries = queries,
                              .counts = counts,
                              .weights = room.weights.p,
                              .wide = room.wide.p,
                              .maxima = room.maxima.p,
                              .sums = room.sums.p,
                              .out = room.out.p};
  return room;
}

static void leave_tile(TileRoom room) {
  leave(room.weights);
  leave(room.wide);
  leave(room.maxima);
  leave(room.sums);
  leave(room.out);
}

static Room random_cached(CacheKind kind, int64_t n, Pattern pattern) {
  Room numbers = room_for((size_t)n * 4), cached;
  random_numbers(numbers.p, n, pattern);
  if (kind == CACHE_FLOAT32) return numbers;
  cached = room_for((size_t)n * (kind == CACHE_FLOAT16 ? 2 : 1));
  for (int64_t i = 0; i < n; i++)
    if (kind == CACHE_FLOAT16)
      ((uint16_t*)cached.p)[i] = float_to_half(((float*)numbers.p)[i]);
    else
      ((int8_t*)cached.p)[i] = (int8_t)((int)(random_bits() % 255) - 127);
  leave(numbers);
  return cached;
}

/* The scalar table rounds products on their own: off by less than this much of the largest that can come out. */
static const float UNFUSED = 2e-5f;

static void check_tile(const Kernels* table, const CacheSpan* span, int n, const float* queries, const int32_t* counts,
                       Pattern pattern) {
  const int64_t dim = span->value_dim;
  TileRoom found = room_for_tile(span, n, queries, counts), expected = room_for_tile(span, n, queries, counts);
  float *sums = expected.sums.p, *out = expected.out.p, *error = expected.weights.p;
  table->attend(span, &found.tile);
  attend_fused(span, &expected.tile);
  if (table != &kernels_scalar) {
    expect_floats("maxima", found.maxima.p, expected.maxima.p, n);
    expect_floats("sums", found.sums.p, sums, n);
    expect_floats("out", found.out.p, out, n * dim);
  } else if (pattern == ORDINARY) {
    for (int c = 0; c < n; c++) {
      for (int64_t d = 0; d < dim; d++) error[d] = 3.0f * UNFUSED * sums[c];
      expect_near("out", (float*)found.out.p + c * dim, out + c * dim, error, dim);
      error[0] = UNFUSED * sums[c];
      expect_near("sums", (float*)found.sums.p + c, sums + c, error, 1);
    }
  }
  add_floats_to_digest(found.maxima.p, n);
  add_floats_to_digest(found.sums.p, n);
  add_floats_to_digest(found.out.p, n * dim);
  leave_tile(found);
  leave_tile(expected);
}

static void check_span(const Kernels* table, CacheKind kind, int64_t head_dim, Pattern pattern) {
  static const int numbers[] = {1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24};
  const int64_t value_dim = (head_dim + 15) / 16 * 16;
  Room keys = random_cached(kind, SPAN * head_dim, pattern), values = random_cached(kind, SPAN * value_dim, pattern);
  Room key_scales = room_for(SPAN * 4), value_scales = room_for(SPAN * 4);
  CacheSpan span = {.keys = keys.p,
                    .values = values.p,
                    .key_scales = key_scales.p,
                    .value_scales = value_scales.p,
                    .kind = kind,
                    .head_dim = head_dim,
                    .value_dim = value_dim};
  for (int s = 0; s < SPAN; s++) {
    ((float*)key_scales.p)[s] = fabsf(random_number(pattern)) / 127.0f;
    ((float*)value_scales.p)[s] = fabsf(random_number(pattern)) / 127.0f;
  }
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    const int n = numbers[i], whole = (n + ATTENTION_COLUMNS - 1) / ATTENTION_COLUMNS * ATTENTION_COLUMNS;
    Room queries = room_for((size_t)(whole * head_dim) * 4), counts = room_for((size_t)whole * 4);
    random_numbers(queries.p, whole * head_dim, ORDINARY);
    int last = i % 4 == 3 ? SPAN : 1 + (int)(random_bits() % SPAN);
    for (int c = n - 1; c >= 0; c--) {
      ((int32_t*)counts.p)[c] = last;
      last -= last > (int)(random_bits() % 4) ? (int)(random_bits() % 20) : 0;
      if (last < 0) last = 0;
    }
    for (int c = n; c < whole; c++) ((int32_t*)counts.p)[c] = ((int32_t*)counts.p)[n - 1];
    check_tile(table, &span, n, queries.p, counts.p, pattern);
    leave(queries);
    leave(counts);
  }
  leave(keys);
  leave(values);
  leave(key_scales);
  leave(value_scales);
}

static void check_merging(const Kernels* table) {
  enum { DIM = 48 };
  float earlier[DIM], later[DIM], found[DIM], expected[DIM], error[DIM];
  subject = table->name;
  for (int i = 0; i < 100; i++) {
    float maximum = random_number(WIDE_RANGE), sum = 1.0f + fabsf(random_number(ORDINARY));
    float most[2] = {maximum, maximum}, sums[2] = {sum, sum};
    float later_maximum = i % 10 == 0 ? -INFINITY : maximum + 8.0f * random_uniform();
    random_numbers(earlier, DIM, ORDINARY);
    random_numbers(later, DIM, ORDINARY);
    memcpy(found, earlier, sizeof found);
    memcpy(expected, earlier, sizeof found);
    for (int d = 0; d < DIM; d++) error[d] = UNFUSED * (fabsf(earlier[d]) + fabsf(later[d]));
    table->merge_spans(found, most, sums, later, later_maximum, 2.0f, DIM);
    merge_spans_fused(expected, most + 1, sums + 1, later, later_maximum, 2.0f, DIM);
    expect_floats("merged maximum", most, most + 1, 1);
    expect_floats("merged sum", sums, sums + 1, 1);
    if (table == &kernels_scalar)
      expect_near("merged", found, expected, error, DIM);
    else
      expect_floats("merged", found, expected, DIM);
  }
}

static void check_attention(const Kernels* table) {
  static const int64_t head_dims[] = {8, 16, 48, 64, 80, 128};
  static const char* kinds[] = {"float32", "float16", "int8"};
  check_merging(table);
  for (CacheKind kind = CACHE_FLOAT32; kind <= CACHE_INT8; kind++)
    for (size_t i = 0; i < sizeof head_dims / sizeof *head_dims; i++)
      for (Pattern pattern = 0; pattern < PATTERNS; pattern++) {
        char name[64];
        snprintf(name, sizeof name, "%s %s cache head_dim %d pattern %d", table->name, kinds[kind], (int)head_dims[i],
                 pattern);
        subject = name;
        random_state = (uint64_t)kind * 100 + i * 10 + pattern;
        check_span(table, kind, head_dims[i], pattern);
      }
}
