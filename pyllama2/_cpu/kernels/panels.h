/* Products of packed panels with many columns (matrix-matrix). An x86 table includes this file with
 *
 *   NAME, TARGET, TARGET_INLINE
 *   WIDE_INT, WIDE        vectors of WIDE_ROWS int32 or float32, one number per row
 *   wide_*(...)           operations on them, see avx2.h
 *   WIDE_DOT_U8, WIDE_SUM_U8, WIDE_DOT_S16      as for tiles256.h
 *   OFFSET_INPUTS         as for tiles256.h
 *   PANEL_COLUMNS         columns of a tile
 *
 * A panel has 2 * WIDE_ROWS rows. It is unpacked once for all columns: step by step, 4 bytes of each row. A tile is a
 * panel times PANEL_COLUMNS columns. Each step loads rows twice and broadcasts an input of each column.
 */

enum { NAME(panel_rows) = 2 * WIDE_ROWS };

/* totals += groups of the panel times the columns. STEPS is the number of steps of a group. */
TARGET_INLINE void NAME(panel_tile)(const char* w, const float* w_scales, int64_t n_groups, const char* x,
                                    const float* x_scales, const int32_t* offsets, const int STEPS, const int Q4_CODES,
                                    float* totals, int64_t stride) {
  enum { C = PANEL_COLUMNS };
  const int PARTS = Q4_CODES && STEPS * QUAD > OFFSET_INPUTS ? 2 : 1;
  for (int64_t g = 0; g < n_groups; g++) {
    WIDE_INT sum[2][C];
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++, offsets += C) {
      WIDE_INT acc[2][C];
      for (int c = 0; c < C; c++) acc[0][c] = acc[1][c] = Q4_CODES ? wide_broadcast_int(offsets + c) : wide_zero();
      for (int s = 0; s < STEPS / PARTS; s += 2, w += 4 * WIDE_ROWS * 4, x += 2 * C * 4) {
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
          const char* step = w + k * 2 * WIDE_ROWS * 4;
          WIDE_INT rows0 = wide_load_int(step), rows1 = wide_load_int(step + WIDE_ROWS * 4);
#pragma GCC unroll 16
          for (int c = 0; c < C; c++) {
            WIDE_INT input = wide_broadcast_int(x + (k * C + c) * 4);
            acc[0][c] = Q4_CODES ? WIDE_DOT_U8(acc[0][c], rows0, input) : WIDE_DOT_S16(acc[0][c], rows0, input);
            acc[1][c] = Q4_CODES ? WIDE_DOT_U8(acc[1][c], rows1, input) : WIDE_DOT_S16(acc[1][c], rows1, input);
            KEEP(acc[0][c]);
            KEEP(acc[1][c]);
          }
        }
      }
      for (int v = 0; v < 2; v++)
        for (int c = 0; c < C; c++) {
          const WIDE_INT more = Q4_CODES ? WIDE_SUM_U8(acc[v][c]) : acc[v][c];
          sum[v][c] = part ? wide_add_int(sum[v][c], more) : more;
        }
    }
    WIDE scale0 = wide_load(w_scales), scale1 = wide_load(w_scales + WIDE_ROWS);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      WIDE x_scale = wide_broadcast(x_scales + c);
      float* total = totals + c * stride;
      wide_store(total, wide_fma(wide_convert(sum[0][c]), wide_mul(scale0, x_scale), wide_load(total)));
      wide_store(total + WIDE_ROWS,
                 wide_fma(wide_convert(sum[1][c]), wide_mul(scale1, x_scale), wide_load(total + WIDE_ROWS)));
    }
    w_scales += 2 * WIDE_ROWS;
    x_scales += C;
  }
}

#define PANEL(KIND, GROUP, STEPS, Q4_CODES)                                                                       \
  TARGET static void NAME(panel_##KIND##_##GROUP)(const char* w, const float* w_scales, int64_t n, const char* x, \
                                                  const float* x_scales, const int32_t* offsets, float* totals,   \
                                                  int64_t stride) {                                               \
    NAME(panel_tile)(w, w_scales, n, x, x_scales, offsets, STEPS, Q4_CODES, totals, stride);                      \
  }
