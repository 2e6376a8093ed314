/* Products with a single column in 256-bit vectors, which read four streams side by side: four rows of a float matrix, or
 * four blocks of a quantized one. Included by a table after tiles256.h, whose bits they have.
 *
 * On a Zen 3, a loop that reads rows of 8 KB with two threads gets 17 to 19 GB/s one after the other, and 21 to 27 GB/s
 * four at a time. Prefetches make that slower where a loop has few instructions for each cache line, as that of float32.
 */

enum { ROW_STREAMS = 4, AHEAD = 512, AHEAD_Q4 = 256 }; /* bytes that are prefetched ahead */

/* The distance to what a stream of so many bytes reads later, for its bytes before end: beyond its own end, it goes on
 * after the other streams. */
TARGET_INLINE int64_t NAME(stream_ahead)(int64_t end, int64_t bytes, int64_t distance) {
  return end + distance <= bytes ? distance : distance + (STREAMS - 1) * bytes;
}

TARGET_INLINE void NAME(rows_float)(const void* const row[ROW_STREAMS], int64_t inputs, const float* x, const int HALF,
                                    float* out) {
  __m256 sum[ROW_STREAMS][2];
  for (int r = 0; r < ROW_STREAMS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    if (HALF && i % (2 * LANES) == 0)
      for (int r = 0; r < ROW_STREAMS; r++) {
        const char* p = (const char*)row[r] + 2 * i;
        __builtin_prefetch(p + NAME(stream_ahead)(2 * i, 2 * inputs, AHEAD));
      }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256 column = _mm256_loadu_ps(x + i + 8 * half);
#pragma GCC unroll 4
      for (int r = 0; r < ROW_STREAMS; r++)
        sum[r][half] = _mm256_fmadd_ps(NAME(load_weights)(row[r], i + 8 * half, HALF), column, sum[r][half]);
    }
  }
  if (i < inputs) {
    const size_t count = (size_t)(inputs - i), size = HALF ? 2 : 4;
    float values[LANES] = {0};
    memcpy(values, x + i, count * 4);
    for (int r = 0; r < ROW_STREAMS; r++) {
      float last[LANES] = {0};
      memcpy(last, (const char*)row[r] + (size_t)i * size, count * size);
      for (int half = 0; half < 2; half++)
        sum[r][half] =
            _mm256_fmadd_ps(NAME(load_weights)(last, 8 * half, HALF), _mm256_loadu_ps(values + 8 * half), sum[r][half]);
    }
  }
  for (int r = 0; r < ROW_STREAMS; r++) out[r] = NAME(sum_lanes)(sum[r][0], sum[r][1]);
}

TARGET_INLINE void NAME(streams_of)(const Matrix* w, int64_t block, const Activations* x, int n, const int HALF,
                                    float* out) {
  if (n > 1) {
    NAME(block_of)(w, block, x, n, HALF, out);
    return;
  }
  const int64_t first = block * ROW_BLOCK, rows = w->rows - first < ROW_BLOCK ? w->rows - first : ROW_BLOCK;
  const int64_t row_bytes = w->columns * (HALF ? 2 : 4);
  const char* data = (const char*)w->data + first * row_bytes;
  for (int64_t r = 0; r < rows; r += ROW_STREAMS) {
    const void* row[ROW_STREAMS];
    for (int64_t k = 0; k < ROW_STREAMS; k++) row[k] = data + (r + k < rows ? r + k : r) * row_bytes;
    NAME(rows_float)(row, w->columns, x->values, HALF, out + r);
  }
}

TARGET static void NAME(streams_f32)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(streams_of)(w, block, x, n, 0, out);
}

TARGET static void NAME(streams_f16)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) {
  NAME(streams_of)(w, block, x, n, 1, out);
}

/* STREAMS blocks, one after the other. */
typedef struct {
  const char* codes;
  const uint16_t* scales;
  int64_t code_bytes, n_scales; /* of one block */
} NAME(Blocks);

