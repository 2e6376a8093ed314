/* The arguments of kernels, what a table of kernels has, and what follows from a matrix's shape. Included by kernels.h,
 * and by the Cython modules that only call kernels. Layouts are those of weights.py. */
#ifndef PYLLAMA2_TYPES_H
#define PYLLAMA2_TYPES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
  ROW_BLOCK = 8, /* rows of a matrix that are interleaved */
  STREAMS = 4, /* blocks that are read side by side where that is faster */
  QUAD = 4, /* inputs of one row that lie together */
  LANES = 16, /* partial sums of a float32 product: inputs i, i + 16, i + 32, ... */
  LANE_GAP = 16, /* numbers between the lanes of a float panel */
  MAX_GROUP = 128, /* largest group of weights */
  QUANTIZER_COLUMNS = 16, /* groups that are quantized to q4 together */
  /* How many bytes ahead a stream of weights is prefetched: into the L2 cache, and again into the L1 cache. On a
   * Sapphire Rapids, one thread's q4 products read 10.1 GB/s without prefetch, 15.0 with the first and 15.7 with
   * both. A loop that only reads has 16.8. */
  PREFETCH_L2 = 6144,
  PREFETCH_L1 = 2048,
  STREAM_AHEAD = 512, /* with STREAMS at a time into the L1 cache only; twice as many inputs of q4 are in a byte */
  STREAM_AHEAD_Q4 = 256,
};

typedef enum { FLOAT32, FLOAT16, Q8, Q4, KINDS } Kind;

typedef struct {
  Kind kind;
  int group_size; /* of quantized kinds, else 0 */
  int64_t rows, columns;
  const void* data; /* as weights.py lays it out */
  const uint16_t* scales; /* float16 bits; NULL for float kinds */
} Matrix;

/* n columns, one per token, that a matrix is multiplied with. They are there as float32, and in the form that the
 * matrix's kind needs, which is a row of steps of 4 bytes:
 *
 *   float kinds   one float32 a step, sorted by lane: inputs 0, 16, 32, ..., then 1, 17, 33, ...; zeros after the last
 *   q8            two int16 codes a step. int8 would add an error larger than that of the weights (on SmolLM2 a mean
 *                 KL divergence of 0.0037 to their 0.0025)
 *   q4            four int8 codes a step
 *
 * Codes have the groups of the matrix. A value is code * scale. After the last input there are zeros. As many columns
 * as interleave says are interleaved step by step: step s of column c is at [c / interleave][s][c % interleave]. Scales
 * and offsets are interleaved group by group. Columns that are missing from the last ones may hold anything. Float
 * kinds have steps only for panels, which always interleave.
 */
typedef struct {
  const float* values; /* [n][value_stride] */
  int64_t value_stride;
  const void* steps;
  const float* scales;
  const int32_t* offsets; /* q4: what removes the zero point of the weights, see offsets_of() */
  int64_t n_steps, n_groups, n_offsets; /* of one column */
  int interleave;
  int panels; /* whether they are for panel() rather than block() */
} Activations;

/* Products of one kind of matrix. For a (row, column), the order of additions depends only on the number of inputs.
 * It is the same in block() and panel(). */
typedef struct {
  /* Write the steps of one column x (w->columns). */
  void (*prepare)(const Matrix* w, const float* x, int interleave, void* steps, float* scales, int32_t* offsets);
  /* out[c][r] = sum over i of w[8 block + r][i] * x[c][i]. out is [n][8], n rounded up to a multiple of
   * interleave, which is tile_width(). */
  void (*block)(const Matrix* w, int64_t block, const Activations* x, int n, float* out);

  int few_columns; /* up to so many are multiplied by blocks, where there are panels: few_columns.py measures it */
  /* Unpack groups g0 .. g1 (float kinds: everything) of a panel of Kernels.panel_rows rows: steps [step][row] of 4
   * bytes and scales [group][row]. Rows beyond the matrix are zeros. */
  void (*pack)(const Matrix* w, int64_t panel, int64_t g0, int64_t g1, void* steps, float* scales);
  /* totals[c][row] += the product of such groups with columns c0 .. c0 + interleave. Float kinds set totals instead. */
  void (*panel)(const Matrix* w, const void* steps, const float* scales, int64_t g0, int64_t g1, const Activations* x,
                int64_t c0, float* totals, int64_t total_stride);
} Product;