PANEL(q8, 32, 16, 0)
PANEL(q8, 64, 32, 0)
PANEL(q8, 128, 64, 0)
PANEL(q4, 32, 8, 1)
PANEL(q4, 64, 16, 1)
PANEL(q4, 128, 32, 1)
#undef PANEL

TARGET static void NAME(panel_quantized)(const Matrix* w, const void* steps, const float* scales, int64_t g0,
                                         int64_t g1, const Activations* x, int64_t c0, float* totals,
                                         int64_t total_stride) {
  const int64_t steps_per_group = x->n_steps / x->n_groups;
  const char* column = (const char*)x->steps + (c0 * x->n_steps + g0 * steps_per_group * PANEL_COLUMNS) * 4;
  const float* x_scales = x->scales + c0 * x->n_groups + g0 * PANEL_COLUMNS;
  const int32_t* offsets = x->offsets + c0 * x->n_offsets + g0 * (x->n_offsets / x->n_groups) * PANEL_COLUMNS;
#define CALL(f) NAME(f)(steps, scales, g1 - g0, column, x_scales, offsets, totals, total_stride)
  if (w->kind == Q8 && w->group_size == 32) CALL(panel_q8_32);
  if (w->kind == Q8 && w->group_size == 64) CALL(panel_q8_64);
  if (w->kind == Q8 && w->group_size == 128) CALL(panel_q8_128);
  if (w->kind == Q4 && w->group_size == 32) CALL(panel_q4_32);
  if (w->kind == Q4 && w->group_size == 64) CALL(panel_q4_64);
  if (w->kind == Q4 && w->group_size == 128) CALL(panel_q4_128);
#undef CALL
}

TARGET static void NAME(pack_scales)(const Matrix* w, int64_t panel, int64_t g0, int64_t g1, float* scales) {
  const int64_t n_blocks = (w->rows + ROW_BLOCK - 1) / ROW_BLOCK;
  for (int b = 0; b < 2 * WIDE_ROWS / ROW_BLOCK; b++) {
    int64_t block = panel * (2 * WIDE_ROWS / ROW_BLOCK) + b;
    const uint16_t* source = w->scales + (block * groups_of(w) + g0) * ROW_BLOCK;
    float* target = scales + b * ROW_BLOCK;
    for (int64_t g = g0; g < g1; g++, source += ROW_BLOCK, target += 2 * WIDE_ROWS)
      _mm256_storeu_ps(
          target, block < n_blocks ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)source)) : _mm256_setzero_ps());
  }
}

TARGET static void NAME(pack_q4)(const Matrix* w, int64_t panel, int64_t g0, int64_t g1, void* steps, float* scales) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const int64_t n_blocks = (w->rows + ROW_BLOCK - 1) / ROW_BLOCK;
  const int registers = w->group_size / 8; /* of 8 rows x 4 inputs, twice that many steps */
  const int64_t step = 2 * WIDE_ROWS * 4;
  NAME(pack_scales)(w, panel, g0, g1, scales);
  for (int b = 0; b < 2 * WIDE_ROWS / ROW_BLOCK; b++) {
    int64_t block = panel * (2 * WIDE_ROWS / ROW_BLOCK) + b;
    const __m256i* source = (const __m256i*)((const uint8_t*)w->data + block * block_bytes(w)) + g0 * registers;
    char* target = (char*)steps + b * 32;
    for (int64_t g = g0; g < g1; g++, target += 2 * registers * step)
      for (int j = 0; j < registers; j++, source++) {
        __m256i codes = block < n_blocks ? _mm256_loadu_si256(source) : _mm256_setzero_si256();
        _mm256_storeu_si256((__m256i*)(target + j * step), _mm256_and_si256(codes, nibble));
        _mm256_storeu_si256((__m256i*)(target + (registers + j) * step),
                            _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
      }
  }
}

