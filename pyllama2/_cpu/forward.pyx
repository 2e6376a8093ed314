"""The forward pass on the CPU: the steps of model.py, in the same order under the same names.

Design: tokens of any sequences are taken in chunks of CHUNK. For each chunk and layer one parallel region is entered,
in which every thread runs run_layer(): it takes its share of each step, by tokens where a step works on whole vectors,
by rows of the matrix in products, by (token, key head) in attention, and meets the others at a barrier where the next
step needs all of the last. Fused: quantization of activations with the norm before it; silu and its product, and the
residual additions, with the matrix product before them.

A token's numbers do not depend on the other tokens of a chunk nor on the number of threads, to the bit.
"""

from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport parallel, threadid
from libc.math cimport cos, sin
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t
from libc.stdlib cimport calloc, free

import numpy as np

from .attention cimport POSITIONS, CacheArrays, Heads, attend, rope_and_append
from .kernels cimport INT8_GROUP, MAX_GROUP, ROW_BLOCK, Activations, Kernels, kernels_find
from .matrix cimport Q4, Q8, Matrix, Thread, lookup_row, matmul, matrix_of
from .openmp cimport share, team_barrier

cdef enum:
    CHUNK = 128  # tokens that go through the layers together


cdef struct LayerWeights:
    const float *attention_norm  # (dim,)
    const float *ffn_norm        # (dim,)
    Matrix wq, wk, wv, wo, w1, w2, w3


cdef struct Work:  # one chunk on its way through the layers; n tokens
    int n
    const int32_t *rows
    const int32_t *positions
    float *cos_sin    # (n, head_dim / 2, 2)
    float *x          # (n, dim), the residual stream
    float *normed     # (n, dim)
    float *q          # (n, q_dim)
    float *k          # (n, kv_dim)
    float *v          # (n, kv_dim)
    float *attended   # (n, q_dim)
    float *gate       # (n, hidden_dim)
    float *up         # (n, hidden_dim)
    void *codes       # quantized activations as struct Activations has them, of whichever vectors are next
    float *scales
    int32_t *sums