enum {
  KEY_BLOCK = 16, /* positions whose keys are interleaved */
  SPAN = 256, /* positions, counted from 0, that share a softmax; spans are merged in order */
  ATTENTION_COLUMNS = 8, /* queries that are interleaved */
};

typedef enum { CACHE_FLOAT32, CACHE_FLOAT16, CACHE_INT8 } CacheKind;

/* Keys and values of one key head at the positions of a span. int8: a number is code * scale of the position. */
typedef struct {
  const void* keys; /* [SPAN / 16][head_dim][16] */
  const void* values; /* [SPAN][value_dim] */
  const float* key_scales; /* [SPAN] */
  const float* value_scales;
  CacheKind kind;
  int64_t head_dim, value_dim; /* value_dim: head_dim rounded up to 16, zeros at its end */
} CacheSpan;

/* n columns: the queries of some tokens of one sequence, for heads that share a key head, in the order of the
 * tokens. */
typedef struct {
  int n;
  const float* queries; /* [n / 8][head_dim][8], times log2(e) / sqrt(head_dim) */
  const int32_t* counts; /* [n] positions that a column sees, ascending; the last is above 0, and repeated up to a
                          * multiple of 8 */
  float* weights; /* [n][SPAN] scratch; n rounded up to 8 */
  float* wide; /* [64][value_dim] scratch */
  float* maxima; /* [n] largest score, in units of log 2; -infinity where the count is 0 */
  float* sums; /* [n] of 2^(score - maximum) */
  float* out; /* [n][value_dim] sums of these times values; n rounded up to 8 */
} AttentionTile;

typedef struct {
  const char* name;
  Product products[KINDS];
  /* The same as two calls of a product's block(), for block and block + 1. Results lie one after the other. */
  void (*pairs[KINDS])(const Matrix* w, int64_t block, const Activations* x, int n, float* out);
  int pair_columns[KINDS]; /* faster for at least so many columns; 0: never */
  /* The same as STREAMS such calls, with a single column. NULL: not faster. */
  void (*streams[KINDS])(const Matrix* w, int64_t block, const Activations* x, int n, float* out);
  int offset_inputs; /* q4: most inputs that have an offset in two halves; 0: an offset is a group's, and whole */
  int tile_columns; /* largest tile_width() of quantized kinds */
  int panel_rows, panel_columns; /* 0 where there are no panels */

  void (*widen_f16)(const uint16_t* x, float* y, int64_t n);
  void (*narrow_f16)(const float* x, uint16_t* y, int64_t n);

  /* y = w * x / sqrt(mean(x^2) + eps) */
  void (*rms_norm)(const float* x, const float* w, float eps, int64_t n, float* y);
  /* gate = silu(gate) * x */
  void (*silu_product)(float* gate, const float* x, int64_t n);
  void (*attend)(const CacheSpan* span, const AttentionTile* tile);
  /* Merge a later part of a column's sequence into out (dim), maximum and sum. dim is a multiple of 16. */
  void (*merge_spans)(float* out, float* maximum, float* sum, const float* later, float later_maximum, float later_sum,
                      int64_t dim);
  /* Codes -127..127 of n numbers. Returns their scale, which is not finite when one of the numbers is not. */
  float (*quantize_vector)(const float* x, int64_t n, int8_t* codes);

  /* Codes -127..127 of one group of a row. Returns the scale, rounded to float16. NaN if a number is not finite or the
   * scale is too large for float16. */
  float (*quantize_group_q8)(const float* x, int group_size, int8_t* codes);
  /* Codes 0..15 and such scales of QUANTIZER_COLUMNS groups side by side: x and codes are [group_size][16], and so is
   * the importance of the inputs, above 0. NULL: it is not known. */
  void (*quantize_columns_q4)(const float* x, const float* importance, int group_size, uint8_t* codes, float* scales);
} Kernels;