/* 8 rows x 4 int8 become two steps of 8 rows x 2 int16. */
TARGET static void NAME(pack_q8)(const Matrix* w, int64_t panel, int64_t g0, int64_t g1, void* steps, float* scales) {
  const int64_t n_blocks = (w->rows + ROW_BLOCK - 1) / ROW_BLOCK, step = 2 * WIDE_ROWS * 4;
  NAME(pack_scales)(w, panel, g0, g1, scales);
  for (int b = 0; b < 2 * WIDE_ROWS / ROW_BLOCK; b++) {
    int64_t block = panel * (2 * WIDE_ROWS / ROW_BLOCK) + b, quads = (g1 - g0) * w->group_size / QUAD;
    const int8_t* source = (const int8_t*)w->data + block * block_bytes(w) + g0 * w->group_size * ROW_BLOCK;
    char* target = (char*)steps + b * 32;
    for (int64_t j = 0; j < quads; j++, source += 32, target += 2 * step) {
      __m256i codes = block < n_blocks ? _mm256_loadu_si256((const __m256i*)source) : _mm256_setzero_si256();
      __m256 low = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes)));
      __m256 high = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1)));
      __m256i first = _mm256_castps_si256(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)));
      __m256i second = _mm256_castps_si256(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
      /* shuffles work within 128-bit halves: rows 0 1 4 5 | 2 3 6 7 */
      _mm256_storeu_si256((__m256i*)target, _mm256_permute4x64_epi64(first, _MM_SHUFFLE(3, 1, 2, 0)));
      _mm256_storeu_si256((__m256i*)(target + step), _mm256_permute4x64_epi64(second, _MM_SHUFFLE(3, 1, 2, 0)));
    }
  }
}

/* Columns of 8 x 8 become rows. */
TARGET_INLINE void NAME(transpose8)(__m256 v[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], _MM_SHUFFLE(1, 0, 1, 0));
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], _MM_SHUFFLE(3, 2, 3, 2));
    }
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_permute2f128_ps(b[i], b[4 + i], 0x20);
    v[4 + i] = _mm256_permute2f128_ps(b[i], b[4 + i], 0x31);
  }
}

/* 8 inputs from i on of the 8 rows from first on, one vector per input; zeros beyond the matrix. */
TARGET_INLINE void NAME(load_block)(const Matrix* w, int64_t first, int64_t i, const int HALF, __m256 v[8]) {
  const int64_t size = HALF ? 2 : 4, count = w->columns - i < 8 ? w->columns - i : 8;
  for (int r = 0; r < 8; r++) {
    const char* row = (const char*)w->data + ((first + r) * w->columns + i) * size;
    float last[8] = {0};
    if (first + r < w->rows && count == 8) {
      v[r] = NAME(load_weights)(row, 0, HALF);
      _mm_prefetch(row + 512, _MM_HINT_T1);
    } else {
      if (first + r < w->rows && count > 0) memcpy(last, row, (size_t)(count * size));
      v[r] = NAME(load_weights)(last, 0, HALF);
    }
  }
  NAME(transpose8)(v);
}

/* Inputs lane by lane. They are packed 16 at a time, so that cache lines are read and written as a whole. There is a
 * gap of one line between lanes: at a distance of a power of two, lanes would evict each other from the cache. */
TARGET_INLINE void NAME(pack_float)(const Matrix* w, int64_t panel, const int HALF, float* steps) {
  const int64_t per_lane = steps_of(w) / LANES, lane_stride = per_lane * 2 * WIDE_ROWS + LANE_GAP;
  for (int64_t j = 0; j < per_lane; j++)
    for (int b = 0; b < 2 * WIDE_ROWS / ROW_BLOCK; b++)
      for (int first = 0; first < LANES; first += 8) {
        __m256 v[8];
        NAME(load_block)(w, panel * 2 * WIDE_ROWS + b * ROW_BLOCK, j * LANES + first, HALF, v);
        float* target = steps + first * lane_stride + j * 2 * WIDE_ROWS + b * ROW_BLOCK;
        for (int lane = 0; lane < 8; lane++) _mm256_storeu_ps(target + lane * lane_stride, v[lane]);
      }
}

