"""kernels/kernels.h for Cython: what each function computes is said there."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t


cdef extern from "kernels/kernels.h" nogil:
    enum:
        ROW_BLOCK
        QUAD
        INT8_GROUP
        MAX_GROUP

    ctypedef struct Activations:
        const float *values
        const void *codes
        const float *scales
        const int32_t *sums
        int64_t value_stride
        int64_t stride

    ctypedef struct Kernels:
        const char *name
        void (*matmul_f32)(const float *w, int64_t w_stride, int rows, int64_t inputs, const Activations *x, int n,
                           float *out) noexcept nogil
        void (*matmul_q8)(const int8_t *codes, const uint16_t *scales, int64_t n_groups, int group_size,
                          const Activations *x, int n, float *out) noexcept nogil
        void (*matmul_q4)(const uint8_t *codes, const uint16_t *scales, int64_t n_groups, int group_size,
                          const Activations *x, int n, float *out) noexcept nogil
        void (*widen_f16)(const uint16_t *x, float *y, int64_t n) noexcept nogil
        void (*narrow_f16)(const float *x, uint16_t *y, int64_t n) noexcept nogil
        void (*rms_norm)(const float *x, const float *w, float eps, int64_t n, float *y) noexcept nogil
        void (*quantize_int8)(const float *x, int64_t n, int64_t stride, int8_t *codes, float *scales,
                              int32_t *sums) noexcept nogil
        void (*quantize_int16)(const float *x, int64_t n, int group_size, int64_t stride, int16_t *codes,
                               float *scales) noexcept nogil
        void (*silu_product)(float *gate, const float *x, int64_t n) noexcept nogil
        float (*exp_sum)(float *scores, float maximum, int64_t n) noexcept nogil
        void (*weighted_sum)(float *out, float keep, const float *p, const float *values, int64_t n,
                             int64_t dim) noexcept nogil
        float (*quantize_group_q8)(const float *x, int group_size, int8_t *codes) noexcept nogil
        float (*quantize_group_q4)(const float *x, int group_size, uint8_t *codes) noexcept nogil

    const Kernels *kernels_find(const char *name) noexcept nogil
    float half_to_float(uint16_t h) noexcept nogil
    uint16_t float_to_half(float f) noexcept nogil
