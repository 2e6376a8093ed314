/* Vector types of GCC and Clang, and float16 conversion by hand. */
#ifndef PYLLAMA2_VECTOR_H
#define PYLLAMA2_VECTOR_H

#define INLINE static inline __attribute__((always_inline))

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));

/* Macros where a function would take a vector by value: how that is passed depends on the instruction set. */
#define V8F(x) ((v8f){(x), (x), (x), (x), (x), (x), (x), (x)})
#define LOAD8(p) (*(const v8f_unaligned*)(p))
#define STORE8(p, v) (*(v8f_unaligned*)(p) = (v))
#define LOAD4(p) (*(const v4f_unaligned*)(p))
#define STORE4(p, v) (*(v4f_unaligned*)(p) = (v))
#define SUM8(v) ((((v)[0] + (v)[4]) + ((v)[2] + (v)[6])) + (((v)[1] + (v)[5]) + ((v)[3] + (v)[7])))
/* The sum of an array of 16: halves are added to halves. */
#define SUM16(v)                                                                                           \
  SUM8(((float[8]){(v)[0] + (v)[8], (v)[1] + (v)[9], (v)[2] + (v)[10], (v)[3] + (v)[11], (v)[4] + (v)[12], \
                   (v)[5] + (v)[13], (v)[6] + (v)[14], (v)[7] + (v)[15]}))
/* mask ? a : b, where mask is the result of a comparison */
#define SELECT8(mask, a, b) ((v8f)(((v8i)(mask) & (v8i)(a)) | (~(v8i)(mask) & (v8i)(b))))

typedef v8f v8f_unaligned __attribute__((aligned(4), may_alias));
typedef v4f v4f_unaligned __attribute__((aligned(4), may_alias));

/* Prefetches what a stream of weights will need. */
INLINE void ask_ahead(const void* p) {
  __builtin_prefetch((const char*)p + PREFETCH_L2, 0, 2);
  __builtin_prefetch((const char*)p + PREFETCH_L1, 0, 3);
}

/* How far ahead to prefetch at the bytes before end of some streams of so many bytes each, which lie one after the other:
 * beyond its own end, each goes on after the others. */
INLINE int64_t stream_ahead(int64_t end, int64_t bytes, int streams, int64_t distance) {
  return end + distance <= bytes ? distance : distance + (streams - 1) * bytes;
}

INLINE v4f max4(v4f a, v4f b) { /* b where one is NaN */
  v4i first = a > b;
  return (v4f)((first & (v4i)a) | (~first & (v4i)b));
}

INLINE v4f min4(v4f a, v4f b) { /* b where one is NaN */
  v4i first = a < b;
  return (v4f)((first & (v4i)a) | (~first & (v4i)b));
}

/* A vector whose scale would be smaller is quantized to zeros with the scale 0. With larger scales, a denormal number
 * has the code 0 anyway. So it makes no difference that CUDA kernels take denormal numbers for zeros. */
#define SMALLEST_SCALE 0x1p-100f

/* Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, for |x| < 2^22. */
#define ROUNDER 12582912.0f

INLINE float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
  if (magnitude >= 0x7c00) {
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else {
    float f;
    bits = magnitude << 13;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormals included */
    memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

INLINE uint16_t float_to_half(float f) { /* nearest, ties to even; too large becomes infinity */
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) { /* a subnormal half: adding 0.5 leaves it in the lowest bits, rounded */
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return sign | (uint16_t)(bits - 0x3f000000);
  }
  return sign | (uint16_t)((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13);
}

#endif
