"""The declarations of kernels/types.h, where it says what each function computes."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t


cdef extern from "kernels/types.h" nogil:
    enum:
        ROW_BLOCK
        QUAD
        MAX_GROUP
        QUANTIZER_COLUMNS
        KINDS
        KEY_BLOCK
        SPAN
        ATTENTION_COLUMNS

    ctypedef enum CacheKind:
        CACHE_FLOAT32
        CACHE_FLOAT16
        CACHE_INT8

    ctypedef struct CacheSpan:
        const void *keys
        const void *values
        const float *key_scales
        const float *value_scales
        CacheKind kind
        int64_t head_dim
        int64_t value_dim

    ctypedef struct AttentionTile:
        int n
        const float *queries
        const int32_t *counts
        float *weights
        float *wide
        float *maxima
        float *sums
        float *out

    ctypedef enum Kind:
        FLOAT32
        FLOAT16
        Q8
        Q4

    ctypedef struct Matrix:
        Kind kind
        int group_size
        int64_t rows
        int64_t columns
        const void *data
        const uint16_t *scales

    ctypedef struct Activations:
        const float *values
        int64_t value_stride
        const void *steps
        const float *scales
        const int32_t *offsets
        int64_t n_steps
        int64_t n_groups
        int64_t n_offsets
        int interleave
        int panels

    ctypedef struct Product:
        void (*prepare)(const Matrix *w, const float *x, int interleave, void *steps, float *scales,
                        int32_t *offsets) noexcept nogil
        void (*block)(const Matrix *w, int64_t block, const Activations *x, int n, float *out) noexcept nogil
        int few_columns
        void (*pack)(const Matrix *w, int64_t panel, int64_t g0, int64_t g1, void *steps,
                     float *scales) noexcept nogil
        void (*panel)(const Matrix *w, const void *steps, const float *scales, int64_t g0, int64_t g1,
                      const Activations *x, int64_t c0, float *totals, int64_t total_stride) noexcept nogil

    ctypedef struct Kernels:
        const char *name
        Product *products
        int tile_columns
        int panel_rows
        int panel_columns
        void (*widen_f16)(const uint16_t *x, float *y, int64_t n) noexcept nogil
        void (*narrow_f16)(const float *x, uint16_t *y, int64_t n) noexcept nogil
        void (*rms_norm)(const float *x, const float *w, float eps, int64_t n, float *y) noexcept nogil
        void (*silu_product)(float *gate, const float *x, int64_t n) noexcept nogil
        void (*attend)(const CacheSpan *span, const AttentionTile *tile) noexcept nogil
        void (*merge_spans)(float *out, float *maximum, float *sum, const float *later, float later_maximum,
                            float later_sum, int64_t dim) noexcept nogil
        float (*quantize_vector)(const float *x, int64_t n, int8_t *codes) noexcept nogil
        float (*quantize_group_q8)(const float *x, int group_size, int8_t *codes) noexcept nogil
        void (*quantize_columns_q4)(const float *x, const float *importance, int group_size, uint8_t *codes,
                                    float *scales) noexcept nogil

    int blocks_together(const Kernels *kernels, const Matrix *w, int n) noexcept nogil
    void multiply_blocks(const Kernels *kernels, const Matrix *w, int64_t first, int64_t end, const Activations *x,
                         int n, int64_t floats, float *out) noexcept nogil
    int64_t block_bytes(const Matrix *w) noexcept nogil
    int64_t groups_of(const Matrix *w) noexcept nogil
    int64_t offsets_of(const Kernels *kernels, const Matrix *w) noexcept nogil
    int tile_width(const Kernels *kernels, const Matrix *w, int n) noexcept nogil
    int64_t panel_bytes(const Matrix *w, int64_t groups, int height) noexcept nogil
    int64_t steps_of(const Matrix *w) noexcept nogil
    float half_to_float(uint16_t h) noexcept nogil
    uint16_t float_to_half(float f) noexcept nogil
