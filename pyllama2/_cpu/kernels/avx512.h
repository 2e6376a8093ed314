/* The table for x86-64 with AVX-512 (F, BW, VL, DQ) and its VNNI. Panels are computed in 512-bit vectors, blocks of 8
 * rows in 256-bit vectors, and two blocks together in 512-bit vectors. Included after avx2.h, whose functions it takes
 * where memory is the limit. */
#ifndef PYLLAMA2_AVX512_H
#define PYLLAMA2_AVX512_H

#define NAME(f) f##_avx512
#define AVX512_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
#define TARGET __attribute__((target(AVX512_TARGET)))
#define TARGET_INLINE static inline __attribute__((always_inline, target(AVX512_TARGET)))

#define TILE_COLUMNS 8
#define FLOAT_COLUMNS 6
#define SUM_U8(acc) (acc)
#define OFFSET_INPUTS MAX_GROUP
#define APART 1
#define DOT_S16(acc, a, b) _mm256_dpwssd_epi32(acc, a, b)
/* With the broadcast inside of the instruction, which GCC does not do: a third fewer of them. */
#define DOT_U8_AT(acc, u, p) __asm__("vpdpbusd %2%{1to8%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*(const int32_t*)(p)))
#define DOT_S16_AT(acc, a, p) __asm__("vpdpwssd %2%{1to8%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*(const int32_t*)(p)))
#define KEEP(x) __asm__("" : "+v"(x))
#include "tiles256.h"

#undef DOT_U8_AT
#undef DOT_S16_AT
#define DOT_U8_AT(acc, u, p) __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*(const int32_t*)(p)))
#define DOT_S16_AT(acc, a, p) __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*(const int32_t*)(p)))
#include "tiles512.h"
#define PAIRS .pairs = {[Q8] = blocks_q8_avx512, [Q4] = blocks_q4_avx512}, .pair_columns = {[Q8] = 5, [Q4] = 4}

#define WIDE_INT __m512i
#define WIDE __m512
#define WIDE_ROWS 16
#define wide_zero() _mm512_setzero_si512()
#define wide_zero_float() _mm512_setzero_ps()
#define wide_load_int(p) _mm512_loadu_si512(p)
#define wide_broadcast_int(p) _mm512_castps_si512(_mm512_set1_ps(*(const float*)(p)))
#define wide_add_int(a, b) _mm512_add_epi32(a, b)
#define wide_convert(a) _mm512_cvtepi32_ps(a)
#define wide_load(p) _mm512_loadu_ps(p)
#define wide_store(p, v) _mm512_storeu_ps(p, v)
#define wide_broadcast(p) _mm512_set1_ps(*(p))
#define wide_add(a, b) _mm512_add_ps(a, b)
#define wide_mul(a, b) _mm512_mul_ps(a, b)
#define wide_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define wide_set(x) _mm512_set1_ps(x)
#define wide_sub(a, b) _mm512_sub_ps(a, b)
#define wide_max(a, b) _mm512_max_ps(a, b)
#define wide_min(a, b) _mm512_min_ps(a, b)
#define wide_exponent(a) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23))
#define wide_load_half(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(p)))
#define wide_load_codes(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p))))
#define WIDE_DOT_U8(acc, u, s) _mm512_dpbusd_epi32(acc, u, s)
#define WIDE_SUM_U8(acc) (acc)
#define WIDE_DOT_S16(acc, a, b) _mm512_dpwssd_epi32(acc, a, b)
#define PANEL_COLUMNS 12
#define ATTEND_COLUMNS 8
#define ATTEND_REGISTERS 16
#include "panels.h"
#include "attention.h"
#include "quantize.h"

static const Kernels kernels_avx512 = {
    .name = "avx512", PRODUCTS(wide_block_f32, wide_block_f16, prepare_q4_avx2), PAIRS, AVX2_STEPS, WIDE_STEPS(avx512)};
/* For CPUs that compute a vector of 512 bits in two halves, so that panels gain little, and pairs of blocks nothing. */
static const Kernels kernels_avx512_halves = {
    .name = "avx512", PRODUCTS(block_f32, block_f16, prepare_q4_avx2), AVX2_STEPS, WIDE_STEPS(avx512)};

static inline int cpu_has_avx512(void) {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

static inline int cpu_halves_avx512(void) { return amd_family() == 0x19; } /* Zen 4 */

#include "undefine.h"

#endif
