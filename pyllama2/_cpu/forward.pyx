"""The forward pass on the CPU: the steps of model.py, in the same order under the same names.

Design: tokens of any sequences are taken in chunks. For each chunk there is a parallel region, in which every thread
runs _run_share(). The threads claim pieces of each step (team.h): some tokens where a step works on whole vectors, some
rows of the matrices in products, some heads in attention. A step begins when the last one is done. The vectors of a
single token are short: each thread norms and quantizes them for itself, which costs less than a step. These steps are
fused: quantization with the norm before it; silu and its product, and residual additions, with the product before them.

The layers of a prompt take long. So a region has a few of them, and signal handlers run between two regions. Inside a
region no Python runs: a signal's handler may fork, and the child has only the thread that forked.
Numbers depend neither on the other tokens of a chunk nor on the number of threads, to the bit.
"""

from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport parallel
from libc.math cimport cos, sin
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from .attention cimport CacheArrays, Heads, attend, cache_arrays, rope_and_append
from .kernels cimport Activations, Kernels, Matrix
from .matrix cimport (
    ADD, STORE, SWIGLU, Products, Thread, activations, enter_team, lookup_row, matrix_of, prepare, run_products,
    set_product, start_columns, start_products, take_columns,
)
from .openmp cimport omp_get_thread_num, omp_get_wtime
from .places cimport ANYWHERE, take_place
from .team cimport Team, start_region, start_step, step_is_over, take_piece
from .workspace cimport ChunkState, Workspace


cdef enum:
    FEW_TOKENS = 16  # a chunk of more counts as a prompt in the profile
    FEW = 0
    MANY = 1

cdef double REGION_S = 0.05  # aimed at for the layers of a prompt that have a region together


cdef enum Step:  # for the profile
    EMBED
    ATTENTION_NORM
    WQ_WK_WV
    ROPE_KV_APPEND
    ATTENTION
    WO_RESIDUAL
    FFN_NORM
    W1_W3_SILU
    W2_RESIDUAL
    NORM_OUTPUT
    N_STEPS


# Names of the steps, and the weights that each one reads.
STEPS = {
    "embed": (),
    "attention_norm": ("attention_norm",),
    "wq wk wv": ("wq", "wk", "wv"),
    "rope, kv append": (),
    "attention": (),
    "wo + residual": ("wo",),
    "ffn_norm": ("ffn_norm",),
    "w1 w3, silu *": ("w1", "w3"),
    "w2 + residual": ("w2",),
    "norm, output": ("norm", "output"),
}


cdef struct LayerWeights:
    const float *attention_norm  # (dim,)
    const float *ffn_norm        # (dim,)
    Matrix wq, wk, wv, wo, w1, w2, w3
    const float *wq_bias         # (q_dim,), NULL in models without
    const float *wk_bias         # (kv_dim,)
    const float *wv_bias         # (kv_dim,)
    const float *wo_bias         # (dim,), NULL in models without


