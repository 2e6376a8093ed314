"""CpuBackend: the Backend contract over the compiled forward pass."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..backend.base import AMID_A_STEP, BackendFacts, Batch
from ..backend.kv_cache import KVCache, check_kv_dtype, default_kv_dtype
from ..backend.resident import resident_bytes
from ..backend.stages import Layers, Stage
from ..backend.step_times import Profile, StepTime
from ..errors import ClosedError
from ..process.locks import Lock
from ..sampling import sample
from ..storage.model_file import StoredModel
from .cache import CpuKVCache, allocated_bytes
from .forward import STEPS, Forward
from .matrix import end_team, team_size
from .threads import shown_cpus, team_of
from .trace import Trace

log = logging.getLogger("pyllama2")

if hasattr(os, "register_at_fork"):
    # A child has no team: libgomp would wait for threads that are not there. Without a team it starts another.
    os.register_at_fork(before=end_team)


class CpuBackend(Stage):
    """A model on the CPU. Weights are used where they lie, in a mapped file or in memory.

    Args:
        model: the model, or a part of it.
        n_threads: threads of the OpenMP team. None: default_threads().
        kv_dtype: type of the keys and values: "float32", "float16" or "int8". None: float32 for float32 models, else
            float16.
        layers: which layers the model has. None: all.
        cpus: what cpus_of() returned: thread i runs on cpus[i] while it computes. Empty: where the system lets it run.

    Raises:
        ValueError: an argument is out of range.
    """

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Return None: every machine has a CPU."""
        return None

    def __init__(
        self,
        model: StoredModel,
        *,
        n_threads: int | None = None,
        kv_dtype: str | None = None,
        layers: Layers | None = None,
        cpus: Sequence[int] = (),
    ) -> None:
        n_threads = team_of(n_threads, cpus)
        self.config, self.layers = model.config, layers or Layers.all_of(model.config)
        self.kv_dtype = default_kv_dtype(model.quantization) if kv_dtype is None else kv_dtype
        check_kv_dtype(self.kv_dtype)
        self.n_threads = n_threads
        if (team := team_size(n_threads)) < n_threads:
            log.warning("OpenMP gives %d threads instead of %d; results are the same, but take longer", team, n_threads)
        self._weight_bytes = model.nbytes
        self._is_mapped = model.file is not None
        self._bytes_by_kind: dict[str, int] = defaultdict(int)  # the bytes of "wq" are those of all layers
        for name, weight in model.weights.items():
            self._bytes_by_kind[name.split(".")[-2]] += weight.nbytes
        self._files = model.files()
        self._cpus = tuple(cpus[:n_threads])
        self._forward: Forward | None = Forward(model, n_threads, os.environ.get("PYLLAMA2_CPU_ISA", ""), self._cpus)
        path = os.environ.get("PYLLAMA2_TRACE")
        self._trace = Trace(path, self._forward.workspace, list(STEPS)) if path else None
        self._lock = Lock()  # one batch at a time: scratch memory is shared

    def new_cache(self, n_rows: int, max_seq_len: int) -> CpuKVCache:
        """Make an empty cache."""
        self._forward_open()
        return CpuKVCache(self.config, n_rows, max_seq_len, self.kv_dtype)

    def kv_cache_bytes(self, n_rows: int, max_seq_len: int) -> int:
        """Return the bytes that new_cache() would reserve."""
        return allocated_bytes(self.config, n_rows, max_seq_len, self.kv_dtype)

    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Run the model on a batch, as Backend.forward() says.

        Raises:
            CheckpointError: a file that has weights was truncated or overwritten.
        """
        return self.run(batch, cache, None)

    def run(self, batch: Batch, cache: KVCache, hidden: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Run the layers on a batch, as Stage.run() says. Raises what forward() raises."""
        if not isinstance(cache, CpuKVCache):
            raise TypeError("the cache belongs to another backend")
        batch.check(self.config, cache)
        if self._lock.held_here:
            raise ValueError(AMID_A_STEP)
        with self._lock:
            started = time.monotonic() if self._trace else 0.0
            forward = self._forward_open()
            result = forward.run(batch.tokens, batch.rows, batch.positions, batch.outputs, cache, hidden)
            if self._trace:
                self._trace.add_pass(started, len(batch.tokens))
            for file in self._files:  # weights that changed meanwhile give wrong logits
                file.check()
            return result

    def describe(self) -> BackendFacts:
        """Return facts. scratch_bytes includes the scratch memory of sampling, which all models share."""
        forward = self._forward_open()
        return BackendFacts(
            device="cpu",
            n_threads=self.n_threads,
            cpu_affinity=shown_cpus(self._cpus) or None,
            isa=forward.isa,
            kv_dtype=self.kv_dtype,
            weight_bytes=self._weight_bytes,
            scratch_bytes=resident_bytes([*forward.workspace.arrays, sample.scratch_array()]),
        )

    def pending_bytes(self) -> int:
        """Return the bytes of scratch memory not written to yet, and of a mapped file, whose pages seem available."""
        forward = self._forward
        if forward is None:
            return 0
        scratch = forward.workspace.nbytes - resident_bytes(forward.workspace.arrays)
        return max(0, scratch) + (self._weight_bytes if self._is_mapped else 0)

    def profile(self) -> Profile:
        """Return the time of each step so far. It includes waiting for the other threads."""
        forward = self._forward_open()
        few, many = forward.step_seconds
        steps = tuple(
            StepTime(name, float(few[i]), float(many[i]), sum(map(self._bytes_of, weights)))
            for i, (name, weights) in enumerate(STEPS.items())
        )
        return Profile(steps, forward.passes[0], *forward.tokens)

    def _forward_open(self) -> Forward:
        if self._forward is None:
            raise ClosedError("this Llama is closed")
        return self._forward

    def _bytes_of(self, kind: str) -> int:
        if kind == "output" and self.config.tied_embeddings:
            kind = "tok_embeddings"
        return self._bytes_by_kind.get(kind, 0)

    def close(self) -> None:
        """Give back the weights and scratch memory. A step that a signal's handler interrupts keeps them alive."""
        with self._lock:
            self._forward = None
            self._files.clear()
            if self._trace:
                self._trace.close()
