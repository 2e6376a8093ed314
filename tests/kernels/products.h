/* Products of one table against the definition in scalar.h, and of float kinds against plain fused multiply-adds. */
#include "harness.h"

enum { MOST_COLUMNS = 20 };

typedef struct {
  Matrix w;
  Room data, scales;
} RandomMatrix;

static uint16_t random_scale(Pattern pattern) {
  uint16_t sign = random_bits() & 0x8000;
  if (pattern == EXTREME) return sign | 0x7bff;
  if (pattern == TINY) return sign | (uint16_t)(random_bits() % 0x400);
  return sign | (uint16_t)(random_bits() % 0x7c00);
}

static RandomMatrix random_matrix(Kind kind, int group_size, int64_t rows, int64_t columns, Pattern pattern) {
  RandomMatrix m = {.w = {.kind = kind, .group_size = group_size, .rows = rows, .columns = columns}};
  if (group_size) {
    const int64_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK, n_scales = blocks * groups_of(&m.w) * ROW_BLOCK;
    const size_t size = (size_t)(blocks * block_bytes(&m.w));
    m.data = room_for(size);
    m.scales = room_for((size_t)n_scales * 2);
    for (size_t i = 0; i < size; i++) {
      int8_t code = (int8_t)random_bits();
      if (kind == Q8 && (pattern == EXTREME || code == -128)) code = code & 1 ? 127 : -127;
      if (kind == Q4 && pattern == EXTREME) code = code & 1 ? 0 : -1; /* two codes of 0 or of 15 */
      ((int8_t*)m.data.p)[i] = code;
    }
    for (int64_t i = 0; i < n_scales; i++) ((uint16_t*)m.scales.p)[i] = random_scale(pattern);
    m.w.scales = m.scales.p;
  } else {
    m.data = room_for((size_t)(rows * columns) * (kind == FLOAT16 ? 2 : 4));
    for (int64_t i = 0; i < rows * columns; i++) {
      float x = random_number(pattern);
      if (kind == FLOAT16)
        ((uint16_t*)m.data.p)[i] = float_to_half(x);
      else
        ((float*)m.data.p)[i] = x;
    }
  }
  m.w.data = m.data.p;
  return m;
}

static void leave_matrix(RandomMatrix m) {
  leave(m.data);
  if (m.w.group_size) leave(m.scales);
}

typedef struct {
  Room steps, scales, offsets;
  Activations x;
} Prepared;

/* n columns values (n, w->columns), interleaved so many at a time, as matrix.pyx prepares them. */
static Prepared prepare_columns(const Kernels* table, const Matrix* w, const float* values, int n, int interleave) {
  const int64_t n_steps = steps_of(w), n_groups = groups_of(w), n_offsets = offsets_of(table, w);
  const int64_t room = (n + interleave - 1) / interleave * interleave;
  Prepared p = {room_for((size_t)(room * n_steps) * 4),
                room_for((size_t)(room * n_groups) * 4),
                room_for((size_t)(room * n_offsets) * 4),
                {.values = values, .value_stride = w->columns}};
  /* Columns that fill up the last interleaved ones hold what they happen to. */
  if (interleave > 1) memset(p.steps.p, 0, (size_t)(room * n_steps) * 4);
  for (int c = 0; c < n; c++) {
    const int64_t first = c / interleave * interleave, lane = c % interleave;
    table->products[w->kind].prepare(
        w, values + c * w->columns, interleave, (int32_t*)p.steps.p + first * n_steps + lane,
        (float*)p.scales.p + first * n_groups + lane, (int32_t*)p.offsets.p + first * n_offsets + lane);
  }
  p.x.steps = p.steps.p, p.x.scales = p.scales.p, p.x.offsets = p.offsets.p;
  p.x.n_steps = n_steps, p.x.n_groups = n_groups, p.x.n_offsets = n_offsets, p.x.interleave = interleave;
  return p;
}

static void leave_columns(Prepared p) {
  leave(p.steps);
  leave(p.scales);
  leave(p.offsets);
}

/* The offsets of some groups, whole or in halves, are those of the definition. */
static void expect_offsets(const Kernels* table, const Matrix* w, const int32_t* found, const int32_t* right,
                           int64_t n_groups) {
  const int64_t parts = offsets_of(table, w) / groups_of(w);
  for (int64_t g = 0; g < n_groups; g++) {
    int32_t sum = 0;
    for (int64_t i = g * parts; i < (g + 1) * parts; i++)
      sum += table->offset_inputs ? (int16_t)(found[i] & 0xffff) + (int16_t)(found[i] >> 16) : found[i];
    if (w->kind == Q4) expect_bytes("offsets", &sum, right + g, 4);
  }
}

