"""Rotation, the KV cache's arrays, and attention of a chunk's tokens."""

from libc.stdint cimport int32_t, int64_t

from .kernels cimport AttentionTile, CacheKind, Kernels
from .matrix cimport Scratch, Thread


cdef struct Heads:
    int64_t n_kv_heads
    int64_t queries_per_kv
    int64_t head_dim


cdef struct CacheArrays:         # see cache.py
    CacheKind kind
    int64_t item_size            # bytes of a number
    char *keys                   # (n_layers, n_rows, n_kv_heads, n_positions / 16, head_dim, 16)
    char *values                 # (n_layers, n_rows, n_kv_heads, n_positions, value_dim)
    float *key_scales            # (n_layers, n_rows, n_kv_heads, n_positions), of int8
    float *value_scales
    int64_t n_rows
    int64_t n_positions          # a multiple of 16
    int64_t value_dim            # head_dim rounded up to 16


cdef struct TokenTile:           # consecutive tokens of the chunk that belong to one sequence
    int first
    int n
    int row
    int spans                    # spans of the cache up to the last token
    int64_t first_item           # its first span with the first kv head


cdef struct TileScratch:         # of one thread
    AttentionTile tile
    float *queries               # in tile, as are counts; its out, maxima and sums are the running ones or a part's
    int32_t *counts
    int32_t *positions           # (columns,) of each column's token
    float *running               # (columns, value_dim): the spans so far
    float *running_maxima        # (columns,)
    float *running_sums
    float *part                  # the same for one span
    float *part_maxima
    float *part_sums
    void *narrow                 # (head_dim,) in the cache's type


cdef struct AttentionPlan:       # of one chunk
    int64_t value_dim
    int n_tiles
    TokenTile *tiles
    TileScratch *threads
    bint by_spans                # whether threads claim spans, not just tiles and heads
    int64_t n_items              # number of (tile, kv head, span), in this order; with by_spans, each has a part
    int64_t part_columns
    float *parts                 # (n_items, part_columns, value_dim)
    float *part_maxima           # (n_items, part_columns)
    float *part_sums


cdef class Planner:
    """The plan of a chunk's attention, and the memory that it needs."""
    cdef AttentionPlan plan
    cdef Heads heads
    cdef int n_threads
    cdef object parts
    cdef int allocate(self, Scratch scratch, const Heads *heads, int n_threads, int chunk) except -1
    cdef int make_plan(self, int n, const int32_t *rows, const int32_t *positions) except -1
    cdef int _reserve_parts(self, int64_t columns) except -1


cdef int64_t part_floats(const Heads *heads, int64_t columns) noexcept nogil
cdef int64_t most_part_bytes(const Heads *heads, int n_threads, int chunk, int64_t n_positions) noexcept nogil
cdef CacheArrays cache_arrays(object cache) except *
cdef void rope_and_append(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer, int row,
                          int position, int64_t kv_head, const float *rope_table, float *q, float *k, const float *v,
                          void *narrow) noexcept nogil
cdef void attend(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer,
                 const AttentionPlan *plan, const int32_t *positions, const float *q, float *out, int kind,
                 Thread *thread) noexcept nogil