cdef class Forward:
    """The weights of a model, or of a part of one, as C structs, and scratch memory for one chunk: workspace."""

    cdef const Kernels *kernels
    cdef LayerWeights *layers
    cdef Matrix tok_embeddings
    cdef Matrix output
    cdef const float *norm
    cdef const Heads *heads
    cdef ChunkState *state
    cdef Team *team
    cdef Thread *threads
    cdef int n_threads, chunk_size, has_output
    cdef int64_t n_layers, dim, vocab_size
    cdef float norm_eps
    cdef double[::1] frequencies
    cdef double rope_factor      # of cosines and sines
    cdef double[:, ::1] seconds  # (2, N_STEPS): of FEW and of MANY
    cdef readonly list tokens    # number of tokens of both kinds of chunks
    cdef readonly list passes    # number of chunks of both kinds
    cdef readonly Workspace workspace
    cdef dict weights            # of the model; kept alive

    def __cinit__(self, model, int n_threads, str isa, cpus=()):
        config = model.config
        cdef int64_t i
        self.workspace = Workspace(config, model.quantization, n_threads, isa, cpus=cpus)
        self.kernels, self.chunk_size = self.workspace.kernels, self.workspace.chunk_size
        self.state, self.heads = &self.workspace.state, &self.workspace.heads
        self.team, self.threads = self.workspace.team, self.workspace.threads
        self.weights, self.n_threads = dict(model.weights), n_threads
        self.n_layers, self.dim = config.n_layers, config.dim
        self.vocab_size, self.norm_eps = config.vocab_size, config.norm_eps
        self.frequencies = np.asarray(config.rope_frequencies(), np.float64)
        self.rope_factor = config.rope_attention_factor
        self.seconds, self.tokens, self.passes = np.zeros((2, N_STEPS)), [0, 0], [0, 0]
        self.layers = <LayerWeights *> calloc(self.n_layers, sizeof(LayerWeights))
        if self.layers is NULL:
            raise MemoryError("no memory for the layers")
        for i in range(self.n_layers):
            self._bind_layer(&self.layers[i], f"layers.{i}.")
        self.has_output = "norm.weight" in self.weights
        if "tok_embeddings.weight" in self.weights:
            self.tok_embeddings = matrix_of(self.weights["tok_embeddings.weight"])
        if self.has_output:
            name = "tok_embeddings.weight" if config.tied_embeddings else "output.weight"
            self.output = matrix_of(self.weights[name])
            self.norm = vector_of(self.weights["norm.weight"])

    def __dealloc__(self):
        free(self.layers)

    cdef int _bind_layer(self, LayerWeights *layer, str prefix) except -1:
        layer.attention_norm = vector_of(self.weights[prefix + "attention_norm.weight"])
        layer.ffn_norm = vector_of(self.weights[prefix + "ffn_norm.weight"])
        layer.wq = matrix_of(self.weights[prefix + "attention.wq.weight"])
        layer.wk = matrix_of(self.weights[prefix + "attention.wk.weight"])
        layer.wv = matrix_of(self.weights[prefix + "attention.wv.weight"])
        layer.wo = matrix_of(self.weights[prefix + "attention.wo.weight"])
        layer.w1 = matrix_of(self.weights[prefix + "feed_forward.w1.weight"])
        layer.w2 = matrix_of(self.weights[prefix + "feed_forward.w2.weight"])
        layer.w3 = matrix_of(self.weights[prefix + "feed_forward.w3.weight"])
        layer.wq_bias = self._bias(prefix + "attention.wq.bias")
        layer.wk_bias = self._bias(prefix + "attention.wk.bias")
        layer.wv_bias = self._bias(prefix + "attention.wv.bias")
        layer.wo_bias = self._bias(prefix + "attention.wo.bias")
        return 0

    cdef const float *_bias(self, str name) except? NULL:
        """The numbers of a bias. NULL in models without."""
        return vector_of(self.weights[name]) if name in self.weights else NULL

    @property
    def isa(self):
        """Name of the instruction set in use."""
        return self.kernels.name.decode()

    @property
    def step_seconds(self):
        """Seconds by STEPS (2, len(STEPS)): of chunks with few tokens, and with many."""
        return np.array(self.seconds)

    def run(self, const int32_t[::1] tokens, const int32_t[::1] rows, const int32_t[::1] positions,
            const int32_t[::1] outputs, cache, const float[:, ::1] hidden=None):
        """Run the model. Signal handlers run between two layers of a prompt, and what they raise ends the run.

        Args:
            tokens: (n,) as in a Batch that was checked, as are rows, positions and outputs.
            cache: the CpuKVCache, to which keys and values are appended.
            hidden: (n, dim), the residual stream before the first layer. None: the tokens' embeddings.

        Returns:
            Logits (len(outputs), vocab_size) float32; from a part without output the residual stream (n, dim).
        """
        cdef CacheArrays arrays = cache_arrays(cache)
        cdef int64_t i, start, layer, together, n = tokens.shape[0], m = outputs.shape[0] if self.has_output else 0
        cdef float[:, ::1] final = np.empty((m if self.has_output else n, self.dim), np.float32)
        cdef float[:, ::1] logits = np.empty((m, self.vocab_size), np.float32)
        cdef int32_t[::1] here = np.empty(m, np.int32)
        cdef ChunkState *state = self.state
        cdef double started
        cdef int kind
        state.n_outputs, state.hidden = <int> m, NULL
        if m:
            state.outputs, state.final, state.logits = &here[0], &final[0, 0], &logits[0, 0]
        for start in range(0, n, self.chunk_size):
            state.n, state.last = <int> min(<int64_t> self.chunk_size, n - start), start + self.chunk_size >= n
            state.tokens, state.rows, state.positions = &tokens[start], &rows[start], &positions[start]
            if hidden is not None:
                state.hidden = &hidden[start, 0]
            for i in range(m):
                here[i] = <int32_t> (outputs[i] - start)
            kind = MANY if state.n > FEW_TOKENS else FEW
            together = 1 if kind == MANY else self.n_layers
            self.tokens[kind] += state.n
            self.passes[kind] += 1
            self.workspace.start_chunk()
            state.seconds, layer = &self.seconds[kind, 0], 0
            while layer < self.n_layers:
                together = min(together, self.n_layers - layer)
                started = omp_get_wtime()
                with nogil:
                    self._run_layers(&arrays, layer, together)
                layer += together
                if kind == MANY:
                    PyErr_CheckSignals()
                    together = <int64_t> (together * REGION_S / (omp_get_wtime() - started + 1e-9)) or 1
            if not self.has_output:
                memcpy(&final[start, 0], state.x, state.n * self.dim * sizeof(float))
        return np.asarray(logits if self.has_output else final)

    cdef void _run_layers(self, const CacheArrays *cache, int64_t first, int64_t count) noexcept nogil:
        """Run some layers of the chunk. With the first also what comes before it, with the last what comes after it."""
        if first == 0:
            self.state.marked = omp_get_wtime()
        start_region(self.team)
        with parallel(num_threads=self.n_threads):
            take_place(self.threads[omp_get_thread_num()].cpu)
            self._run_share(cache, first, count, enter_team(self.team, self.threads))
        take_place(ANYWHERE)  # the thread that called; OpenMP's own ones keep their places

    cdef void _run_share(self, const CacheArrays *cache, int64_t first, int64_t count,
                         Thread *thread) noexcept nogil:
        """Do _run_layers() as one thread of the team."""
        cdef ChunkState *state = self.state
        cdef int64_t layer
        if first == 0:
            self._embed(thread)
        for layer in range(first, first + count):
            run_layer(self.kernels, &self.layers[layer], layer, self.heads, self.norm_eps, cache, state, thread)
        if self.has_output and first + count == self.n_layers:
            self._output(thread)

    cdef void _embed(self, Thread *thread) noexcept nogil:
        """x = rows of tok_embeddings, or hidden; rope_table = cosine and sine of each token's position's angles."""
        cdef ChunkState *state = self.state
        cdef int t, i, half = <int> (self.heads.head_dim // 2)
        cdef double angle
        start_step(&thread.member, EMBED, state.n, 1, state.n, False)
        while take_piece(&thread.member):
            for t in range(<int> thread.member.first, <int> thread.member.end):
                if state.hidden is not NULL:
                    memcpy(state.x + t * self.dim, state.hidden + t * self.dim, self.dim * sizeof(float))
                else:
                    lookup_row(self.kernels, &self.tok_embeddings, state.tokens[t], state.x + t * self.dim)
                for i in range(half):
                    angle = state.positions[t] * self.frequencies[i]
                    state.rope_table[(t * half + i) * 2] = <float> (cos(angle) * self.rope_factor)
                    state.rope_table[(t * half + i) * 2 + 1] = <float> (sin(angle) * self.rope_factor)
        mark(state, thread, EMBED)

    cdef void _output(self, Thread *thread) noexcept nogil:
        """norm -> output: final, of the outputs in this chunk. After the last chunk, all logits."""
        cdef ChunkState *state = self.state
        cdef int64_t dim = self.dim
        cdef Activations act
        cdef Products products
        cdef int piece, i, n, chunk = self.chunk_size
        start_step(&thread.member, NORM_OUTPUT, state.n_outputs, 1, state.n_outputs, False)
        while take_piece(&thread.member):
            for i in range(<int> thread.member.first, <int> thread.member.end):
                if 0 <= state.outputs[i] < state.n:
                    self.kernels.rms_norm(state.x + state.outputs[i] * dim, self.norm, self.norm_eps, dim,
                                          state.final + i * dim)
        if state.last:
            for piece in range((state.n_outputs + chunk - 1) // chunk):
                i = piece * chunk
                n = min(chunk, state.n_outputs - i)
                set_product(&products, &self.output, state.logits + i * self.vocab_size, STORE)
                start_on(self.kernels, &products, &act, state, state.final + i * dim, n, NORM_OUTPUT, thread)
                run_products(self.kernels, &products, thread)
        mark(state, thread, NORM_OUTPUT)


cdef const float *vector_of(object weight) except NULL:
    """The numbers of a float32 vector, which must outlive the pointer."""
    if weight.type != "float32" or not weight.data.flags.c_contiguous or not weight.data.flags.aligned:
        raise ValueError(f"{weight.name} must be a contiguous float32 array")
    return <const float *> <size_t> weight.data.ctypes.data


cdef inline void add_bias(float *x, const float *bias, int64_t n) noexcept nogil:
    """x (n,) += bias."""
    cdef int64_t i
    for i in range(n):
        x[i] += bias[i]


cdef inline void mark(ChunkState *state, const Thread *thread, Step step) noexcept nogil:
    """Count the time since the last mark for a step."""
    cdef double now
    if thread.member.id == 0:
        now = omp_get_wtime()
        state.seconds[<int> step] += now - state.marked
        state.marked = now


cdef inline void start_on(const Kernels *kernels, Products *products, Activations *act, ChunkState *state,
                          const float *values, int n, Step step, Thread *thread) noexcept nogil:
    """Begin products with values (n, columns), and prepare those as act, which must live until the products' end."""
    cdef const Matrix *w = products.w[0]
    cdef int c, first = 0, end = 0
    act[0] = activations(kernels, w, &thread.steps if n == 1 else &state.steps, values, n)
    if n > 1:
        start_columns(act, n, step, thread)
        while take_columns(act, n, thread, &first, &end):
            for c in range(first, end):
                prepare(kernels, w, act, c)
    start_products(kernels, products, act, n, step, thread)
    if n == 1 and not step_is_over(&thread.member):
        prepare(kernels, w, act, 0)


cdef inline void start_on_norm(const Kernels *kernels, Products *products, Activations *act, ChunkState *state,
                               const float *weight, float eps, Step step, Step norm_step,
                               Thread *thread) noexcept nogil:
    """Begin products with RMSNorm(x), and prepare it as start_on() does."""
    cdef const Matrix *w = products.w[0]
    cdef bint alone = state.n == 1
    cdef float *normed = thread.normed if alone else state.normed
    cdef int t, first = 0, end = 0
    act[0] = activations(kernels, w, &thread.steps if alone else &state.steps, normed, state.n)
    if not alone:
        start_columns(act, state.n, norm_step, thread)
        while take_columns(act, state.n, thread, &first, &end):
            for t in range(first, end):
                kernels.rms_norm(state.x + t * w.columns, weight, eps, w.columns, normed + t * w.columns)
                prepare(kernels, w, act, t)
    start_products(kernels, products, act, state.n, step, thread)
    if alone and not step_is_over(&thread.member):
        kernels.rms_norm(state.x, weight, eps, w.columns, normed)
        prepare(kernels, w, act, 0)
    mark(state, thread, norm_step)


cdef void run_layer(const Kernels *kernels, const LayerWeights *layer, int64_t index, const Heads *heads, float eps,
                    const CacheArrays *cache, ChunkState *state, Thread *thread) noexcept nogil:
    """Run one layer, which is model.py's Block, as one thread of the team."""
    cdef int64_t q_dim = layer.wq.rows, kv_dim = layer.wk.rows
    cdef int64_t head_dim = heads.head_dim, group_dim = heads.queries_per_kv * heads.head_dim
    cdef int64_t unit, units, kv_head, first
    cdef float *q
    cdef float *k
    cdef float *v
    cdef int t, n = state.n
    cdef Activations act
    cdef Products products

    # attention_norm -> wq wk wv
    set_product(&products, &layer.wq, state.q, STORE)
    products.w[1], products.w[2], products.count = &layer.wk, &layer.wv, 3
    products.y[1], products.y[2] = state.k, state.v
    start_on_norm(kernels, &products, &act, state, layer.attention_norm, eps, WQ_WK_WV, ATTENTION_NORM, thread)
    run_products(kernels, &products, thread)
    mark(state, thread, WQ_WK_WV)

    # biases -> rope -> kv append
    # A thread begins with the heads of its attention: its memory has their part of the cache.
    units = heads.n_kv_heads * n
    start_step(&thread.member, ROPE_KV_APPEND, units, max(units // thread.member.size, 1), units, False)
    while take_piece(&thread.member):
        for unit in range(thread.member.first, thread.member.end):
            kv_head, t = unit // n, <int> (unit % n)
            q, first = state.q + t * q_dim + kv_head * group_dim, kv_head * head_dim
            k, v = state.k + t * kv_dim + first, state.v + t * kv_dim + first
            if layer.wq_bias is not NULL:
                add_bias(q, layer.wq_bias + kv_head * group_dim, group_dim)
                add_bias(k, layer.wk_bias + first, head_dim)
                add_bias(v, layer.wv_bias + first, head_dim)
            rope_and_append(kernels, heads, cache, index, state.rows[t], state.positions[t], kv_head,
                            state.rope_table + t * head_dim, q, k, v,
                            state.plan.threads[thread.member.id].narrow)
            if layer.wo_bias is not NULL and kv_head == 0:  # to the residual stream, before wo's product
                add_bias(state.x + t * layer.wo.rows, layer.wo_bias, layer.wo.rows)
    mark(state, thread, ROPE_KV_APPEND)

    # attention
    attend(kernels, heads, cache, index, state.plan, state.positions, state.q, state.attention, ATTENTION, thread)

    # wo + residual
    set_product(&products, &layer.wo, state.x, ADD)
    start_on(kernels, &products, &act, state, state.attention, n, WO_RESIDUAL, thread)
    mark(state, thread, ATTENTION)
    run_products(kernels, &products, thread)
    mark(state, thread, WO_RESIDUAL)

    # ffn_norm -> w1 w3 -> silu *
    set_product(&products, &layer.w1, state.gate, SWIGLU)
    products.w[1] = &layer.w3
    start_on_norm(kernels, &products, &act, state, layer.ffn_norm, eps, W1_W3_SILU, FFN_NORM, thread)
    run_products(kernels, &products, thread)

    # w2 + residual
    set_product(&products, &layer.w2, state.x, ADD)
    start_on(kernels, &products, &act, state, state.gate, n, W2_RESIDUAL, thread)
    mark(state, thread, W1_W3_SILU)
    run_products(kernels, &products, thread)
    mark(state, thread, W2_RESIDUAL)
