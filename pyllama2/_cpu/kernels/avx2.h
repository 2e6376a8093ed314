/* Two tables for x86-64: with AVX2, FMA and F16C; and with the byte products of AVX-VNNI, too. */
#ifndef PYLLAMA2_AVX2_H
#define PYLLAMA2_AVX2_H

#include <cpuid.h>
#include <immintrin.h>

/* Keeps an accumulator in its register. Otherwise GCC moves the additions after all products, and spills. */
#define KEEP(x) __asm__("" : "+x"(x))
/* The same four bytes 8 times. */
#define BROADCAST_STEP(p) _mm256_castps_si256(_mm256_broadcast_ss((const float*)(p)))

#define WIDE_INT __m256i
#define WIDE __m256
#define WIDE_ROWS 8
#define wide_zero() _mm256_setzero_si256()
#define wide_zero_float() _mm256_setzero_ps()
#define wide_load_int(p) _mm256_loadu_si256((const __m256i*)(p))
#define wide_broadcast_int(p) BROADCAST_STEP(p)
#define wide_add_int(a, b) _mm256_add_epi32(a, b)
#define wide_convert(a) _mm256_cvtepi32_ps(a)
#define wide_load(p) _mm256_loadu_ps(p)
#define wide_store(p, v) _mm256_storeu_ps(p, v)
#define wide_broadcast(p) _mm256_broadcast_ss(p)
#define wide_add(a, b) _mm256_add_ps(a, b)
#define wide_mul(a, b) _mm256_mul_ps(a, b)
#define wide_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define wide_set(x) _mm256_set1_ps(x)
#define wide_sub(a, b) _mm256_sub_ps(a, b)
#define wide_max(a, b) _mm256_max_ps(a, b) /* b where one is NaN */
#define wide_min(a, b) _mm256_min_ps(a, b) /* b where one is NaN */
#define wide_exponent(a) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23)) /* from the lowest bits */
#define wide_load_half(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p)))
#define wide_load_codes(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p))))

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define TARGET_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))
#define NAME(f) f##_avx2
#define MIN8(a, b) ((v8f)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define MAX8(a, b) ((v8f)_mm256_max_ps((__m256)(a), (__m256)(b)))
/* Sums of products in 16 bits, which wrap around. With its offset, a sum of two inputs of 16 steps is right in the end: the
 * weights are then -8 to 7, and it is at most 16 * 2 * 8 * 127 = 32512. */
#define DOT_U8(acc, u, s) _mm256_add_epi16(acc, _mm256_maddubs_epi16(u, s))
#define SUM_U8(acc) _mm256_madd_epi16(acc, _mm256_set1_epi16(1))
#define OFFSET_INPUTS 64
#define DOT_S16(acc, a, b) _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
/* acc with the products of the same four bytes, 8 times, which are at p */
#define DOT_U8_AT(acc, u, p) acc = DOT_U8(acc, u, BROADCAST_STEP(p))
#define DOT_S16_AT(acc, a, p) acc = DOT_S16(acc, a, BROADCAST_STEP(p))
#define APART 0
#define TILE_COLUMNS 4
#define FLOAT_COLUMNS 3
#define PANEL_COLUMNS 6
#define ATTEND_COLUMNS 4
#define ATTEND_REGISTERS 8
#define WIDE_DOT_U8 DOT_U8
#define WIDE_SUM_U8 SUM_U8
#define WIDE_DOT_S16 DOT_S16
#include "portable.h"
#include "tiles256.h"
#include "streams256.h"

#include "panels.h"
#include "attention.h"
#include "quantize.h"

TARGET static void widen_f16_avx2(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
  for (; i < n; i++) y[i] = half_to_float(x[i]);
}

TARGET static void narrow_f16_avx2(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; i++) y[i] = float_to_half(x[i]);
}

