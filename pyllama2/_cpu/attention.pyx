"""Attention over a KV cache, one token and one key head at a time.

    out_h = sum over s <= position of softmax_s(q_h . k_s / sqrt(head_dim)) v_s

Design: the unit of work is one token and one key head with all query heads that share it, so that each key and value
is read, and widened from float16, once for all of them. Positions are taken in blocks of POSITIONS counted from 0
with a running maximum and sum (online softmax, arXiv:1805.02867): the result depends on the sequence alone.
"""

from libc.math cimport INFINITY, expf, sqrt
from libc.stdint cimport int64_t, uint16_t
from libc.string cimport memcpy, memset

from .kernels cimport FLOAT32, ROW_BLOCK, Activations, Kernels, Matrix


cdef inline int64_t place(const Heads *heads, const CacheArrays *cache, int64_t layer, int64_t row, int64_t kv_head,
                          int64_t position) noexcept nogil:
    """Index in the cache's arrays of a head's vector at a position."""
    cdef int64_t head = (layer * cache.n_rows + row) * heads.n_kv_heads + kv_head
    return (head * cache.max_seq_len + position) * heads.head_dim


cdef inline void rotate(float *x, const float *cos_sin, int64_t head_dim) noexcept nogil:
    """Turn each adjacent pair of x (head_dim,) by its angle; cos_sin (head_dim / 2, 2)."""
    cdef int64_t i
    cdef float a, b
    for i in range(0, head_dim, 2):
        a, b = x[i], x[i + 1]
        x[i] = a * cos_sin[i] - b * cos_sin[i + 1]
        x[i + 1] = a * cos_sin[i + 1] + b * cos_sin[i]


cdef inline void store(const Kernels *kernels, bint half, void *array, int64_t index, const float *x,
                       int64_t n) noexcept nogil:
    if half:
        kernels.narrow_f16(x, <uint16_t *> array + index, n)
    else:
        memcpy(<float *> array + index, x, n * sizeof(float))


cdef inline const float *wide(const Kernels *kernels, bint half, const void *array, int64_t index, int64_t n,
                              float *buffer) noexcept nogil:
    """n numbers of a cache array as float32: in place, or widened into buffer."""
    if not half:
        return <const float *> array + index
    kernels.widen_f16(<const uint16_t *> array + index, buffer, n)
    return buffer


cdef void rope_and_append(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer, int row,
                          int position, int64_t kv_head, const float *cos_sin, float *q, float *k,
                          const float *v) noexcept nogil:
    """Rotate the queries q (queries_per_kv, head_dim) and the key k of one head; put k and v into the cache."""
    cdef int64_t h, index = place(heads, cache, layer, row, kv_head, position)
    for h in range(heads.queries_per_kv):
        rotate(q + h * heads.head_dim, cos_sin, heads.head_dim)
    rotate(k, cos_sin, heads.head_dim)
    store(kernels, cache.half, cache.keys, index, k, heads.head_dim)
    store(kernels, cache.half, cache.values, index, v, heads.head_dim)


cdef inline void score_block(const Kernels *kernels, const Heads *heads, const float *keys, int n, const float *q,
                             Thread *thread) noexcept nogil:
    """thread.scores (queries_per_kv, POSITIONS) = q . k / sqrt(head_dim) for n keys (n, head_dim)."""
    cdef Activations queries
    cdef Matrix matrix
    cdef float scale = <float> (1.0 / sqrt(<double> heads.head_dim))
    cdef int block, first, rows, s, h
    memset(&queries, 0, sizeof(queries))
    memset(&matrix, 0, sizeof(matrix))
    queries.values = q
    queries.value_stride = heads.head_dim
    matrix.kind, matrix.rows, matrix.columns, matrix.data = FLOAT32, n, heads.head_dim, keys
    for block in range((n + ROW_BLOCK - 1) // ROW_BLOCK):
        first = block * ROW_BLOCK
        rows = min(<int> ROW_BLOCK, n - first)
        kernels.products[<int> FLOAT32].block(&matrix, block, &queries, <int> heads.queries_per_kv, thread.tile)
        for h in range(heads.queries_per_kv):
            for s in range(rows):
                thread.scores[h * POSITIONS + first + s] = thread.tile[h * ROW_BLOCK + s] * scale


cdef void attend(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer, int row,
                 int position, int64_t kv_head, const float *q, float *out, Thread *thread) noexcept nogil:
    """out (queries_per_kv, head_dim) = attention of the queries q, of that shape, at a position to all up to it."""
    cdef int64_t dim = heads.head_dim, h, index
    cdef int b, start, n, s
    cdef float maximum, keep
    cdef float *scores
    cdef const float *vectors
    for h in range(heads.queries_per_kv):
        thread.softmax[2 * h] = -INFINITY
        thread.softmax[2 * h + 1] = 0
    memset(out, 0, heads.queries_per_kv * dim * sizeof(float))
    for b in range(position // POSITIONS + 1):
        start = b * POSITIONS
        n = min(<int> POSITIONS, position + 1 - start)
        index = place(heads, cache, layer, row, kv_head, start)
        vectors = wide(kernels, cache.half, cache.keys, index, n * dim, thread.keys)
        score_block(kernels, heads, vectors, n, q, thread)
        vectors = wide(kernels, cache.half, cache.values, index, n * dim, thread.keys)
        for h in range(heads.queries_per_kv):
            scores = thread.scores + h * POSITIONS
            maximum = thread.softmax[2 * h]
            for s in range(n):
                maximum = max(maximum, scores[s])
            keep = expf(thread.softmax[2 * h] - maximum)  # 0 for the first block
            thread.softmax[2 * h] = maximum
            thread.softmax[2 * h + 1] = thread.softmax[2 * h + 1] * keep + kernels.exp_sum(scores, maximum, n)
            kernels.weighted_sum(out + h * dim, keep, scores, vectors, n, dim)
    for h in range(heads.queries_per_kv):
        for index in range(dim):
            out[h * dim + index] /= thread.softmax[2 * h + 1]