cdef class Forward:
    """The weights of one model as C structs, and scratch memory for one chunk."""

    cdef const Kernels *kernels
    cdef LayerWeights *layers
    cdef Matrix tok_embeddings
    cdef Matrix output
    cdef const float *norm
    cdef Heads heads
    cdef Work work
    cdef Thread *threads
    cdef int n_threads
    cdef int64_t n_layers, dim, hidden_dim, vocab_size
    cdef float norm_eps
    cdef double[::1] frequencies
    cdef list arrays   # arrays that the pointers above point into
    cdef object model   # keeps the weights alive

    def __cinit__(self, model, int n_threads, str isa):
        config = model.config
        cdef bytes name = isa.encode()
        cdef int64_t i
        self.kernels = kernels_find(name)
        if self.kernels is NULL:
            raise ValueError(f"this CPU has no instruction set {isa!r}")
        self.model = model
        self.n_threads = n_threads
        self.n_layers, self.dim, self.hidden_dim = config.n_layers, config.dim, config.hidden_dim
        self.vocab_size, self.norm_eps = config.vocab_size, config.norm_eps
        self.heads.n_kv_heads, self.heads.head_dim = config.n_kv_heads, config.head_dim
        self.heads.queries_per_kv = config.n_heads // config.n_kv_heads
        self.frequencies = np.asarray(config.rope_frequencies(), np.float64)
        self.layers = <LayerWeights *> calloc(self.n_layers, sizeof(LayerWeights))
        self.threads = <Thread *> calloc(n_threads, sizeof(Thread))
        if self.layers is NULL or self.threads is NULL:
            raise MemoryError("no memory for the layers' table")
        for i in range(self.n_layers):
            self._bind_layer(i, model.weights)
        self.tok_embeddings = matrix_of(model.weights["tok_embeddings.weight"])
        self.output = matrix_of(model.weights["tok_embeddings.weight" if config.tied_embeddings else "output.weight"])
        self.norm = vector_of(model.weights["norm.weight"])
        self._allocate(config)

    def __dealloc__(self):
        free(self.layers)
        free(self.threads)

    cdef int _bind_layer(self, int64_t i, dict weights) except -1:
        cdef LayerWeights *layer = &self.layers[i]
        prefix = f"layers.{i}."
        layer.attention_norm = vector_of(weights[prefix + "attention_norm.weight"])
        layer.ffn_norm = vector_of(weights[prefix + "ffn_norm.weight"])
        layer.wq = matrix_of(weights[prefix + "attention.wq.weight"])
        layer.wk = matrix_of(weights[prefix + "attention.wk.weight"])
        layer.wv = matrix_of(weights[prefix + "attention.wv.weight"])
        layer.wo = matrix_of(weights[prefix + "attention.wo.weight"])
        layer.w1 = matrix_of(weights[prefix + "feed_forward.w1.weight"])
        layer.w2 = matrix_of(weights[prefix + "feed_forward.w2.weight"])
        layer.w3 = matrix_of(weights[prefix + "feed_forward.w3.weight"])
        return 0

    cdef void *_scratch(self, dtype, int64_t n) except NULL:
        cdef size_t address
        array = np.zeros(max(n, 1), dtype)
        self.arrays.append(array)
        address = array.ctypes.data
        return <void *> address

    cdef int _allocate(self, config) except -1:
        cdef Work *work = &self.work
        cdef int64_t widest = max(config.dim, config.hidden_dim, config.q_dim)
        cdef int64_t padded = padded_columns(widest)
        cdef int64_t tile_columns = max(<int64_t> CHUNK, self.heads.queries_per_kv)
        cdef int t
        self.arrays = []
        work.cos_sin = <float *> self._scratch(np.float32, CHUNK * config.head_dim)
        work.x = <float *> self._scratch(np.float32, CHUNK * config.dim)
        work.normed = <float *> self._scratch(np.float32, CHUNK * config.dim)
        work.q = <float *> self._scratch(np.float32, CHUNK * config.q_dim)
        work.k = <float *> self._scratch(np.float32, CHUNK * config.kv_dim)
        work.v = <float *> self._scratch(np.float32, CHUNK * config.kv_dim)
        work.attended = <float *> self._scratch(np.float32, CHUNK * config.q_dim)
        work.gate = <float *> self._scratch(np.float32, CHUNK * config.hidden_dim)
        work.up = <float *> self._scratch(np.float32, CHUNK * config.hidden_dim)
        work.codes = self._scratch(np.int16, CHUNK * padded)
        work.scales = <float *> self._scratch(np.float32, CHUNK * padded // INT8_GROUP)
        work.sums = <int32_t *> self._scratch(np.int32, CHUNK * padded // INT8_GROUP)
        for t in range(self.n_threads):
            self.threads[t].id, self.threads[t].team = t, self.n_threads
            self.threads[t].tile = <float *> self._scratch(np.float32, tile_columns * ROW_BLOCK)
            self.threads[t].rows = <float *> self._scratch(np.float32, ROW_BLOCK * widest)
            self.threads[t].keys = <float *> self._scratch(np.float32, POSITIONS * config.head_dim)
            self.threads[t].scores = <float *> self._scratch(np.float32, self.heads.queries_per_kv * POSITIONS)
            self.threads[t].softmax = <float *> self._scratch(np.float32, self.heads.queries_per_kv * 2)
        return 0

    @property
    def isa(self):
        """Name of the instruction set in use."""
        return self.kernels.name.decode()

    @property
    def scratch_bytes(self):
        """Bytes of scratch memory."""
        return sum(array.nbytes for array in self.arrays)

    def run(self, const int32_t[::1] tokens, const int32_t[::1] rows, const int32_t[::1] positions,
            const int32_t[::1] outputs, keys, values):
        """Logits (len(outputs), vocab_size); appends to the cache arrays keys and values. All indices were checked.

        Ctrl-C between two layers raises KeyboardInterrupt.
        """
        cdef CacheArrays cache
        cdef size_t keys_address = keys.ctypes.data, values_address = values.ctypes.data
        cdef int64_t chunk, start, layer
        cdef int i, n, m = <int> outputs.shape[0]
        cdef float[:, ::1] hidden = np.empty((m, self.dim), np.float32)  # normed x of the outputs
        cdef float[:, ::1] logits = np.empty((m, self.vocab_size), np.float32)
        cache.keys, cache.values = <void *> keys_address, <void *> values_address
        cache.half = keys.dtype == np.float16
        cache.n_rows, cache.max_seq_len = keys.shape[1], keys.shape[3]
        for chunk in range((tokens.shape[0] + CHUNK - 1) // CHUNK):
            start = chunk * CHUNK
            self.work.n = <int> min(<int64_t> CHUNK, tokens.shape[0] - start)
            self.work.rows, self.work.positions = &rows[start], &positions[start]
            with nogil:
                self._embed(&tokens[start])
            for layer in range(self.n_layers):
                with nogil:
                    self._run_layer(layer, &cache)
                if self.work.n > 1:
                    PyErr_CheckSignals()
            for i in range(m):
                if start <= outputs[i] < start + self.work.n:
                    self.kernels.rms_norm(self.work.x + (outputs[i] - start) * self.dim, self.norm, self.norm_eps,
                                          self.dim, &hidden[i, 0])
        for chunk in range((m + CHUNK - 1) // CHUNK):
            i = <int> chunk * CHUNK
            n = min(<int> CHUNK, m - i)
            with nogil:
                self._output(n, &hidden[i, 0], &logits[i, 0])
            if m > CHUNK:
                PyErr_CheckSignals()
        return np.asarray(logits)

    cdef void _embed(self, const int32_t *tokens) noexcept nogil:
        """x = rows of tok_embeddings; the angles of each token's position."""
        cdef Work *work = &self.work
        cdef int t, i, half = <int> (self.heads.head_dim // 2)
        cdef double angle
        for t in range(work.n):
            lookup_row(self.kernels, &self.tok_embeddings, tokens[t], work.x + t * self.dim)
            for i in range(half):
                angle = work.positions[t] * self.frequencies[i]
                work.cos_sin[(t * half + i) * 2] = <float> cos(angle)
                work.cos_sin[(t * half + i) * 2 + 1] = <float> sin(angle)

    cdef void _run_layer(self, int64_t layer, const CacheArrays *cache) noexcept nogil:
        with parallel(num_threads=self.n_threads):
            run_layer(self.kernels, &self.layers[layer], layer, &self.heads, self.norm_eps, cache, &self.work,
                      &self.threads[threadid()])

    cdef void _output(self, int n, const float *hidden, float *logits) noexcept nogil:
        """logits (n, vocab_size) = output matrix times hidden (n, dim)."""
        with parallel(num_threads=self.n_threads):
            quantize_and_multiply(self.kernels, &self.output, &self.work, hidden, n, logits,
                                  &self.threads[threadid()])


cdef const float *vector_of(object weight) except NULL:
    """The numbers of a float32 vector, which must outlive the pointer."""
    if weight.type != "float32" or not weight.data.flags.c_contiguous or not weight.data.flags.aligned:
        raise ValueError(f"{weight.name} must be a contiguous float32 array")
    cdef size_t address = weight.data.ctypes.data
    return <const float *> address


cdef inline int64_t padded_columns(int64_t columns) noexcept nogil:
    return (columns + MAX_GROUP - 1) // MAX_GROUP * MAX_GROUP


cdef inline Activations activations(const Work *work, const float *values, int64_t columns) noexcept nogil:
    """The columns to multiply with: values (n, columns) and their quantized form in the work's buffers."""
    cdef Activations act
    act.values, act.value_stride = values, columns
    act.codes, act.scales, act.sums = work.codes, work.scales, work.sums
    act.stride = padded_columns(columns)
    return act


cdef inline void quantize_token(const Kernels *kernels, const Matrix *w, const Work *work, const float *values,
                                int t) noexcept nogil:
    """The quantized form of row t of values (n, w.columns), if w needs it."""
    cdef int64_t stride = padded_columns(w.columns)
    cdef const float *x = values + t * w.columns
    if w.kind == Q8:
        kernels.quantize_int16(x, w.columns, w.group_size, stride, <int16_t *> work.codes + t * stride,
                               work.scales + t * (stride // w.group_size))
    elif w.kind == Q4:
        kernels.quantize_int8(x, w.columns, stride, <int8_t *> work.codes + t * stride,
                              work.scales + t * (stride // INT8_GROUP), work.sums + t * (stride // INT8_GROUP))


cdef inline void quantize_tokens(const Kernels *kernels, const Matrix *w, const Work *work, const float *values, int n,
                                 const Thread *thread) noexcept nogil:
    """The same for all rows, shared among the threads, after which they meet."""
    cdef int t
    team_barrier()  # values are complete
    for t in range(<int> share(n, thread.id, thread.team), <int> share(n, thread.id + 1, thread.team)):
        quantize_token(kernels, w, work, values, t)
    team_barrier()


cdef void quantize_and_multiply(const Kernels *kernels, const Matrix *w, const Work *work, const float *values, int n,
                                float *y, Thread *thread) noexcept nogil:
    cdef Activations act = activations(work, values, w.columns)
    quantize_tokens(kernels, w, work, values, n, thread)
    matmul(kernels, w, &act, n, y, False, thread)


cdef inline void norm_tokens(const Kernels *kernels, const Matrix *w, const Work *work, const float *weight, float eps,
                             const Thread *thread) noexcept nogil:
    """normed = RMSNorm(x), and its quantized form for w."""
    cdef int t
    for t in range(<int> share(work.n, thread.id, thread.team), <int> share(work.n, thread.id + 1, thread.team)):
        kernels.rms_norm(work.x + t * w.columns, weight, eps, w.columns, work.normed + t * w.columns)
        quantize_token(kernels, w, work, work.normed, t)
    team_barrier()


cdef void run_layer(const Kernels *kernels, const LayerWeights *layer, int64_t index, const Heads *heads, float eps,
                    const CacheArrays *cache, const Work *work, Thread *thread) noexcept nogil:
    """One layer of model.py's Block, as one thread of the team runs it."""
    cdef int64_t dim = layer.wq.columns, q_dim = layer.wq.rows, kv_dim = layer.wk.rows, hidden = layer.w1.rows
    cdef int64_t head_dim = heads.head_dim, group_dim = heads.queries_per_kv * heads.head_dim
    cdef int64_t unit, units, kv_head, first, count
    cdef int t, n = work.n
    cdef Activations act

    # attention_norm -> wq wk wv
    norm_tokens(kernels, &layer.wq, work, layer.attention_norm, eps, thread)
    act = activations(work, work.normed, dim)
    matmul(kernels, &layer.wq, &act, n, work.q, False, thread)
    matmul(kernels, &layer.wk, &act, n, work.k, False, thread)
    matmul(kernels, &layer.wv, &act, n, work.v, False, thread)
    team_barrier()

    # rope -> kv append
    units = n * heads.n_kv_heads
    for unit in range(share(units, thread.id, thread.team), share(units, thread.id + 1, thread.team)):
        t, kv_head = <int> (unit // heads.n_kv_heads), unit % heads.n_kv_heads
        rope_and_append(kernels, heads, cache, index, work.rows[t], work.positions[t], kv_head,
                        work.cos_sin + t * head_dim, work.q + t * q_dim + kv_head * group_dim,
                        work.k + t * kv_dim + kv_head * head_dim, work.v + t * kv_dim + kv_head * head_dim)
    team_barrier()

    # attention; later tokens see more, so units are dealt out in turn
    for unit in range((units - thread.id + thread.team - 1) // thread.team):
        unit = thread.id + unit * thread.team
        t, kv_head = <int> (unit // heads.n_kv_heads), unit % heads.n_kv_heads
        attend(kernels, heads, cache, index, work.rows[t], work.positions[t], kv_head,
               work.q + t * q_dim + kv_head * group_dim, work.attended + t * q_dim + kv_head * group_dim, thread)

    # wo + residual
    quantize_tokens(kernels, &layer.wo, work, work.attended, n, thread)
    act = activations(work, work.attended, q_dim)
    matmul(kernels, &layer.wo, &act, n, work.x, True, thread)
    team_barrier()

    # ffn_norm -> w1 w3 -> silu * ; a thread's share of w1's rows is its share of w3's
    norm_tokens(kernels, &layer.w1, work, layer.ffn_norm, eps, thread)
    act = activations(work, work.normed, dim)
    matmul(kernels, &layer.w1, &act, n, work.gate, False, thread)
    matmul(kernels, &layer.w3, &act, n, work.up, False, thread)
    first = share((hidden + ROW_BLOCK - 1) // ROW_BLOCK, thread.id, thread.team) * ROW_BLOCK
    count = min(hidden, share((hidden + ROW_BLOCK - 1) // ROW_BLOCK, thread.id + 1, thread.team) * ROW_BLOCK) - first
    for t in range(n):
        kernels.silu_product(work.gate + t * hidden + first, work.up + t * hidden + first, count)

    # w2 + residual
    quantize_tokens(kernels, &layer.w2, work, work.gate, n, thread)
    act = activations(work, work.gate, hidden)
    matmul(kernels, &layer.w2, &act, n, work.x, True, thread)
