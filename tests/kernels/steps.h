/* The steps between products of one table against scalar.h: equal bits, whatever the input. */
#include "harness.h"

enum { MOST_NUMBERS = 150, LONGEST_NORM = 1100 }; /* of 512 partial sums some have three squares, some two */

static void check_float16(const Kernels* table) {
  enum { ALL = 0x10000 };
  subject = table->name;
  Room halves = room_for(ALL * 2), wide = room_for(ALL * 4), narrow = room_for(ALL * 2);
  float* x = wide.p;
  for (int i = 0; i < ALL; i++) ((uint16_t*)halves.p)[i] = (uint16_t)i;
  table->widen_f16(halves.p, x, ALL);
  for (int i = 0; i < ALL; i++) {
    float expected = half_to_float((uint16_t)i);
    expect_floats("widened", x + i, &expected, 1);
  }
  add_floats_to_digest(x, ALL);
  for (int round = 0; round < 8; round++) {
    random_state = (uint64_t)round;
    for (int i = 0; i < ALL; i++) { /* all halves, what lies halfway between them and beside that, and any bits */
      uint32_t bits = round < 2 ? random_bits() : 0;
      float magnitude = half_to_float(i & 0x7fff), next = half_to_float((i & 0x7fff) + 1);
      if (round >= 2) {
        float between = round == 2 ? magnitude : (magnitude + next) * 0.5f;
        memcpy(&bits, &between, 4);
        bits = (bits + (uint32_t)(round - 4)) & 0x7fffffff;
        bits |= (uint32_t)(i & 0x8000) << 16;
      }
      memcpy(x + i, &bits, 4);
    }
    table->narrow_f16(x, narrow.p, ALL);
    for (int i = 0; i < ALL; i++) {
      uint16_t found = ((uint16_t*)narrow.p)[i], expected = float_to_half(x[i]);
      if (x[i] != x[i]) found = (found & 0x7fff) > 0x7c00 ? expected : found;
      expect_bytes("narrowed", &found, &expected, 2);
    }
  }
  leave(halves);
  leave(wide);
  leave(narrow);
}

/* What a loop over vectors leaves over. */
static void check_short_float16(const Kernels* table) {
  for (int64_t n = 1; n <= 40; n++) {
    Room halves = room_for((size_t)n * 2), wide = room_for((size_t)n * 4), narrow = room_for((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) ((uint16_t*)halves.p)[i] = (uint16_t)(random_bits() % 0x7c00);
    table->widen_f16(halves.p, wide.p, n);
    for (int64_t i = 0; i < n; i++) {
      float expected = half_to_float(((uint16_t*)halves.p)[i]);
      expect_floats("widened", (float*)wide.p + i, &expected, 1);
    }
    table->narrow_f16(wide.p, narrow.p, n);
    expect_bytes("narrowed", narrow.p, halves.p, (size_t)n * 2);
    leave(halves);
    leave(wide);
    leave(narrow);
  }
}

static void check_norm_and_silu(const Kernels* table, int64_t n, Pattern pattern) {
  Room x = room_for((size_t)n * 4), w = room_for((size_t)n * 4), y = room_for((size_t)n * 4);
  float expected[LONGEST_NORM];
  random_numbers(x.p, n, pattern);
  random_numbers(w.p, n, ORDINARY);
  table->rms_norm(x.p, w.p, 1e-5f, n, y.p);
  kernels_scalar.rms_norm(x.p, w.p, 1e-5f, n, expected);
  expect_floats("rms_norm", y.p, expected, n);
  add_floats_to_digest(y.p, n);

  random_numbers(x.p, n, pattern);
  for (int64_t i = 0; i < n; i++) ((float*)y.p)[i] = expected[i] = 40.0f * ((float*)x.p)[i];
  table->silu_product(y.p, w.p, n);
  kernels_scalar.silu_product(expected, w.p, n);
  expect_floats("silu_product", y.p, expected, n);
  add_floats_to_digest(y.p, n);
  leave(x);
  leave(w);
  leave(y);
}

static void check_vector_quantizer(const Kernels* table, int64_t n, Pattern pattern) {
  Room x = room_for((size_t)n * 4), codes = room_for((size_t)n);
  int8_t expected[MOST_NUMBERS];
  random_numbers(x.p, n, pattern);
  float scale = table->quantize_vector(x.p, n, codes.p);
  float expected_scale = kernels_scalar.quantize_vector(x.p, n, expected);
  expect_floats("scale", &scale, &expected_scale, 1);
  expect_bytes("codes", codes.p, expected, (size_t)n);
  add_floats_to_digest(&scale, 1);
  add_to_digest(codes.p, (size_t)n);
  leave(x);
  leave(codes);
}

static void check_quantizers(const Kernels* table, int group_size, Pattern pattern) {
  const size_t n = (size_t)group_size * QUANTIZER_COLUMNS;
  Room x = room_for(n * 4), codes = room_for(n), scales = room_for(QUANTIZER_COLUMNS * 4);
  uint8_t expected[MAX_GROUP * QUANTIZER_COLUMNS] = {0};
  float expected_scales[QUANTIZER_COLUMNS];
  random_numbers(x.p, (int64_t)n, pattern);
  memset(codes.p, 0, n);
  *(float*)scales.p = table->quantize_group_q8(x.p, group_size, codes.p);
  expected_scales[0] = kernels_scalar.quantize_group_q8(x.p, group_size, (int8_t*)expected);
  expect_floats("scale", scales.p, expected_scales, 1);
  expect_bytes("codes", codes.p, expected, (size_t)group_size);
  add_floats_to_digest(scales.p, 1);
  add_to_digest(codes.p, (size_t)group_size);

  Room importance = room_for(n * 4);
  for (size_t i = 0; i < n; i++) ((float*)importance.p)[i] = ldexpf(1.0f + (float)(i % 7), (int)(i % 11) - 5);
  for (const float* known = NULL;; known = importance.p) {
    table->quantize_columns_q4(x.p, known, group_size, codes.p, scales.p);
    kernels_scalar.quantize_columns_q4(x.p, known, group_size, expected, expected_scales);
    expect_floats("scales", scales.p, expected_scales, QUANTIZER_COLUMNS);
    expect_bytes("codes", codes.p, expected, n);
    add_floats_to_digest(scales.p, QUANTIZER_COLUMNS);
    add_to_digest(codes.p, n);
    if (known) break;
  }
  leave(importance);
  leave(x);
  leave(codes);
  leave(scales);
}

static void check_steps(const Kernels* table) {
  check_float16(table);
  check_short_float16(table);
  for (Pattern pattern = 0; pattern < PATTERNS; pattern++) {
    char name[64];
    snprintf(name, sizeof name, "%s pattern %d", table->name, pattern);
    subject = name;
    random_state = pattern;
    for (int64_t n = 1; n <= MOST_NUMBERS; n += n < 40 ? 1 : 11) {
      check_norm_and_silu(table, n, pattern);
      check_vector_quantizer(table, n, pattern);
    }
    for (int64_t n = 505; n <= LONGEST_NORM; n += n < 520 ? 1 : 145) check_norm_and_silu(table, n, pattern);
    for (int i = 0; i < 50; i++)
      for (int group_size = 32; group_size <= MAX_GROUP; group_size *= 2) check_quantizers(table, group_size, pattern);
  }
}
