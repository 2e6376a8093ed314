"""Attention over a KV cache, for all tokens of a chunk.

    out_h = sum over s <= position of softmax_s(q_h . k_s / sqrt(head_dim)) v_s

Design: a column is the query of one token and one head. A tile has the columns of consecutive tokens of one sequence,
for all heads that share a key head. So keys and values are read once for many columns. Positions are cut into spans of
SPAN, counted from 0. Each span has its own softmax (kernels/attention.h), and spans are merged in order, as in online
softmax (arXiv:1805.02867). The result depends on the sequence alone. Threads claim pairs of a tile and a key head. If
there are few of these, as for one token of a long sequence, they claim single spans, and merge them in a second step.
"""

from libc.math cimport sqrt
from libc.stdint cimport int8_t, int32_t, int64_t, uint16_t
from libc.string cimport memcpy

import numpy as np

from .kernels cimport (
    ATTENTION_COLUMNS, CACHE_FLOAT16, CACHE_FLOAT32, CACHE_INT8, KEY_BLOCK, SPAN, CacheSpan, Kernels,
)
from .team cimport may_write, start_step, take_piece

cdef enum:
    TILE_COLUMNS = 64          # columns of a tile, or those of one token; its data stay in the L2 cache
    WIDE_POSITIONS = 64        # positions that kernels/attention.h widens together
    FEW_UNITS = 8              # with fewer pairs of a tile and a key head per thread, threads claim spans
    PART_BYTES = 64 << 20      # unless the results of the spans would take more than this

cdef double LOG2_E = 1.4426950408889634

_KINDS = {"float32": CACHE_FLOAT32, "float16": CACHE_FLOAT16, "int8": CACHE_INT8}


cdef char *address_of(object array) except? NULL:
    """Address of an array's numbers. NULL for None."""
    cdef size_t address = 0 if array is None else array.ctypes.data
    return <char *> address


cdef CacheArrays cache_arrays(object cache) except *:
    """The arrays of a CpuKVCache, which must outlive the pointers."""
    cdef CacheArrays arrays
    arrays.kind = _KINDS[cache.keys.dtype.name]
    arrays.item_size = cache.keys.itemsize
    arrays.keys, arrays.values = address_of(cache.keys), address_of(cache.values)
    arrays.key_scales = <float *> address_of(cache.key_scales)
    arrays.value_scales = <float *> address_of(cache.value_scales)
    arrays.n_rows, arrays.value_dim = cache.values.shape[1], cache.values.shape[5]
    arrays.n_positions = cache.values.shape[3] * KEY_BLOCK
    return arrays


cdef inline int64_t head_index(const Heads *heads, const CacheArrays *cache, int64_t layer, int64_t row,
                               int64_t kv_head) noexcept nogil:
    return (layer * cache.n_rows + row) * heads.n_kv_heads + kv_head


cdef inline void rotate(float *x, const float *rope_table, int64_t head_dim) noexcept nogil:
    """Turn each adjacent pair of x (head_dim,) by its angle; rope_table (head_dim / 2, 2)."""
    cdef int64_t i
    cdef float a, b
    for i in range(0, head_dim, 2):
        a, b = x[i], x[i + 1]
        x[i] = a * rope_table[i] - b * rope_table[i + 1]
        x[i + 1] = a * rope_table[i + 1] + b * rope_table[i]


cdef inline const void *narrowed(const Kernels *kernels, CacheKind kind, const float *x, int64_t n, void *narrow,
                                 float *scale) noexcept nogil:
    """x (n,) in the cache's type: x itself, or a copy in narrow. Sets scale for int8."""
    if kind == CACHE_FLOAT32:
        return x
    if kind == CACHE_FLOAT16:
        kernels.narrow_f16(x, <uint16_t *> narrow, n)
    else:
        scale[0] = kernels.quantize_vector(x, n, <int8_t *> narrow)
    return narrow


