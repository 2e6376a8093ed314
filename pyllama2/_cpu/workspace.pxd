"""Scratch memory of the forward pass, for one chunk of tokens."""

from libc.stdint cimport int32_t, int64_t

from .attention cimport AttentionPlan, Heads, Planner
from .kernels cimport Kernels
from .matrix cimport Scratch, Steps, Thread
from .team cimport Team


cdef struct ChunkState:  # a chunk of n tokens on its way through the layers
    int n
    const int32_t *tokens
    const int32_t *rows
    const int32_t *positions
    const float *hidden      # (n, dim), x before the first layer; NULL: the embeddings of tokens
    const int32_t *outputs   # (n_outputs,) tokens whose logits are wanted; those of this chunk are in 0 .. n
    int n_outputs
    bint last                # whether it is the last chunk, after which logits are computed
    float *final             # (n_outputs, dim), normed x of the outputs
    float *logits            # (n_outputs, vocab_size)
    float *rope_table        # (n, head_dim / 2, 2)
    float *x                 # (n, dim), the residual stream
    float *normed            # (n, dim)
    float *q                 # (n, q_dim)
    float *k                 # (n, kv_dim)
    float *v                 # (n, kv_dim)
    float *attention         # (n, q_dim)
    float *gate              # (n, hidden_dim), silu(w1 x) * (w3 x)
    Steps steps              # of the vectors that are multiplied next
    const AttentionPlan *plan
    double marked            # when the last step ended
    double *seconds          # (N_STEPS,) time of this kind of chunks so far


cdef class Workspace:
    cdef Kernels own_kernels
    cdef const Kernels *kernels       # these
    cdef dict unmeasured              # types of matrices whose few_columns are still to be measured, with their Kind
    cdef int64_t n_weights            # in the matrices of the layers
    cdef readonly int chunk_size      # tokens that go through the layers together
    cdef int n_threads
    cdef Heads heads
    cdef ChunkState state
    cdef Team *team
    cdef Thread *threads
    cdef Scratch scratch
    cdef Planner planner
    cdef list event_arrays            # of each thread, None without a trace
    cdef float *_floats(self, int64_t n) except? NULL
    cdef int _allocate(self, config, cpus) except -1
    cdef int _set_few_columns(self, int kind, str type) except -1
    cdef int start_chunk(self) except -1
