"""Scratch memory of the forward pass, for one chunk of tokens: allocated, or counted before there is a model."""

from dataclasses import replace

import numpy as np

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from .attention cimport Planner, most_part_bytes
from .few_columns import known_few_columns, measure
from .kernels cimport Matrix
from .matrix cimport Scratch, Thread, matrix_of_shape
from .places cimport ANYWHERE
from .dispatch cimport find_kernels
from .team cimport Event

# struct Event of team.h
_EVENT = np.dtype({
    "names": ["kind", "pieces", "from_other", "redone", "start", "end"],
    "formats": [np.int32] * 4 + [np.float64] * 2,
})

cdef enum:
    CHUNK = 512              # tokens that go through the layers together
    CHUNK_BYTES = 216 << 20  # fewer if their vectors take more than this; those of Llama-2-70B, quantized, do not
    FEW_COLUMNS = 24         # until they are measured

MEASURED_FROM = 32 << 30     # multiplications of a chunk that takes about ten times as long as measuring


cdef class Workspace:
    """Scratch memory.

    Args:
        config: of the model.
        quantization: of its weights.
        n_threads: threads of the team.
        isa: the instruction set. "": the best one.
        counts_only: allocate nothing, and only count the bytes.
        cpus: the CPU of each thread. Empty: the system places them, or OpenMP by OMP_PLACES.
    """

    def __cinit__(self, config, quantization, int n_threads, str isa="", bint counts_only=False, cpus=()):
        cdef Matrix matrix
        self.own_kernels, self.n_threads = find_kernels(isa)[0], n_threads
        self.kernels, self.unmeasured, self.n_weights = &self.own_kernels, {}, 0
        self.heads.n_kv_heads, self.heads.head_dim = config.n_kv_heads, config.head_dim
        self.heads.queries_per_kv = config.n_heads // config.n_kv_heads
        self.scratch, self.planner = Scratch(counts_only), Planner()
        self.scratch.kernels = self.kernels
        for name, shape in replace(config, n_layers=1).tensor_shapes().items():
            # A row of the embedding is only looked up, unless it is the output matrix too.
            if len(shape) == 2 and (name != "tok_embeddings.weight" or config.tied_embeddings):
                for kind in quantization.kinds_of(name, config):
                    matrix = matrix_of_shape(kind.type, shape, kind.group_size)
                    self.scratch.cover(&matrix)
                    self._set_few_columns(matrix.kind, kind.type)
                if name.startswith("layers."):
                    self.n_weights += config.n_layers * matrix.rows * matrix.columns
        self.chunk_size = CHUNK
        while self.chunk_size > 1 and self.chunk_size * self._token_bytes(config) > CHUNK_BYTES:
            self.chunk_size //= 2
        self.threads = <Thread *> calloc(n_threads, sizeof(Thread))
        if self.threads is NULL:
            raise MemoryError("no memory for the threads' table")
        self._allocate(config, cpus)

    def __dealloc__(self):
        free(self.threads)

    cdef int _set_few_columns(self, int kind, str type) except -1:
        known = known_few_columns(type, self.kernels.name.decode())
        self.own_kernels.products[kind].few_columns = FEW_COLUMNS if known is None else known
        if known is None:
            self.unmeasured[type] = kind
        return 0

    def _token_bytes(self, config):
        """Bytes of the vectors of one token."""
        vectors = config.head_dim + 2 * (config.dim + config.q_dim + config.kv_dim) + config.hidden_dim
        return sizeof(float) * (vectors + self.scratch.n_steps + self.scratch.n_groups + self.scratch.n_offsets)

    cdef float *_floats(self, int64_t n) except? NULL:
        return <float *> self.scratch.allocate(n * sizeof(float))

    cdef int _allocate(self, config, cpus) except -1:
        cdef int64_t chunk = self.chunk_size
        cdef Thread *thread
        cdef int t
        state = &self.state
        state.rope_table = self._floats(chunk * config.head_dim)
        state.x = self._floats(chunk * config.dim)
        state.normed = self._floats(chunk * config.dim)
        state.q = self._floats(chunk * config.q_dim)
        state.k = self._floats(chunk * config.kv_dim)
        state.v = self._floats(chunk * config.kv_dim)
        state.attention = self._floats(chunk * config.q_dim)
        state.gate = self._floats(chunk * config.hidden_dim)
        self.scratch.allocate_steps(&state.steps, chunk)
        self.team = self.scratch.allocate_team(self.n_threads)
        for t in range(self.n_threads):
            thread = &self.threads[t]
            self.scratch.allocate_thread(thread, chunk)
            thread.cpu = cpus[t] if cpus else ANYWHERE
            thread.normed = self._floats(config.dim)
        self.planner.allocate(self.scratch, &self.heads, self.n_threads, self.chunk_size)
        state.plan = &self.planner.plan
        return 0

    cdef int start_chunk(self) except -1:
        """Decide how the threads compute the chunk whose tokens are in state."""
        state = &self.state
        if self.kernels.panel_rows and state.n * self.n_weights >= MEASURED_FROM:
            while self.unmeasured:
                kind, number = self.unmeasured.popitem()
                self.own_kernels.products[<int> number].few_columns = measure(kind, self.kernels.name.decode())
        self.planner.make_plan(state.n, state.rows, state.positions)
        return 0

    @property
    def nbytes(self):
        """Bytes allocated from the start."""
        return self.scratch.nbytes

    def most_bytes(self, int64_t n_positions):
        """Return the most bytes for sequences of n_positions positions: attention may need more than nbytes."""
        return self.nbytes + most_part_bytes(&self.heads, self.n_threads, self.chunk_size, n_positions)

    @property
    def arrays(self):
        """All arrays."""
        return [*self.scratch.arrays, *([] if self.planner.parts is None else [self.planner.parts])]

    def record_events(self, int64_t most):
        """Record what each thread does from now on, up to so many events: memory for the trace."""
        cdef size_t address
        cdef int t
        self.event_arrays = [np.zeros(most, _EVENT) for _ in range(self.n_threads)]
        for t in range(self.n_threads):
            address = self.event_arrays[t].ctypes.data
            self.threads[t].member.events = <Event *> address
            self.threads[t].member.most_events = most

    def events(self):
        """Return the events of each thread so far, arrays of struct Event."""
        return [array[:self.threads[t].member.n_events] for t, array in enumerate(self.event_arrays or [])]
