/* Attention of some query columns to one span of the cache, written once for vectors of any width. Each table includes
 * this file with
 *
 *   NAME, TARGET, TARGET_INLINE
 *   WIDE, WIDE_ROWS       vectors of WIDE_ROWS float32, a divisor of KEY_BLOCK
 *   wide_*(...)           operations on them, see avx2.h
 *   KEEP(x)               keeps an accumulator in its register
 *   ATTEND_COLUMNS        columns of a tile: ATTENTION_COLUMNS or half of it
 *   ATTEND_REGISTERS      vectors that a tile accumulates in
 *
 *   weights[c][s] = 2^(queries[c] . keys[s] * key_scales[s] - maxima[c])     queries contain log2(e) / sqrt(head_dim)
 *   out[c] = sum over s < counts[c] of weights[c][s] * value_scales[s] * values[s]
 *
 * A score is summed over head_dim in order; its lane is the position. An output is summed over the positions in order;
 * its lane is the place in head_dim. So the order of additions does not depend on how columns and positions are tiled.
 * A position that a column does not see is never multiplied with its weights, so not even a NaN there can reach it.
 */

enum {
  NAME(vectors) = KEY_BLOCK / WIDE_ROWS, /* vectors of 16 positions */
  NAME(block_positions) = 64, /* positions that are widened and used together: a part of the L1 cache */
  NAME(widen_columns) = 16, /* with more columns than this, it is faster to widen once for all of them */
};

TARGET_INLINE int NAME(item_size)(const int KIND) { return KIND == CACHE_FLOAT16 ? 2 : KIND == CACHE_INT8 ? 1 : 4; }

/* Numbers i .. i + WIDE_ROWS of keys or values. */
TARGET_INLINE WIDE NAME(load_cached)(const void* p, int64_t i, const int KIND) {
  if (KIND == CACHE_FLOAT16) return wide_load_half((const uint16_t*)p + i);
  if (KIND == CACHE_INT8) return wide_load_codes((const int8_t*)p + i);
  return wide_load((const float*)p + i);
}

/* Scores of C columns at GROUPS times 16 positions. What is read afterwards lies ahead bytes further. */
TARGET_INLINE void NAME(score_tile)(const void* keys, int64_t ahead, const float* scales, int64_t dim, const float* q,
                                    const int KIND, const int C, const int GROUPS, float* scores) {
  WIDE acc[ATTEND_COLUMNS][4 * NAME(vectors)];
  const int N = GROUPS * NAME(vectors);
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) acc[c][v] = wide_zero_float();
  for (int64_t d = 0; d < dim; d++, q += ATTENTION_COLUMNS) {
    WIDE key[4 * NAME(vectors)];
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
      int64_t at = (v / NAME(vectors) * dim + d) * KEY_BLOCK + v % NAME(vectors) * WIDE_ROWS;
      key[v] = NAME(load_cached)(keys, at, KIND);
      if (v % NAME(vectors) == 0) __builtin_prefetch((const char*)keys + at * NAME(item_size)(KIND) + ahead);
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      WIDE input = wide_broadcast(q + c);
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) {
        acc[c][v] = wide_fma(key[v], input, acc[c][v]);
        KEEP(acc[c][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
      if (scales) acc[c][v] = wide_mul(acc[c][v], wide_load(scales + v * WIDE_ROWS));
      wide_store(scores + c * SPAN + v * WIDE_ROWS, acc[c][v]);
    }
}

/* Scores of C columns at n groups of 16 positions. */
TARGET_INLINE void NAME(score_columns)(const void* keys, int64_t ahead, const float* scales, int64_t dim,
                                       const float* q, const int KIND, const int C, int n, float* scores) {
  const int MOST = ATTEND_REGISTERS / (C * NAME(vectors));
  const int GROUPS = MOST > 4 ? 4 : MOST > 1 ? MOST : 1;
  const int SIZE = NAME(item_size)(KIND);
  int g = 0;
  for (; g + GROUPS <= n; g += GROUPS)
    NAME(score_tile)((const char*)keys + g * dim * KEY_BLOCK * SIZE, ahead, scales ? scales + g * KEY_BLOCK : NULL, dim,
                     q, KIND, C, GROUPS, scores + g * KEY_BLOCK);
  for (; g < n; g++)
    NAME(score_tile)((const char*)keys + g * dim * KEY_BLOCK * SIZE, ahead, scales ? scales + g * KEY_BLOCK : NULL, dim,
                     q, KIND, C, 1, scores + g * KEY_BLOCK);
}

/* out += weights * values over positions first .. last, for C columns and N vectors of head_dim. Column c sees the
 * positions below counts[c], which ascend. */
TARGET_INLINE void NAME(value_tile)(const void* values, int64_t ahead, int64_t dim, int first, int last,
                                    const int32_t* counts, const float* weights, const int KIND, const int C,
                                    const int N, float* out) {
  WIDE acc[ATTEND_COLUMNS][8];
  int s = first, shared = counts[0] < last ? counts[0] : last;
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
      acc[c][v] = wide_zero_float();
      if (first) acc[c][v] = wide_load(out + c * dim + v * WIDE_ROWS);
    }
  for (; s < shared; s++) {
    WIDE value[8];
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
      int64_t at = (s - first) * dim + v * WIDE_ROWS;
      value[v] = NAME(load_cached)(values, at, KIND);
      if (v * WIDE_ROWS * NAME(item_size)(KIND) % 64 == 0)
        __builtin_prefetch((const char*)values + at * NAME(item_size)(KIND) + ahead);
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      WIDE weight = wide_broadcast(weights + c * SPAN + s);
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) {
        acc[c][v] = wide_fma(value[v], weight, acc[c][v]);
        KEEP(acc[c][v]);
      }
    }
  }
  for (; s < last; s++) {
#pragma GCC unroll 16
    for (int c = 0; c < C; c++)
      if (s < counts[c]) {
        WIDE weight = wide_broadcast(weights + c * SPAN + s);
#pragma GCC unroll 16
        for (int v = 0; v < N; v++)
          acc[c][v] = wide_fma(NAME(load_cached)(values, (s - first) * dim + v * WIDE_ROWS, KIND), weight, acc[c][v]);
      }
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) wide_store(out + c * dim + v * WIDE_ROWS, acc[c][v]);
}