#include "vector.h"

/* Groups of one row of a quantized matrix; of others 0. */
INLINE int64_t groups_of(const Matrix* w) {
  return w->group_size ? (w->columns + w->group_size - 1) / w->group_size : 0;
}

/* Bytes of codes of one block of 8 rows. */
INLINE int64_t block_bytes(const Matrix* w) {
  return groups_of(w) * w->group_size * ROW_BLOCK / (w->kind == Q4 ? 2 : 1);
}

/* Steps of one column, or of one row of a panel, for a matrix of this kind. */
INLINE int64_t steps_of(const Matrix* w) {
  if (w->kind == Q4) return groups_of(w) * w->group_size / 4;
  if (w->kind == Q8) return groups_of(w) * w->group_size / 2;
  return (w->columns + LANES - 1) / LANES * LANES;
}

/* Offsets of one column. Those of a group are each -8 * the sum of its codes. A table whose sums have 16 bits, which wrap
 * around, has two numbers of 16 bits in an offset: for inputs 0 and 1 of its steps, and for inputs 2 and 3. */
INLINE int64_t offsets_of(const Kernels* kernels, const Matrix* w) {
  return groups_of(w) * (kernels->offset_inputs && w->group_size > kernels->offset_inputs ? 2 : 1);
}

/* The size of the fewest parts of n that are at most so large, and as equal as can be. */
INLINE int equal_parts(int n, int most) {
  const int parts = n > most ? (n + most - 1) / most : 1;
  return (n + parts - 1) / parts;
}

/* The columns that blocks interleave, for n columns. */
INLINE int tile_width(const Kernels* kernels, const Matrix* w, int n) {
  return w->group_size ? equal_parts(n, kernels->tile_columns) : 1;
}

/* Blocks of w that are multiplied at a time, with n columns. */
INLINE int blocks_together(const Kernels* kernels, const Matrix* w, int n) {
  const int least = kernels->pair_columns[w->kind];
  if (n == 1 && kernels->streams[w->kind]) return STREAMS;
  return least > 0 && n >= least ? 2 : 1;
}

/* Multiply blocks first .. end of w with n columns. Each block's results lie so many floats after those of the block
 * before. */
INLINE void multiply_blocks(const Kernels* kernels, const Matrix* w, int64_t first, int64_t end, const Activations* x,
                            int n, int64_t floats, float* out) {
  const int together = blocks_together(kernels, w, n);
  if (together == STREAMS)
    for (; first + STREAMS <= end; first += STREAMS, out += STREAMS * floats)
      kernels->streams[w->kind](w, first, x, n, out);
  if (together == 2)
    for (; first + 1 < end; first += 2, out += 2 * floats) kernels->pairs[w->kind](w, first, x, n, out);
  for (; first < end; first++, out += floats) kernels->products[w->kind].block(w, first, x, n, out);
}

/* The minimum of 16 scores and the 16 numbers from place KEY_BLOCK - n on keeps the first n scores, and makes the
 * others minus infinity. */
#define FOUR(x) (x), (x), (x), (x)
static const float seen_first[2 * KEY_BLOCK] = {
    FOUR(INFINITY),  FOUR(INFINITY),  FOUR(INFINITY),  FOUR(INFINITY),
    FOUR(-INFINITY), FOUR(-INFINITY), FOUR(-INFINITY), FOUR(-INFINITY),
};
#undef FOUR

/* Bytes of so many groups (float kinds: everything) of a packed panel of height rows. */
INLINE int64_t panel_bytes(const Matrix* w, int64_t groups, int height) {
  if (w->group_size) return steps_of(w) / groups_of(w) * groups * height * 4;
  return (steps_of(w) * height + LANES * LANE_GAP) * 4;
}

#endif
