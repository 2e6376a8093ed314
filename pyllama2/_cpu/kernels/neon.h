/* Two tables for 64-bit ARM: for any CPU; and with the byte products of ARMv8.2 (dotprod). */
#ifndef PYLLAMA2_NEON_H
#define PYLLAMA2_NEON_H

#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif

#define KEEP(x) __asm__("" : "+w"(x))
#define TILE_COLUMNS 4
#define FLOAT_COLUMNS 3

/* Unlike vminq, vminnmq takes the number where the other is NaN. */
#define MIN8(a, b) NEON_EACH_HALF(vminnmq_f32, a, b)
#define MAX8(a, b) NEON_EACH_HALF(vmaxnmq_f32, a, b)
#define NEON_EACH_HALF(f, a, b)                                                \
  (((NeonHalves){.half = {f(NEON_HALVES(a).half[0], NEON_HALVES(b).half[0]),   \
                          f(NEON_HALVES(a).half[1], NEON_HALVES(b).half[1])}}) \
       .whole)
#define NEON_HALVES(v) ((NeonHalves){.whole = (v)})

typedef union {
  v8f whole;
  float32x4_t half[2];
} NeonHalves;

#define NAME(f) f##_neon
#define TARGET
#define TARGET_INLINE INLINE
/* The sums of a group fit 16 bits: one lane adds at most 32 products of -8 .. 7 with -127 .. 127, which is 32512. The
 * codes are signed, so the offset is not needed. GCC must not move copies of inputs upwards, or it spills. */
typedef struct {
  int16x8_t rows0, rows2; /* of 2 rows, 4 lanes each */
} NeonSums;
#define Q4Sums NeonSums
#define ZERO_Q4(sums, offset) ((sums).rows0 = (sums).rows2 = vdupq_n_s16(0), (void)(offset))
#define UNPACK_Q4(bytes, low, high)                                           \
  do {                                                                        \
    int8x16_t codes = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x88))); \
    low = vshrq_n_s8(vshlq_n_s8(codes, 4), 4);                                \
    high = vshrq_n_s8(codes, 4);                                              \
  } while (0)
#define DOT_Q4(sums, codes, x, i)                                                        \
  do {                                                                                   \
    int8x16_t input = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), i)); \
    __asm__ volatile("" : "+w"(input));                                                  \
    (sums).rows0 = vmlal_s8((sums).rows0, vget_low_s8(codes), vget_low_s8(input));       \
    (sums).rows2 = vmlal_high_s8((sums).rows2, codes, input);                            \
  } while (0)
#define KEEP_Q4(sums) __asm__ volatile("" : "+w"((sums).rows0), "+w"((sums).rows2))
#define TOTAL_Q4(sums) vpaddq_s32(vpaddlq_s16((sums).rows0), vpaddlq_s16((sums).rows2))
#include "portable.h"
#include "tiles128.h"

INLINE float32x4_t load_codes_neon(const int8_t* p) { /* 4 codes; no vector has so few bytes */
  uint32_t bits;
  memcpy(&bits, p, sizeof bits);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bits))))));
}

#define WIDE float32x4_t
#define WIDE_ROWS 4
#define wide_set(x) vdupq_n_f32(x)
#define wide_zero_float() vdupq_n_f32(0.0f)
#define wide_load(p) vld1q_f32(p)
#define wide_store(p, v) vst1q_f32(p, v)
#define wide_broadcast(p) vld1q_dup_f32(p)
#define wide_add(a, b) vaddq_f32(a, b)
#define wide_sub(a, b) vsubq_f32(a, b)
#define wide_mul(a, b) vmulq_f32(a, b)
#define wide_fma(a, b, c) vfmaq_f32(c, a, b)
#define wide_max(a, b) vbslq_f32(vcgtq_f32(a, b), a, b) /* b where one is NaN */
#define wide_min(a, b) vbslq_f32(vcltq_f32(a, b), a, b)
#define wide_exponent(a) vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(a), 23))
#define wide_load_half(p) load_half_neon(p)
#define wide_load_codes(p) load_codes_neon(p)
#define ATTEND_COLUMNS 4
#define ATTEND_REGISTERS 16
#include "attention.h"
#include "quantize.h"

static void widen_f16_neon(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(y + i, load_half_neon(x + i));
  for (; i < n; i++) y[i] = half_to_float(x[i]);
}

static void narrow_f16_neon(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  for (; i < n; i++) y[i] = float_to_half(x[i]);
}

#define NEON_TABLE(name_, isa)                                                      \
  {                                                                                 \
      .name = name_,                                                                \
      .tile_columns = 1,                                                            \
      .products =                                                                   \
          {                                                                         \
              [FLOAT32] = {.prepare = prepare_float_neon, .block = block_f32_neon}, \
              [FLOAT16] = {.prepare = prepare_float_neon, .block = block_f16_neon}, \
              [Q8] = {.prepare = prepare_q8_neon, .block = block_q8_##isa},         \
              [Q4] = {.prepare = prepare_q4_neon, .block = block_q4_##isa},         \
          },                                                                        \
      .widen_f16 = widen_f16_neon,                                                  \
      .narrow_f16 = narrow_f16_neon,                                                \
      .rms_norm = rms_norm_neon,                                                    \
      .silu_product = silu_product_neon,                                            \
      .attend = attend_neon,                                                        \
      .merge_spans = merge_spans_neon,                                              \
      .quantize_vector = quantize_vector_neon,                                      \
      .quantize_group_q8 = quantize_group_q8_neon,                                  \
      .quantize_columns_q4 = quantize_columns_q4_neon,                              \
  }

static const Kernels kernels_neon = NEON_TABLE("neon", neon);

#include "undefine_isa.h"

#define NAME(f) f##_neon_dotprod
#ifdef __ARM_FEATURE_DOTPROD /* the compiler's own target has it, as Apple's */
#define TARGET
#define TARGET_INLINE INLINE
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define TARGET_INLINE static inline __attribute__((always_inline, target("arch=armv8.2-a+dotprod")))
#endif
#define Q4Sums int32x4_t
#define ZERO_Q4(sums, offset) ((sums) = vdupq_n_s32(offset))
#define UNPACK_Q4(bytes, low, high)                             \
  do {                                                          \
    uint8x16_t codes = bytes;                                   \
    low = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15))); \
    high = vreinterpretq_s8_u8(vshrq_n_u8(codes, 4));           \
  } while (0)
#define DOT_Q4(sums, codes, x, i) ((sums) = vdotq_laneq_s32(sums, codes, x, i))
#define KEEP_Q4(sums) KEEP(sums)
#define TOTAL_Q4(sums) (sums)
#include "tiles128.h"

static const Kernels kernels_neon_dotprod = NEON_TABLE("neon_dotprod", neon_dotprod);

static inline int cpu_has_neon_dotprod(void) {
#if defined(__ARM_FEATURE_DOTPROD)
  return 1;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return 0;
#endif
}

#include "undefine.h"

#endif