TARGET_INLINE void NAME(value_columns)(const void* values, int64_t ahead, int64_t dim, int first, int last,
                                       const int32_t* counts, const float* weights, const int KIND, const int C,
                                       float* out) {
  const int MOST = ATTEND_REGISTERS / C, N = MOST > 8 ? 8 : MOST, HALF = N > 4 ? 4 : 1;
  const int SIZE = NAME(item_size)(KIND);
  const int64_t n = dim / WIDE_ROWS;
  int64_t v = 0;
#define VALUE_TILE(n_vectors)                                                                                     \
  NAME(value_tile)((const char*)values + v * WIDE_ROWS * SIZE, ahead, dim, first, last, counts, weights, KIND, C, \
                   n_vectors, out + v * WIDE_ROWS)
  for (; v + N <= n; v += N) VALUE_TILE(N);
  for (; v + HALF <= n; v += HALF) VALUE_TILE(HALF);
  for (; v < n; v++) VALUE_TILE(1);
#undef VALUE_TILE
}

/* CALL(C), where C is a constant: the number of columns, rounded up. */
#define FOR_COLUMNS(n, CALL)           \
  do {                                 \
    if (ATTEND_COLUMNS > 4 && (n) > 4) \
      CALL(ATTEND_COLUMNS);            \
    else if ((n) > 1)                  \
      CALL(4);                         \
    else                               \
      CALL(1);                         \
  } while (0)

/* Scores of all columns at positions first .. first + n of the span; keys start at first. */
TARGET_INLINE void NAME(score_kind)(const CacheSpan* span, const AttentionTile* tile, int first, const void* keys,
                                    int64_t ahead, const int KIND) {
  const float* scales = span->kind == CACHE_INT8 ? span->key_scales + first : NULL;
  for (int c = 0; c < tile->n; c += ATTEND_COLUMNS) {
    int m = tile->n - c < ATTEND_COLUMNS ? tile->n - c : ATTEND_COLUMNS;
    int n = tile->counts[c + m - 1] - first;
    if (n <= 0) continue;
    n = ((n < NAME(block_positions) ? n : NAME(block_positions)) + KEY_BLOCK - 1) / KEY_BLOCK;
    const float* q = tile->queries + c / ATTENTION_COLUMNS * ATTENTION_COLUMNS * span->head_dim + c % ATTENTION_COLUMNS;
    float* scores = tile->weights + c * SPAN + first;
#define CALL(C) NAME(score_columns)(keys, ahead, scales, span->head_dim, q, KIND, C, n, scores)
    FOR_COLUMNS(m, CALL);
#undef CALL
  }
}

