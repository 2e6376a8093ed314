"""A weight matrix as C code sees it, and its product with activations."""

from libc.stdint cimport int64_t, uint16_t

from .kernels cimport Activations, Kernels


cdef enum WeightKind:
    FLOAT32
    FLOAT16
    Q8
    Q4


cdef struct Matrix:
    WeightKind kind
    int64_t rows
    int64_t columns
    int group_size            # 0 for float kinds
    const void *data          # laid out as weights.py says
    const uint16_t *scales    # float16 bits; NULL for float kinds


cdef struct Thread:
    int id
    int team                  # number of threads
    float *tile               # (columns of a chunk, 8)
    float *rows               # (8, widest row): float16 rows widened
    float *keys               # (POSITIONS, head_dim): float16 keys, then values, widened
    float *scores             # (queries that share a key head, POSITIONS)
    float *softmax            # (queries that share a key head, 2): running maximum and sum


cdef Matrix matrix_of(object weight) except *
cdef void matmul(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y, bint add,
                 Thread *thread) noexcept nogil
cdef void lookup_row(const Kernels *kernels, const Matrix *w, int64_t row, float *y) noexcept nogil