cdef void rope_and_append(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer, int row,
                          int position, int64_t kv_head, const float *rope_table, float *q, float *k, const float *v,
                          void *narrow) noexcept nogil:
    """Rotate the queries q (queries_per_kv, head_dim) and the key k of one head; put k and v into the cache."""
    cdef int64_t d, h, dim = heads.head_dim
    cdef int64_t place = head_index(heads, cache, layer, row, kv_head) * cache.n_positions + position
    cdef int64_t key_place = (place - position % KEY_BLOCK) * dim + position % KEY_BLOCK
    cdef const void *numbers
    for h in range(heads.queries_per_kv):
        rotate(q + h * dim, rope_table, dim)
    rotate(k, rope_table, dim)
    numbers = narrowed(kernels, cache.kind, k, dim, narrow, cache.key_scales + place)
    if cache.kind == CACHE_FLOAT32:
        for d in range(dim):
            (<float *> cache.keys)[key_place + d * KEY_BLOCK] = (<const float *> numbers)[d]
    elif cache.kind == CACHE_FLOAT16:
        for d in range(dim):
            (<uint16_t *> cache.keys)[key_place + d * KEY_BLOCK] = (<const uint16_t *> numbers)[d]
    else:
        for d in range(dim):
            (<int8_t *> cache.keys)[key_place + d * KEY_BLOCK] = (<const int8_t *> numbers)[d]
    numbers = narrowed(kernels, cache.kind, v, dim, narrow, cache.value_scales + place)
    memcpy(cache.values + place * cache.value_dim * cache.item_size, numbers, dim * cache.item_size)


cdef void load_queries(const Heads *heads, const TokenTile *tile, const int32_t *positions, const float *q,
                       int64_t stride, TileScratch *scratch) noexcept nogil:
    """Load the columns of a tile: queries q (tokens, stride) of the heads that share a key head, scaled."""
    cdef int64_t dim = heads.head_dim, h, d
    cdef float scale = <float> (LOG2_E / sqrt(<double> dim))
    cdef float *target
    cdef const float *source
    cdef int t, c = 0
    for t in range(tile.n):
        for h in range(heads.queries_per_kv):
            source = q + (tile.first + t) * stride + h * dim
            target = scratch.queries + c // ATTENTION_COLUMNS * ATTENTION_COLUMNS * dim + c % ATTENTION_COLUMNS
            for d in range(dim):
                target[d * ATTENTION_COLUMNS] = source[d] * scale
            scratch.positions[c] = positions[tile.first + t]
            c += 1
    scratch.tile.n = c