#define PRODUCT(prepare_, block_, kind, panel_) \
  {.prepare = prepare_, .block = NAME(block_), .pack = NAME(pack_##kind), .panel = NAME(panel_)}
#define PRODUCTS(f32_block, f16_block, q4_prepare)                                   \
  .products = {[FLOAT32] = PRODUCT(prepare_float_avx2, f32_block, f32, panel_float), \
               [FLOAT16] = PRODUCT(prepare_float_avx2, f16_block, f16, panel_float), \
               [Q8] = PRODUCT(prepare_q8_avx2, block_q8, q8, panel_quantized),       \
               [Q4] = PRODUCT(q4_prepare, block_q4, q4, panel_quantized)},           \
  .tile_columns = TILE_COLUMNS, .panel_rows = NAME(panel_rows), .panel_columns = PANEL_COLUMNS
#define AVX2_STEPS                                                                       \
  .widen_f16 = widen_f16_avx2, .narrow_f16 = narrow_f16_avx2, .rms_norm = rms_norm_avx2, \
  .silu_product = silu_product_avx2, .quantize_vector = quantize_vector_avx2,            \
  .quantize_group_q8 = quantize_group_q8_avx2
#define WIDE_STEPS(isa) \
  .attend = attend_##isa, .merge_spans = merge_spans_##isa, .quantize_columns_q4 = quantize_columns_q4_##isa

TARGET_INLINE int32_t offset_in_halves(const int8_t* codes, int n) {
  __m256i sums = _mm256_setzero_si256(); /* of two codes each */
  for (int i = 0; i < n; i += 32)
    sums = _mm256_add_epi16(sums,
                            _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i*)(codes + i))));
  __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(1, 0, 3, 2)));
  sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(2, 3, 0, 1)));
  return _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-8)));
}

TARGET static void prepare_q4_halves(const Matrix* w, const float* x, int interleave, void* steps, float* scales,
                                     int32_t* offsets) {
  prepare_q4_with_avx2(w, x, interleave, steps, scales, offsets, offset_in_halves, OFFSET_INPUTS);
}

static const Kernels kernels_avx2 = {.name = "avx2",
                                     PRODUCTS(streams_f32, streams_f16, prepare_q4_halves),
                                     .offset_inputs = OFFSET_INPUTS,
                                     .streams = {[Q8] = streams_q8_avx2, [Q4] = streams_q4_avx2},
                                     .pairs = {[Q8] = pairs_q8_avx2, [Q4] = pairs_q4_avx2},
                                     .pair_columns = {[Q8] = 3, [Q4] = 4},
                                     AVX2_STEPS,
                                     WIDE_STEPS(avx2)};

/* Some versions of GCC and Clang do not know the name f16c, so the CPU is asked. */
static inline int cpu_has_avx2(void) {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}

/* 0x19: Zen 3 and Zen 4; 0x1a: Zen 5; 0: not AMD's. */
static inline int amd_family(void) {
  unsigned a, b, c, d;
  return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) ? (int)((a >> 8 & 15) + (a >> 20 & 255)) : 0;
}

#include "undefine_isa.h"
#define NAME(f) f##_avx_vnni
#define TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#define TARGET_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c,avxvnni")))
#define DOT_U8(acc, u, s) _mm256_dpbusd_avx_epi32(acc, u, s)
#define SUM_U8(acc) (acc)
#define OFFSET_INPUTS MAX_GROUP
#define APART 1
#define DOT_S16(acc, a, b) _mm256_dpwssd_avx_epi32(acc, a, b)
#define DOT_U8_AT(acc, u, p) acc = DOT_U8(acc, u, BROADCAST_STEP(p))
#define DOT_S16_AT(acc, a, p) acc = DOT_S16(acc, a, BROADCAST_STEP(p))
#include "tiles256.h"

#include "panels.h"

static const Kernels kernels_avx_vnni = {
    .name = "avx_vnni", PRODUCTS(block_f32, block_f16, prepare_q4_avx2), AVX2_STEPS, WIDE_STEPS(avx2)};

static inline int cpu_has_avx_vnni(void) {
  unsigned a, b, c, d;
  return cpu_has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 4);
}

#include "undefine.h"

#endif