/* What tables with fused multiply-adds give for float kinds: y (n, 8), and how far plain ones may be from it. */
static void fused_block(const Matrix* w, int64_t block, const float* x, int n, float* y, float* error) {
  for (int c = 0; c < n; c++)
    for (int64_t r = block * ROW_BLOCK; r < (block + 1) * ROW_BLOCK; r++, y++, error++) {
      float lanes[LANES] = {0}, magnitude = 0;
      for (int64_t i = 0; r < w->rows && i < (w->columns + LANES - 1) / LANES * LANES; i++) {
        float weight = 0, input = 0;
        if (i < w->columns) {
          int64_t at = r * w->columns + i;
          weight = w->kind == FLOAT16 ? half_to_float(((const uint16_t*)w->data)[at]) : ((const float*)w->data)[at];
          input = x[c * w->columns + i];
        }
        lanes[i % LANES] = fmaf(weight, input, lanes[i % LANES]);
        magnitude += fabsf(weight * input);
      }
      *y = SUM16(lanes);
      *error = magnitude * (float)(w->columns + LANES) * 0x1p-24f + 0x1p-140f;
    }
}

/* A panel's product equals that of its blocks, y (blocks, n, 8). */
static void check_panels(const Kernels* table, const Matrix* w, const float* values, int n, const float* y) {
  const Product* product = &table->products[w->kind];
  const int64_t height = table->panel_rows, blocks = (w->rows + ROW_BLOCK - 1) / ROW_BLOCK;
  const int64_t groups = w->group_size ? groups_of(w) : 1, columns = table->panel_columns;
  const int64_t whole = (n + columns - 1) / columns * columns;
  Prepared p = prepare_columns(table, w, values, n, table->panel_columns);
  Room totals = room_for((size_t)(whole * height) * 4);
  for (int64_t panel = 0; panel * height < w->rows; panel++) {
    memset(totals.p, 0, (size_t)(whole * height) * 4);
    for (int64_t g = 0; g < groups; g += w->group_size ? 2 : 1) {
      const int64_t last = g + 2 < groups ? g + 2 : groups, part = w->group_size ? last - g : 1;
      Room steps = room_for((size_t)panel_bytes(w, part, (int)height));
      Room scales = room_for((size_t)(part * height) * 4);
      product->pack(w, panel, g, last, steps.p, scales.p);
      for (int64_t c0 = 0; c0 < n; c0 += columns)
        product->panel(w, steps.p, scales.p, g, last, &p.x, c0, (float*)totals.p + c0 * height, height);
      leave(steps);
      leave(scales);
    }
    for (int64_t block = panel * height / ROW_BLOCK; block < blocks && block < (panel + 1) * height / ROW_BLOCK;
         block++)
      for (int c = 0; c < n; c++) {
        int64_t rows = w->rows - block * ROW_BLOCK < ROW_BLOCK ? w->rows - block * ROW_BLOCK : ROW_BLOCK;
        expect_floats("panel", (float*)totals.p + c * height + (block * ROW_BLOCK - panel * height),
                      y + (block * n + c) * ROW_BLOCK, rows);
      }
  }
  leave(totals);
  leave_columns(p);
}

/* Blocks that are multiplied together, from the first or from the second on, give what each of them gives, y
 * (blocks, n, 8). whole: n rounded up as for x. */
static void check_together(const Kernels* table, const Matrix* w, const Activations* x, int n, int whole,
                           const float* y) {
  const int64_t blocks = (w->rows + ROW_BLOCK - 1) / ROW_BLOCK, floats = whole * ROW_BLOCK;
  Room out = room_for((size_t)(blocks * floats) * 4);
  for (int64_t first = 0; first < 2; first++) {
    multiply_blocks(table, w, first, blocks, x, n, floats, out.p);
    for (int64_t block = first; block < blocks; block++)
      for (int c = 0; c < n; c++) {
        const int64_t rows = w->rows - block * ROW_BLOCK < ROW_BLOCK ? w->rows - block * ROW_BLOCK : ROW_BLOCK;
        expect_floats("blocks together", (float*)out.p + (block - first) * floats + c * ROW_BLOCK,
                      y + (block * n + c) * ROW_BLOCK, rows);
      }
  }
  leave(out);
}

/* y (blocks, n, 8) = the products of all blocks with n columns. */
static void products_of_blocks(const Kernels* table, const Matrix* w, const float* values, int n, float* y) {
  const int width = tile_width(table, w, n), whole = (n + width - 1) / width * width;
  Prepared p = prepare_columns(table, w, values, n, width);
  Room out = room_for((size_t)(whole * ROW_BLOCK) * 4);
  for (int64_t block = 0; block < (w->rows + ROW_BLOCK - 1) / ROW_BLOCK; block++) {
    table->products[w->kind].block(w, block, &p.x, n, out.p);
    memcpy(y + block * n * ROW_BLOCK, out.p, (size_t)(n * ROW_BLOCK) * 4);
  }
  check_together(table, w, &p.x, n, whole, y);
  leave(out);
  leave_columns(p);
}

