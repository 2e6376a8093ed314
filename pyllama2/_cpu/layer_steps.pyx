"""The steps of a layer that lie between its products, each by itself, on all tokens of a text at once.

The forward pass (forward.pyx) fuses them with the products. Calibration looks at the input of every product, and
changes the weights between two steps; it takes these, and MatrixProduct for the products.
"""

from dataclasses import replace

from cython.parallel cimport parallel, prange
from libc.stdint cimport int32_t, int64_t

import numpy as np

from ..storage.weights import Quantization
from .attention cimport CacheArrays, Heads, attend, cache_arrays, rope_and_append
from .cache import CpuKVCache
from .kernels cimport Kernels
from .matrix cimport Thread, enter_team
from .team cimport start_region, start_step, take_piece
from .workspace cimport Workspace


cdef class LayerSteps:
    """LayerSteps(config, n_threads, isa): norm, attention and SwiGLU of one model. All arrays are float32."""

    cdef const Kernels *kernels
    cdef const Heads *heads
    cdef Workspace workspace
    cdef int n_threads
    cdef object config
    cdef object cache            # of one sequence and one layer
    cdef float[:, ::1] rope_table  # (positions of the cache, head_dim)

    def __cinit__(self, config, int n_threads, str isa=""):
        self.config, self.n_threads = replace(config, n_layers=1), n_threads
        self.workspace = Workspace(self.config, Quantization.of("float32"), n_threads, isa)
        self.kernels, self.heads = self.workspace.kernels, &self.workspace.heads

    def rms_norm(self, const float[:, ::1] x, const float[::1] weight):
        """RMSNorm of x (n, dim), (n, dim)."""
        cdef int64_t t, n = x.shape[0], dim = x.shape[1]
        cdef float eps = self.config.norm_eps
        cdef float[:, ::1] y = np.empty((n, dim), np.float32)
        if weight.shape[0] != dim:
            raise ValueError(f"a norm of {weight.shape[0]} numbers is not for vectors of {dim}")
        for t in prange(n, nogil=True, num_threads=self.n_threads, schedule="static"):
            self.kernels.rms_norm(&x[t, 0], &weight[0], eps, dim, &y[t, 0])
        return np.asarray(y)

    def silu_product(self, float[:, ::1] gate, const float[:, ::1] up):
        """gate (n, hidden_dim) becomes silu(gate) * up."""
        cdef int64_t t, n = gate.shape[0]
        if gate.shape[0] != up.shape[0] or gate.shape[1] != up.shape[1]:
            raise ValueError("gate and up must have the same shape")
        for t in prange(n, nogil=True, num_threads=self.n_threads, schedule="static"):
            self.kernels.silu_product(&gate[t, 0], &up[t, 0], gate.shape[1])

    def attention(self, float[:, ::1] q, float[:, ::1] k, const float[:, ::1] v):
        """Attention of the n tokens of one sequence from position 0 on, (n, q_dim).

        q (n, q_dim) and k, v (n, kv_dim) are products of wq, wk and wv. q and k are rotated in place.
        """
        config = self.config
        cdef int64_t n = q.shape[0], start
        cdef int m, chunk = self.workspace.chunk_size
        if q.shape[1] != config.q_dim or k.shape[1] != config.kv_dim or v.shape[1] != config.kv_dim:
            raise ValueError("queries, keys and values do not have the model's widths")
        if not 0 < n == k.shape[0] == v.shape[0]:
            raise ValueError("queries, keys and values must be of the same tokens")
        if self.cache is None or self.cache.max_seq_len < n:
            self.cache = CpuKVCache(config, 1, n, "float32")
            self.rope_table = rope_table(config, n)
        cdef CacheArrays arrays = cache_arrays(self.cache)
        cdef int32_t[::1] rows = np.zeros(n, np.int32), positions = np.arange(n, dtype=np.int32)
        cdef float[:, ::1] out = np.empty((n, q.shape[1]), np.float32)
        for start in range(0, n, chunk):
            m = <int> min(<int64_t> chunk, n - start)
            self.workspace.planner.make_plan(m, &rows[start], &positions[start])
            start_region(self.workspace.team)
            with nogil, parallel(num_threads=self.n_threads):
                self._attend_share(&arrays, m, &positions[start], &q[start, 0], &k[start, 0], &v[start, 0],
                                   &out[start, 0], enter_team(self.workspace.team, self.workspace.threads))
        return np.asarray(out)

    cdef void _attend_share(self, const CacheArrays *cache, int n, const int32_t *positions, float *q, float *k,
                            const float *v, float *out, Thread *thread) noexcept nogil:
        """rope -> kv append -> attention of n tokens, as one thread of the team runs it."""
        cdef const Heads *heads = self.heads
        cdef int64_t head_dim = heads.head_dim, group_dim = heads.queries_per_kv * heads.head_dim
        cdef int64_t kv_dim = heads.n_kv_heads * head_dim, q_dim = heads.n_kv_heads * group_dim
        cdef int64_t unit, kv_head, t
        start_step(&thread.member, 0, n * heads.n_kv_heads, heads.n_kv_heads, n * heads.n_kv_heads, False)
        while take_piece(&thread.member):
            for unit in range(thread.member.first, thread.member.end):
                t, kv_head = unit // heads.n_kv_heads, unit % heads.n_kv_heads
                rope_and_append(self.kernels, heads, cache, 0, 0, positions[t], kv_head,
                                &self.rope_table[positions[t], 0], q + t * q_dim + kv_head * group_dim,
                                k + t * kv_dim + kv_head * head_dim, v + t * kv_dim + kv_head * head_dim,
                                self.workspace.planner.plan.threads[thread.member.id].narrow)
        attend(self.kernels, heads, cache, 0, &self.workspace.planner.plan, positions, q, out, 0, thread)


def rope_table(config, int64_t n):
    """Cosine and sine of each pair's angle at positions 0 .. n - 1, (n, head_dim) float32: pairs of two."""
    angles = np.outer(np.arange(n, dtype=np.float64), np.asarray(config.rope_frequencies(), np.float64))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * config.rope_attention_factor
    return table.reshape(n, -1).astype(np.float32)
