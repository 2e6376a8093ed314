/* One query's attention by the CPU backend's kernels, as _cpu/attention.pyx calls them: what tests of the CUDA kernels
 * compare with. keys, values and scales are those of one head of a CpuKVCache. Returns 0, and nothing is done, where
 * this CPU has no fused multiply-add. */
#include "kernels.h"

enum { MOST_DIM = 1024 };

int attention_of(int kind, const char* keys, const char* values, const float* key_scales, const float* value_scales,
                 int head_dim, int value_dim, int position, const float* query, float* out) {
  static float queries[MOST_DIM * ATTENTION_COLUMNS], weights[ATTENTION_COLUMNS * SPAN], wide[64 * MOST_DIM];
  static float span_out[ATTENTION_COLUMNS * MOST_DIM], total[MOST_DIM];
  const Kernels* kernels = kernels_find(NULL);
  const int item = kind == CACHE_FLOAT16 ? 2 : 1;
  const float scale = (float)(1.4426950408889634 / sqrt((double)head_dim));
  float total_maximum = 0, total_sum = 0;
  if (!strcmp(kernels->name, "scalar")) return 0;
  memset(queries, 0, sizeof queries);
  for (int d = 0; d < head_dim; d++) queries[d * ATTENTION_COLUMNS] = query[d] * scale;
  for (int first = 0; first <= position; first += SPAN) {
    int32_t counts[ATTENTION_COLUMNS];
    float maxima[ATTENTION_COLUMNS], sums[ATTENTION_COLUMNS];
    for (int c = 0; c < ATTENTION_COLUMNS; c++) counts[c] = position + 1 - first < SPAN ? position + 1 - first : SPAN;
    CacheSpan span = {keys + (int64_t)first * head_dim * item,
                      values + (int64_t)first * value_dim * item,
                      key_scales ? key_scales + first : NULL,
                      value_scales ? value_scales + first : NULL,
                      (CacheKind)kind,
                      head_dim,
                      value_dim};
    AttentionTile tile = {1, queries, counts, weights, wide, maxima, sums, span_out};
    kernels->attend(&span, &tile);
    if (first) {
      kernels->merge_spans(total, &total_maximum, &total_sum, span_out, maxima[0], sums[0], value_dim);
    } else {
      memcpy(total, span_out, sizeof total);
      total_maximum = maxima[0], total_sum = sums[0];
    }
  }
  for (int d = 0; d < head_dim; d++) out[d] = total[d] * (1 / total_sum);
  return 1;
}