TARGET_INLINE void NAME(value_kind)(const CacheSpan* span, const AttentionTile* tile, int first, const void* values,
                                    int64_t ahead, const int KIND) {
  for (int c = 0; c < tile->n; c += ATTEND_COLUMNS) {
    int m = tile->n - c < ATTEND_COLUMNS ? tile->n - c : ATTEND_COLUMNS;
    int last = tile->counts[c + m - 1];
    if (last <= first && first) continue;
    if (last > first + NAME(block_positions)) last = first + NAME(block_positions);
    const float* weights = tile->weights + c * SPAN;
    float* out = tile->out + c * span->value_dim;
#define CALL(C) \
  NAME(value_columns)(values, ahead, span->value_dim, first, last, tile->counts + c, weights, KIND, C, out)
    FOR_COLUMNS(m, CALL);
#undef CALL
  }
}

/* 2^x within 2 units in the last place for x <= 0; 0 below -126, where it would be denormal, and NaN for NaN. It is
 * 2^k, for the nearest integer k, times a polynomial of degree 5 of x - k, whose largest relative error is the least
 * possible. */
TARGET_INLINE WIDE NAME(exp2)(WIDE x) {
  WIDE shifted = wide_add(x, wide_set(ROUNDER + 127.0f)); /* k + 127 in its lowest bits */
  WIDE r = wide_sub(x, wide_sub(shifted, wide_set(ROUNDER + 127.0f)));
  WIDE p = wide_set(0x1.5c12bep-10f);
  p = wide_fma(p, r, wide_set(0x1.3d0e24p-7f));
  p = wide_fma(p, r, wide_set(0x1.c6b6d2p-5f));
  p = wide_fma(p, r, wide_set(0x1.ebf91p-3f));
  p = wide_fma(p, r, wide_set(0x1.62e428p-1f));
  p = wide_fma(p, r, wide_set(1.0f));
  p = wide_mul(p, wide_exponent(shifted));
  __typeof__(x < x) vanishes = x < wide_set(-126.0f);
  return (WIDE)(~vanishes & (__typeof__(vanishes))p);
}

TARGET_INLINE float NAME(exp2_of)(float x) {
  float lanes[WIDE_ROWS] __attribute__((aligned(64)));
  wide_store(lanes, NAME(exp2)(wide_set(x)));
  return lanes[0];
}