TARGET static void NAME(pack_f32)(const Matrix* w, int64_t panel, int64_t g0, int64_t g1, void* steps, float* scales) {
  (void)g0, (void)g1, (void)scales;
  NAME(pack_float)(w, panel, 0, steps);
}

TARGET static void NAME(pack_f16)(const Matrix* w, int64_t panel, int64_t g0, int64_t g1, void* steps, float* scales) {
  (void)g0, (void)g1, (void)scales;
  NAME(pack_float)(w, panel, 1, steps);
}

/* sums (SIZE) = the panel times the columns over n steps, plus the n_earlier arrays of SIZE sums that lie before it,
 * the last one first. The result takes the place of the first of these arrays. */
TARGET_INLINE void NAME(panel_lane)(const float* w, const float* x, int64_t n, float* sums, int n_earlier) {
  enum { C = PANEL_COLUMNS, SIZE = 2 * WIDE_ROWS * C };
  WIDE acc[2][C];
  for (int c = 0; c < C; c++) acc[0][c] = acc[1][c] = wide_zero_float();
  for (int64_t s = 0; s < n; s++, w += 2 * WIDE_ROWS, x += C) {
    WIDE rows0 = wide_load(w), rows1 = wide_load(w + WIDE_ROWS);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      WIDE input = wide_broadcast(x + c);
      acc[0][c] = wide_fma(rows0, input, acc[0][c]);
      acc[1][c] = wide_fma(rows1, input, acc[1][c]);
      KEEP(acc[0][c]);
      KEEP(acc[1][c]);
    }
  }
  for (; n_earlier > 0; n_earlier--, sums -= SIZE)
    for (int c = 0; c < C; c++)
      for (int v = 0; v < 2; v++) acc[v][c] = wide_add(acc[v][c], wide_load(sums - SIZE + (2 * c + v) * WIDE_ROWS));
  for (int c = 0; c < C; c++)
    for (int v = 0; v < 2; v++) wide_store(sums + (2 * c + v) * WIDE_ROWS, acc[v][c]);
}

/* The sums of each of the 16 lanes are a product of their own. They are added as by SUM16: pairs, pairs of pairs, ...
 *
 *     lane    0   8   4  12   2  10   6  14   1 ...      order[i]
 *              \ /     \ /     \ /     \ /
 *               +       +       +       +
 *                \     /         \     /
 *                   +               +
 *
 * Lanes are computed from left to right, and their sums are put on a stack. pairs[i] is the number of earlier sums,
 * of 1, 2, 4, ... lanes, that are added to those of lane i: 0 1 0 2 0 1 0 3 ..., the number of trailing ones of i in
 * binary. */
TARGET static void NAME(panel_float)(const Matrix* w, const void* steps, const float* scales, int64_t g0, int64_t g1,
                                     const Activations* x, int64_t c0, float* totals, int64_t total_stride) {
  enum { C = PANEL_COLUMNS, SIZE = 2 * WIDE_ROWS * C };
  static const int order[LANES] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  static const int pairs[LANES] = {0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0, 4};
  const int64_t per_lane = x->n_steps / LANES;
  const float* columns = (const float*)x->steps + c0 * x->n_steps;
  float sums[5][SIZE] __attribute__((aligned(64)));
  int depth = 0;
  (void)w, (void)scales, (void)g0, (void)g1;
  for (int i = 0; i < LANES; i++) {
    NAME(panel_lane)((const float*)steps + order[i] * (per_lane * 2 * WIDE_ROWS + LANE_GAP),
                     columns + order[i] * per_lane * C, per_lane, sums[depth], pairs[i]);
    depth += 1 - pairs[i];
  }
  for (int c = 0; c < C; c++)
    memcpy(totals + c * total_stride, sums[0] + c * 2 * WIDE_ROWS, 2 * WIDE_ROWS * sizeof(float));
}