/* As column_q8. */
TARGET_INLINE void NAME(columns_q8)(NAME(Blocks) w, const Activations* x, const int GROUP, float* out) {
  const int16_t* inputs = x->steps;
  __m256 total[STREAMS];
  for (int s = 0; s < STREAMS; s++) total[s] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, w.scales += ROW_BLOCK) {
    const int64_t ahead = NAME(stream_ahead)((g + 1) * GROUP * ROW_BLOCK, w.code_bytes, AHEAD);
    __m256i lower[STREAMS], upper[STREAMS];
    for (int s = 0; s < STREAMS; s++) lower[s] = upper[s] = _mm256_setzero_si256();
    for (int j = 0; j < GROUP / QUAD; j += 2, w.codes += 64, inputs += 2 * QUAD) {
      const __m256i input[2] = {_mm256_castpd_si256(_mm256_broadcast_sd((const double*)inputs)),
                                _mm256_castpd_si256(_mm256_broadcast_sd((const double*)(inputs + QUAD)))};
#pragma GCC unroll 4
      for (int s = 0; s < STREAMS; s++) {
        const __m128i* codes = (const __m128i*)(w.codes + s * w.code_bytes);
        __builtin_prefetch((const char*)codes + ahead);
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
          lower[s] = DOT_S16(lower[s], _mm256_cvtepi8_epi16(_mm_loadu_si128(codes + 2 * k)), input[k]);
          upper[s] = DOT_S16(upper[s], _mm256_cvtepi8_epi16(_mm_loadu_si128(codes + 2 * k + 1)), input[k]);
          KEEP(lower[s]);
          KEEP(upper[s]);
        }
      }
    }
    for (int s = 0; s < STREAMS; s++) {
      const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(lower[s], upper[s]), _MM_SHUFFLE(3, 1, 2, 0));
      NAME(add_group)(total + s, &sums, w.scales + s * w.n_scales, x->scales + g, 1);
    }
  }
  for (int s = 0; s < STREAMS; s++) _mm256_storeu_ps(out + s * ROW_BLOCK, total[s]);
}

/* As tile_q4. */
TARGET_INLINE void NAME(columns_q4)(NAME(Blocks) w, const Activations* x, const int GROUP, float* out) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const int REGISTERS = GROUP / 8, COUNT = REGISTERS < MOST_DOTS ? REGISTERS : MOST_DOTS;
  const int32_t* steps = x->steps;
  __m256 total[STREAMS];
  for (int s = 0; s < STREAMS; s++) total[s] = _mm256_setzero_ps();
  for (int64_t g = 0; g < x->n_groups; g++, w.scales += ROW_BLOCK) {
    const int64_t ahead = NAME(stream_ahead)((g + 1) * GROUP * ROW_BLOCK / 2, w.code_bytes, AHEAD_Q4);
    __m256i sums[STREAMS];
    for (int s = 0; s < STREAMS; s++) sums[s] = _mm256_set1_epi32(x->offsets[g]);
    for (int j0 = 0; j0 < REGISTERS; j0 += COUNT) {
      __m256i low[STREAMS], high[STREAMS];
      for (int s = 0; s < STREAMS; s++) low[s] = high[s] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int j = 0; j < COUNT; j++, w.codes += 32, steps++) {
        const __m256i low_input = BROADCAST_STEP(steps), high_input = BROADCAST_STEP(steps + REGISTERS);
#pragma GCC unroll 4
        for (int s = 0; s < STREAMS; s++) {
          const char* codes = w.codes + s * w.code_bytes;
          const __m256i bytes = _mm256_loadu_si256((const __m256i*)codes);
          if (j % 2 == 0) __builtin_prefetch(codes + ahead);
          low[s] = DOT_U8(low[s], _mm256_and_si256(bytes, nibble), low_input);
          high[s] = DOT_U8(high[s], _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), high_input);
          KEEP(low[s]);
          KEEP(high[s]);
        }
      }
      for (int s = 0; s < STREAMS; s++)
        sums[s] = _mm256_add_epi32(sums[s], _mm256_add_epi32(SUM_U8(low[s]), SUM_U8(high[s])));
    }
    steps += REGISTERS; /* those of the high nibbles */
    for (int s = 0; s < STREAMS; s++) NAME(add_group)(total + s, sums + s, w.scales + s * w.n_scales, x->scales + g, 1);
  }
  for (int s = 0; s < STREAMS; s++) _mm256_storeu_ps(out + s * ROW_BLOCK, total[s]);
}

#define STREAMS_OF_GROUP(KIND, GROUP_SIZE)                                                                        \
  TARGET static void NAME(columns_##KIND##_##GROUP_SIZE)(NAME(Blocks) blocks, const Activations* x, float* out) { \
    NAME(columns_##KIND)(blocks, x, GROUP_SIZE, out);                                                             \
  }
#define STREAMS_OF(KIND)                                                                                             \
  STREAMS_OF_GROUP(KIND, 32)                                                                                         \
  STREAMS_OF_GROUP(KIND, 64)                                                                                         \
  STREAMS_OF_GROUP(KIND, 128)                                                                                        \
  TARGET static void NAME(streams_##KIND)(const Matrix* w, int64_t block, const Activations* x, int n, float* out) { \
    const int64_t bytes = block_bytes(w), scales = x->n_groups * ROW_BLOCK;                                          \
    NAME(Blocks) blocks = {(const char*)w->data + block * bytes, w->scales + block * scales, bytes, scales};         \
    (void)n; /* 1 */                                                                                                 \
    if (w->group_size == 32) NAME(columns_##KIND##_32)(blocks, x, out);                                              \
    if (w->group_size == 64) NAME(columns_##KIND##_64)(blocks, x, out);                                              \
    if (w->group_size == 128) NAME(columns_##KIND##_128)(blocks, x, out);                                            \
  }
STREAMS_OF(q8)
STREAMS_OF(q4)
#undef STREAMS_OF
#undef STREAMS_OF_GROUP