cdef void attend_span(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t head, int span,
                      TileScratch *scratch) noexcept nogil:
    """Attend from the loaded columns to one span. head is a head_index()."""
    cdef CacheSpan part
    cdef int64_t place = head * cache.n_positions + span * SPAN
    cdef int c, n = scratch.tile.n
    for c in range(n):
        scratch.counts[c] = max(0, min(<int> SPAN, scratch.positions[c] + 1 - span * <int> SPAN))
    for c in range(n, (n + ATTENTION_COLUMNS - 1) // ATTENTION_COLUMNS * ATTENTION_COLUMNS):
        scratch.counts[c] = scratch.counts[n - 1]  # columns that only fill up a group of 8
    part.kind, part.head_dim, part.value_dim = cache.kind, heads.head_dim, cache.value_dim
    part.keys = cache.keys + place * heads.head_dim * cache.item_size
    part.values = cache.values + place * cache.value_dim * cache.item_size
    part.key_scales, part.value_scales = cache.key_scales + place, cache.value_scales + place
    kernels.attend(&part, &scratch.tile)


cdef void merge(const Kernels *kernels, int64_t value_dim, int span, TileScratch *scratch, const float *part,
                const float *maxima, const float *sums) noexcept nogil:
    """Merge the results of one more span into the running ones of a tile's columns."""
    cdef int c
    for c in range(scratch.tile.n):
        if scratch.positions[c] >= span * SPAN:
            kernels.merge_spans(scratch.running + c * value_dim, scratch.running_maxima + c, scratch.running_sums + c,
                                part + c * value_dim, maxima[c], sums[c], value_dim)


cdef void finish(const Heads *heads, const TokenTile *tile, const float *running, const float *sums,
                 int64_t value_dim, float *out, int64_t stride) noexcept nogil:
    """out (tokens, stride) of the heads that share a key head = sums of weighted values / sums of weights."""
    cdef int64_t c, d, dim = heads.head_dim
    cdef float factor
    cdef float *target
    for c in range(tile.n * heads.queries_per_kv):
        target = out + (tile.first + c // heads.queries_per_kv) * stride + c % heads.queries_per_kv * dim
        factor = 1 / sums[c]
        for d in range(dim):
            target[d] = running[c * value_dim + d] * factor


cdef inline void into_running(TileScratch *scratch) noexcept nogil:
    scratch.tile.out = scratch.running
    scratch.tile.maxima, scratch.tile.sums = scratch.running_maxima, scratch.running_sums


cdef inline void into_part(TileScratch *scratch, float *part, float *maxima, float *sums) noexcept nogil:
    scratch.tile.out, scratch.tile.maxima, scratch.tile.sums = part, maxima, sums


cdef void attend(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer,
                 const AttentionPlan *plan, const int32_t *positions, const float *q, float *out, int kind,
                 Thread *thread) noexcept nogil:
    """Take part in a step: out (n, n_heads * head_dim) = attention of the chunk's queries q."""
    cdef int64_t group_dim = heads.queries_per_kv * heads.head_dim, stride = heads.n_kv_heads * group_dim
    cdef int64_t units = plan.n_tiles * heads.n_kv_heads, kv_head
    cdef TileScratch *scratch = &plan.threads[thread.member.id]
    cdef const TokenTile *tile
    cdef int span
    if plan.by_spans:
        attend_by_spans(kernels, heads, cache, layer, plan, positions, q, out, kind, thread)
        return
    start_step(&thread.member, kind, units, 1, 1, True)
    while take_piece(&thread.member):
        # Later tokens attend to more positions: the longest tiles come first.
        tile = &plan.tiles[plan.n_tiles - 1 - thread.member.first // heads.n_kv_heads]
        kv_head = thread.member.first % heads.n_kv_heads
        load_queries(heads, tile, positions, q + kv_head * group_dim, stride, scratch)
        into_running(scratch)
        for span in range(tile.spans):
            attend_span(kernels, heads, cache, head_index(heads, cache, layer, tile.row, kv_head), span, scratch)
            if span:
                merge(kernels, plan.value_dim, span, scratch, scratch.part, scratch.part_maxima, scratch.part_sums)
            else:
                into_part(scratch, scratch.part, scratch.part_maxima, scratch.part_sums)
        if may_write(&thread.member):
            finish(heads, tile, scratch.running, scratch.running_sums, plan.value_dim, out + kv_head * group_dim,
                   stride)


cdef void attend_by_spans(const Kernels *kernels, const Heads *heads, const CacheArrays *cache, int64_t layer,
                          const AttentionPlan *plan, const int32_t *positions, const float *q, float *out, int kind,
                          Thread *thread) noexcept nogil:
    """attend() in two steps: the units of the first are spans, each with a part of its own. The second merges the parts
    of a tile and kv head.

        item    0      1      2      3      4      5    ...       a tile of 3 spans, 2 kv heads
                span 0 span 1 span 2 span 0 span 1 span 2
                kv head 0 ---------- kv head 1 ----------
    """
    cdef int64_t group_dim = heads.queries_per_kv * heads.head_dim, stride = heads.n_kv_heads * group_dim
    cdef int64_t unit = 0, loaded = -1, item, part, kv_head, columns
    cdef TileScratch *scratch = &plan.threads[thread.member.id]
    cdef const TokenTile *tile
    cdef int span
    start_step(&thread.member, kind, plan.n_items, 1, 1, True)
    while take_piece(&thread.member):
        item = thread.member.first
        unit = unit_of_item(heads, plan, item, unit)
        tile, kv_head = &plan.tiles[unit // heads.n_kv_heads], unit % heads.n_kv_heads
        span = <int> (item - tile.first_item - kv_head * tile.spans)
        if unit != loaded:
            load_queries(heads, tile, positions, q + kv_head * group_dim, stride, scratch)
            loaded = unit
        into_part(scratch, scratch.part, scratch.part_maxima, scratch.part_sums)
        attend_span(kernels, heads, cache, head_index(heads, cache, layer, tile.row, kv_head), span, scratch)
        if may_write(&thread.member):
            part, columns = item * plan.part_columns, scratch.tile.n
            memcpy(plan.parts + part * plan.value_dim, scratch.part, columns * plan.value_dim * sizeof(float))
            memcpy(plan.part_maxima + part, scratch.part_maxima, columns * sizeof(float))
            memcpy(plan.part_sums + part, scratch.part_sums, columns * sizeof(float))
    start_step(&thread.member, kind, plan.n_tiles * heads.n_kv_heads, 1, 1, True)
    while take_piece(&thread.member):
        unit = thread.member.first
        tile, kv_head = &plan.tiles[unit // heads.n_kv_heads], unit % heads.n_kv_heads
        merge_parts(kernels, heads, plan, tile, tile.first_item + kv_head * tile.spans, positions, scratch)
        if may_write(&thread.member):
            finish(heads, tile, scratch.running, scratch.running_sums, plan.value_dim, out + kv_head * group_dim,
                   stride)


cdef inline int64_t unit_of_item(const Heads *heads, const AttentionPlan *plan, int64_t item,
                                 int64_t guess) noexcept nogil:
    """The unit, a tile and a kv head, that an item belongs to. It is searched from guess on."""
    cdef const TokenTile *tile
    cdef int64_t t = guess // heads.n_kv_heads
    while item < plan.tiles[t].first_item:
        t -= 1
    while t + 1 < plan.n_tiles and item >= plan.tiles[t + 1].first_item:
        t += 1
    tile = &plan.tiles[t]
    return t * heads.n_kv_heads + (item - tile.first_item) // tile.spans


cdef void merge_parts(const Kernels *kernels, const Heads *heads, const AttentionPlan *plan, const TokenTile *tile,
                      int64_t item, const int32_t *positions, TileScratch *scratch) noexcept nogil:
    """Merge the parts of a tile and kv head. item is the first of them."""
    cdef int c, span, columns = tile.n * <int> heads.queries_per_kv
    cdef int64_t part = item * plan.part_columns
    memcpy(scratch.running, plan.parts + part * plan.value_dim, columns * plan.value_dim * sizeof(float))
    memcpy(scratch.running_maxima, plan.part_maxima + part, columns * sizeof(float))
    memcpy(scratch.running_sums, plan.part_sums + part, columns * sizeof(float))
    for c in range(columns):
        scratch.positions[c] = positions[tile.first + c // <int> heads.queries_per_kv]
    scratch.tile.n = columns
    for span in range(1, tile.spans):
        part += plan.part_columns
        merge(kernels, plan.value_dim, span, scratch, plan.parts + part * plan.value_dim, plan.part_maxima + part,
              plan.part_sums + part)


cdef int64_t part_floats(const Heads *heads, int64_t columns) noexcept nogil:
    """Number of floats of the parts of so many columns, with room to align them."""
    return columns * ((heads.head_dim + KEY_BLOCK - 1) // KEY_BLOCK * KEY_BLOCK + 2) + KEY_BLOCK


cdef int64_t most_part_bytes(const Heads *heads, int n_threads, int chunk, int64_t n_positions) noexcept nogil:
    """Most bytes of parts that a chunk needs, for sequences of so many positions."""
    cdef int64_t tiles = min(<int64_t> chunk, (FEW_UNITS * n_threads - 1) // heads.n_kv_heads)
    cdef int64_t columns = max(<int64_t> TILE_COLUMNS, heads.queries_per_kv) + ATTENTION_COLUMNS
    cdef int64_t spans = (n_positions + SPAN - 1) // SPAN
    if tiles == 0 or spans == 1 or n_threads == 1:
        return 0
    return min(<int64_t> PART_BYTES, 4 * part_floats(heads, tiles * heads.n_kv_heads * spans * columns))


cdef class Planner:

    cdef int allocate(self, Scratch scratch, const Heads *heads, int n_threads, int chunk) except -1:
        """Take memory for chunks of so many tokens from scratch."""
        cdef int64_t columns = max(<int64_t> TILE_COLUMNS, heads.queries_per_kv)
        cdef int64_t value_dim = (heads.head_dim + KEY_BLOCK - 1) // KEY_BLOCK * KEY_BLOCK
        cdef TileScratch *thread
        cdef TileScratch counted
        cdef int t
        columns = (columns + ATTENTION_COLUMNS - 1) // ATTENTION_COLUMNS * ATTENTION_COLUMNS
        self.heads, self.n_threads, self.plan.value_dim = heads[0], n_threads, value_dim
        self.plan.tiles = <TokenTile *> scratch.allocate(chunk * sizeof(TokenTile))
        self.plan.threads = <TileScratch *> scratch.allocate(n_threads * sizeof(TileScratch))
        for t in range(n_threads):
            thread = &counted if self.plan.threads is NULL else &self.plan.threads[t]
            thread.queries = <float *> scratch.allocate(columns * heads.head_dim * sizeof(float))
            thread.counts = <int32_t *> scratch.allocate(columns * sizeof(int32_t))
            thread.positions = <int32_t *> scratch.allocate(columns * sizeof(int32_t))
            thread.running = <float *> scratch.allocate(columns * value_dim * sizeof(float))
            thread.running_maxima = <float *> scratch.allocate(columns * sizeof(float))
            thread.running_sums = <float *> scratch.allocate(columns * sizeof(float))
            thread.part = <float *> scratch.allocate(columns * value_dim * sizeof(float))
            thread.part_maxima = <float *> scratch.allocate(columns * sizeof(float))
            thread.part_sums = <float *> scratch.allocate(columns * sizeof(float))
            thread.narrow = scratch.allocate(heads.head_dim * sizeof(float))
            thread.tile.queries, thread.tile.counts = thread.queries, thread.counts
            thread.tile.weights = <float *> scratch.allocate(columns * SPAN * sizeof(float))
            thread.tile.wide = <float *> scratch.allocate(WIDE_POSITIONS * value_dim * sizeof(float))
        return 0

    cdef int make_plan(self, int n, const int32_t *rows, const int32_t *positions) except -1:
        """Cut the n tokens of a chunk into tiles."""
        cdef AttentionPlan *plan = &self.plan
        cdef TokenTile *tile
        cdef int most = max(1, <int> (TILE_COLUMNS // self.heads.queries_per_kv)), t = 0, longest = 0
        cdef int64_t units, spans = 0
        plan.n_tiles = 0
        while t < n:
            tile = &plan.tiles[plan.n_tiles]
            plan.n_tiles += 1
            tile.first, tile.row, tile.n = t, rows[t], 1
            while tile.n < most and t + tile.n < n and rows[t + tile.n] == tile.row:
                tile.n += 1
            t += tile.n
            tile.spans = positions[t - 1] // <int> SPAN + 1
            tile.first_item = spans * self.heads.n_kv_heads
            longest, spans = max(longest, tile.n), spans + tile.spans
        units = plan.n_tiles * self.heads.n_kv_heads
        plan.n_items = spans * self.heads.n_kv_heads
        plan.part_columns = longest * self.heads.queries_per_kv + ATTENTION_COLUMNS
        plan.by_spans = (plan.n_items > units and units < FEW_UNITS * self.n_threads and self.n_threads > 1
                         and part_floats(&self.heads, plan.n_items * plan.part_columns) * 4 <= PART_BYTES)
        if plan.by_spans:
            self._reserve_parts(plan.n_items * plan.part_columns)
        return 0

    cdef int _reserve_parts(self, int64_t columns) except -1:
        """Make room for parts of so many columns."""
        cdef int64_t needed = part_floats(&self.heads, columns)
        cdef size_t address
        if self.parts is None or self.parts.size < needed:
            self.parts = np.empty(needed, np.float32)
        address = self.parts.ctypes.data
        self.plan.parts = <float *> ((address + 63) // 64 * 64)
        self.plan.part_maxima = self.plan.parts + columns * self.plan.value_dim
        self.plan.part_sums = self.plan.part_maxima + columns
        return 0