/* All numbers of columns give the same for each, y (blocks, n, 8), which is the definition's. */
static void check_blocks(const Kernels* table, const Matrix* w, const float* values, float* y) {
  const Kernels* scalar = &kernels_scalar;
  const int64_t blocks = (w->rows + ROW_BLOCK - 1) / ROW_BLOCK;
  const int n = MOST_COLUMNS;
  Room expected = room_for((size_t)(blocks * n * ROW_BLOCK) * 4), error = room_for((size_t)(n * ROW_BLOCK) * 4);
  if (w->group_size) {
    Prepared p = prepare_columns(table, w, values, n, 1), q = prepare_columns(scalar, w, values, n, 1);
    expect_bytes("codes", p.steps.p, q.steps.p, (size_t)(n * q.x.n_steps) * 4);
    expect_floats("scales", p.scales.p, q.scales.p, n * q.x.n_groups);
    expect_offsets(table, w, p.offsets.p, q.offsets.p, n * q.x.n_groups);
    add_to_digest(p.steps.p, (size_t)(n * p.x.n_steps) * 4);
    add_floats_to_digest(p.scales.p, n * p.x.n_groups);
    leave_columns(p);
    leave_columns(q);
    products_of_blocks(scalar, w, values, n, expected.p);
  }
  products_of_blocks(table, w, values, n, y);
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t rows = w->rows - block * ROW_BLOCK < ROW_BLOCK ? w->rows - block * ROW_BLOCK : ROW_BLOCK;
    float* of_block = (float*)expected.p + block * n * ROW_BLOCK;
    if (!w->group_size) fused_block(w, block, values, n, of_block, error.p);
    for (int c = 0; c < n; c++) {
      const float *found = y + (block * n + c) * ROW_BLOCK, *right = of_block + c * ROW_BLOCK;
      if (w->group_size || table != scalar)
        expect_floats("block", found, right, rows);
      else
        expect_near("block", found, right, (float*)error.p + c * ROW_BLOCK, rows);
      add_floats_to_digest(found, rows);
    }
  }
  for (int m = 1; m < n; m++) {
    products_of_blocks(table, w, values, m, expected.p);
    for (int64_t block = 0; block < blocks; block++)
      for (int c = 0; c < m; c++) {
        const int64_t rows = w->rows - block * ROW_BLOCK < ROW_BLOCK ? w->rows - block * ROW_BLOCK : ROW_BLOCK;
        expect_floats("block of fewer columns", (float*)expected.p + (block * m + c) * ROW_BLOCK,
                      y + (block * n + c) * ROW_BLOCK, rows);
      }
  }
  leave(expected);
  leave(error);
}

static void check_products(const Kernels* table) {
  static const int64_t shapes[][2] = {{1, 1}, {8, 32}, {13, 135}, {33, 257}, {24, 512}, {70, 40}};
  static const struct {
    Kind kind;
    int group_size;
    const char* name;
  } kinds[] = {{FLOAT32, 0, "float32"}, {FLOAT16, 0, "float16"}, {Q8, 32, "q8/32"}, {Q8, 64, "q8/64"},
               {Q8, 128, "q8/128"},     {Q4, 32, "q4/32"},       {Q4, 64, "q4/64"}, {Q4, 128, "q4/128"}};
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
      for (Pattern pattern = 0; pattern < PATTERNS; pattern++) {
        char name[64];
        const int64_t rows = shapes[s][0], columns = shapes[s][1];
        snprintf(name, sizeof name, "%s %s %lld x %lld pattern %d", table->name, kinds[k].name, (long long)rows,
                 (long long)columns, pattern);
        subject = name;
        random_state = k * 1000 + s * 10 + pattern;
        RandomMatrix m = random_matrix(kinds[k].kind, kinds[k].group_size, rows, columns, pattern);
        Room values = room_for((size_t)(MOST_COLUMNS * columns) * 4);
        Room y = room_for((size_t)((rows + ROW_BLOCK - 1) / ROW_BLOCK * ROW_BLOCK * MOST_COLUMNS) * 4);
        for (int c = 0; c < MOST_COLUMNS; c++) random_numbers((float*)values.p + c * columns, columns, c % PATTERNS);
        check_blocks(table, &m.w, values.p, y.p);
        if (table->panel_rows) check_panels(table, &m.w, values.p, MOST_COLUMNS, y.p);
        leave(values);
        leave(y);
        leave_matrix(m);
      }
}
