"""Rotation, the KV cache's arrays, and attention of one token and one key head."""

from libc.stdint cimport int32_t, int64_t

from .kernels cimport Kernels
from .matrix cimport Thread

cdef enum:
    POSITIONS = 64  # of the cache that are processed together


cdef struct Heads:
    int64_t n_kv_heads
    int64_t queries_per_kv
    int64_t head_dim


cdef struct CacheArrays:
    void *keys                # (n_layers, n_rows, n_kv_heads, max_seq_len, head_dim), float32 or float16
    void *values
    bint half
    int64_t n_rows
    int64_t max_seq_len


cdef void rope_and_append(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer, int row,
                          int position, int64_t kv_head, const float *cos_sin, float *q, float *k,
                          const float *v) noexcept nogil
cdef void attend(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer, int row,
                 int position, int64_t kv_head, const float *q, float *out, Thread *thread) noexcept nogil