/* The sum of the 16 lanes of a group: halves are added to halves. */
TARGET_INLINE float NAME(total)(const WIDE* group) {
  float x[KEY_BLOCK] __attribute__((aligned(64)));
  for (int v = 0; v < NAME(vectors); v++) wide_store(x + v * WIDE_ROWS, group[v]);
  v4f sum = (LOAD4(x) + LOAD4(x + 8)) + (LOAD4(x + 4) + LOAD4(x + 12));
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

TARGET_INLINE float NAME(largest)(const WIDE* group) {
  float x[KEY_BLOCK] __attribute__((aligned(64)));
  for (int v = 0; v < NAME(vectors); v++) wide_store(x + v * WIDE_ROWS, group[v]);
  v4f most = max4(max4(LOAD4(x), LOAD4(x + 8)), max4(LOAD4(x + 4), LOAD4(x + 12)));
  float a = most[0] > most[2] ? most[0] : most[2], b = most[1] > most[3] ? most[1] : most[3];
  return a > b ? a : b;
}

/* Turns n scores of one column into weights, times scales if there are any. */
TARGET_INLINE void NAME(softmax)(float* scores, int n, const float* scales, float* maximum, float* sum) {
  WIDE most[NAME(vectors)], total[NAME(vectors)];
  float* tail = scores + n / KEY_BLOCK * KEY_BLOCK;
  for (int v = 0; v < NAME(vectors) && n % KEY_BLOCK; v++)
    wide_store(tail + v * WIDE_ROWS, wide_min(wide_load(tail + v * WIDE_ROWS),
                                              wide_load(seen_first + KEY_BLOCK - n % KEY_BLOCK + v * WIDE_ROWS)));
  for (int v = 0; v < NAME(vectors); v++) most[v] = wide_set(-INFINITY), total[v] = wide_zero_float();
  for (int s = 0; s < n; s += KEY_BLOCK)
    for (int v = 0; v < NAME(vectors); v++) most[v] = wide_max(most[v], wide_load(scores + s + v * WIDE_ROWS));
  const float largest = NAME(largest)(most);
  const WIDE shift = wide_set(largest);
#pragma GCC unroll 2
  for (int s = 0; s < n; s += KEY_BLOCK)
    for (int v = 0; v < NAME(vectors); v++) {
      float* score = scores + s + v * WIDE_ROWS;
      WIDE weight = NAME(exp2)(wide_sub(wide_load(score), shift));
      total[v] = wide_add(total[v], weight);
      if (scales) weight = wide_mul(weight, wide_load(scales + s + v * WIDE_ROWS));
      wide_store(score, weight);
    }
  *maximum = largest;
  *sum = NAME(total)(total);
}

/* CALL(KIND), where KIND is a constant. */
#define FOR_KIND(kind, CALL)       \
  do {                             \
    if ((kind) == CACHE_FLOAT16)   \
      CALL(CACHE_FLOAT16);         \
    else if ((kind) == CACHE_INT8) \
      CALL(CACHE_INT8);            \
    else                           \
      CALL(CACHE_FLOAT32);         \
  } while (0)

TARGET static void NAME(score_block)(const CacheSpan* span, const AttentionTile* tile, int first, const void* keys,
                                     int64_t ahead, CacheKind kind) {
#define CALL(KIND) NAME(score_kind)(span, tile, first, keys, ahead, KIND)
  FOR_KIND(kind, CALL);
#undef CALL
}

TARGET static void NAME(value_block)(const CacheSpan* span, const AttentionTile* tile, int first, const void* values,
                                     int64_t ahead, CacheKind kind) {
#define CALL(KIND) NAME(value_kind)(span, tile, first, values, ahead, KIND)
  FOR_KIND(kind, CALL);
#undef CALL
}

/* n cached numbers as float32. What is read afterwards lies ahead bytes further. */
TARGET_INLINE void NAME(widen_kind)(const char* p, int64_t ahead, int64_t n, const int KIND, float* wide) {
  const int SIZE = NAME(item_size)(KIND);
  for (int64_t i = 0; i < n; i += WIDE_ROWS) {
    if (i * SIZE % 64 == 0) __builtin_prefetch(p + i * SIZE + ahead);
    wide_store(wide + i, NAME(load_cached)(p, i, KIND));
  }
}

TARGET static const void* NAME(widen_cached)(const CacheSpan* span, const void* p, int64_t ahead, int64_t n,
                                             float* wide) {
#define CALL(KIND) NAME(widen_kind)(p, ahead, n, KIND, wide)
  FOR_KIND(span->kind, CALL);
#undef CALL
  return wide;
}

TARGET static void NAME(attend)(const CacheSpan* span, const AttentionTile* tile) {
  enum { BLOCK = NAME(block_positions) };
  const int last = tile->counts[tile->n - 1], widen = span->kind != CACHE_FLOAT32 && tile->n > NAME(widen_columns);
  const CacheKind kind = widen ? CACHE_FLOAT32 : span->kind;
  const int64_t key_bytes = span->head_dim * NAME(item_size)(span->kind); /* of a position */
  const int64_t value_bytes = span->value_dim * NAME(item_size)(span->kind);
  const char *keys = span->keys, *values = span->values;
  for (int first = 0; first < last; first += BLOCK, keys += BLOCK * key_bytes) {
    int n = last - first < BLOCK ? last - first : BLOCK;
    int64_t ahead = first + n < last ? BLOCK * key_bytes : values - keys;
    int64_t numbers = (n + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK * span->head_dim;
    const void* source = widen ? NAME(widen_cached)(span, keys, ahead, numbers, tile->wide) : keys;
    NAME(score_block)(span, tile, first, source, widen ? 0 : ahead, kind);
  }
  for (int c = 0; c < tile->n; c++)
    NAME(softmax)(tile->weights + c * SPAN, tile->counts[c], span->kind == CACHE_INT8 ? span->value_scales : NULL,
                  tile->maxima + c, tile->sums + c);
  for (int first = 0; first < last; first += BLOCK, values += BLOCK * value_bytes) {
    int n = last - first < BLOCK ? last - first : BLOCK;
    int64_t ahead = first + n < last ? BLOCK * value_bytes : keys - values;
    const void* source = widen ? NAME(widen_cached)(span, values, ahead, n * span->value_dim, tile->wide) : values;
    NAME(value_block)(span, tile, first, source, widen ? 0 : ahead, kind);
  }
}

/* Merges a column's attention to a later part of its sequence into that to an earlier part. */
TARGET static void NAME(merge_spans)(float* out, float* maximum, float* sum, const float* later, float later_maximum,
                                     float later_sum, int64_t dim) {
  float most = *maximum > later_maximum ? *maximum : later_maximum;
  float keep = NAME(exp2_of)(*maximum - most), add = NAME(exp2_of)(later_maximum - most);
  *maximum = most;
  *sum = *sum * keep + later_sum * add;
  for (int64_t d = 0; d < dim; d += WIDE_ROWS)
    wide_store(out + d, wide_fma(wide_load(later + d), wide_set(add), wide_mul(wide_load(out + d), wide_set(keep))));
}
