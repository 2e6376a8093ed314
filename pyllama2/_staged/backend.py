"""StagedBackend: the Backend contract over several devices, each of which has some of the layers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from .._cpu import CpuBackend
from .._gpu import CudaBackend
from .._gpu.planner import CHUNKS
from ..backend.base import AMID_A_STEP, Backend, BackendFacts, Batch
from ..backend.kv_cache import KVCache
from ..backend.stages import Stage, part_of
from ..backend.step_times import Profile, StepTime
from ..errors import BackendUnavailableError, ClosedError
from ..process.locks import Lock
from ..sampling.sampler import Draw
from ..storage.model_file import StoredModel
from .cache import StagedKVCache
from .placement import GpuName, Place, place

CHUNK = CHUNKS[0]  # tokens of a prompt that go through all devices together
_KV_DTYPE = "float16"


class StagedBackend(Backend):
    """A model whose first layers are on one GPU or several, and the rest on the CPU, if there is a rest.

    The devices work one after the other. Logits are those of either device alone, to the bit.

    Args:
        model: the model.
        n_threads: threads of the CPU.
        kv_dtype: type of all keys and values. None: float16.
        gpus: numbers of the GPUs; None among them is CUDA's current one.
        n_gpu_layers: how many layers the GPUs have. None: as many as fit. Below 0, or more than there are: all.
        cpus: of the CPU's threads, as CpuBackend takes them.

    Raises:
        BackendUnavailableError: a GPU cannot run this model.
        DeviceMemoryError: the layers do not fit into the memory of the GPUs. The message has the numbers.
        ValueError: an argument is out of range.
    """

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Return None, or what is missing and what to install for a GPU."""
        return CudaBackend.unavailable_reason()

    @classmethod
    def places_of(
        cls, model: StoredModel, kv_dtype: str | None, gpus: Sequence[GpuName], n_gpu_layers: int | None
    ) -> tuple[Place, ...]:
        """Return where the layers of a model would be. The arguments are those of the class.

        Raises:
            BackendUnavailableError: a GPU cannot run this model.
            DeviceMemoryError: the layers do not fit.
        """
        if reason := CudaBackend.unsupported_type(model, kv_dtype):
            raise BackendUnavailableError(reason)
        return place(model, gpus, n_gpu_layers, kv_dtype or _KV_DTYPE)

    def __init__(
        self,
        model: StoredModel,
        *,
        n_threads: int | None = None,
        kv_dtype: str | None = None,
        gpus: Sequence[GpuName] = (None,),
        n_gpu_layers: int | None = None,
        cpus: Sequence[int] = (),
    ) -> None:
        self.config, self.kv_dtype = model.config, kv_dtype or _KV_DTYPE
        for gpu in gpus:
            if reason := CudaBackend.unavailable_reason(gpu):
                raise BackendUnavailableError(reason)
        self.places = self.places_of(model, kv_dtype, gpus, n_gpu_layers)
        self._lock = Lock()  # one batch at a time
        self._closing = False  # at the end of the batch that is under way
        self._seconds = np.zeros((len(self.places), 2))  # of decoding, of prompts
        self._passes, self._tokens = 0, [0, 0]
        with ExitStack() as made:
            stages = []
            for where in self.places:
                stages.append(self._stage(model, where, n_threads, cpus))
                made.callback(stages[-1].close)
            made.pop_all()
        self._stages: tuple[Stage, ...] = tuple(stages)
        self._names = [f"{where.device}, {where.layers}" for where in self.places]
        self.cheap_tokens = min(stage.cheap_tokens for stage in stages)
        self.survives_fork = all(stage.survives_fork for stage in stages)

    def _stage(self, model: StoredModel, where: Place, n_threads: int | None, cpus: Sequence[int]) -> Stage:
        part = part_of(model, where.layers)
        if where.on_cpu:
            return CpuBackend(part, n_threads=n_threads, kv_dtype=self.kv_dtype, layers=where.layers, cpus=cpus)
        return CudaBackend(part, kv_dtype=self.kv_dtype, device=where.gpu, layers=where.layers)

    def new_cache(self, n_rows: int, max_seq_len: int) -> StagedKVCache:
        """Make an empty cache, a part of it on each device. Raises DeviceMemoryError as the devices do."""
        stages = self._open()
        with ExitStack() as made:
            caches = []
            for stage in stages:
                caches.append(stage.new_cache(n_rows, max_seq_len))
                made.callback(caches[-1].close)
            made.pop_all()
        return StagedKVCache(self.config, caches, [len(stage.layers) for stage in stages])

    def kv_cache_bytes(self, n_rows: int, max_seq_len: int) -> int:
        """Return the bytes that new_cache() would take on all devices."""
        return sum(stage.kv_cache_bytes(n_rows, max_seq_len) for stage in self._stages)

    def parts(self) -> Sequence[Backend]:
        """Return the backends of the devices."""
        return self._open()

    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Run the model on a batch, as Backend.forward() says."""
        cache = self._checked(batch, cache)
        logits = np.empty((len(batch.outputs), self.config.vocab_size), np.float32)
        with self._turn() as (*_, last):
            for _, wanted, part in batch.chunks(CHUNK):
                hidden = self._hidden(part, cache)
                with self._timing(-1, len(part.tokens)):
                    logits[wanted] = last.run(part, cache.caches[-1], hidden)
        return logits

    def sample(
        self, batch: Batch, cache: KVCache, draws: Sequence[Draw], following: Sequence[Draw] | None = None
    ) -> NDArray[np.int32] | None:
        """Tokens (m,) that the last device samples; None if it is the CPU, or cannot sample for this batch."""
        cache = self._checked(batch, cache)
        with self._turn() as (*_, last):
            if not last.can_sample(batch):
                return None
            hidden = self._hidden(batch, cache)
            with self._timing(-1, len(batch.tokens)):
                return last.sample_from(batch, cache.caches[-1], draws, hidden)

    def _checked(self, batch: Batch, cache: KVCache) -> StagedKVCache:
        if not isinstance(cache, StagedKVCache):
            raise TypeError("the cache belongs to another backend")
        batch.check(self.config, cache)
        return cache

    def _hidden(self, batch: Batch, cache: StagedKVCache) -> NDArray[np.float32] | None:
        """The residual stream before the last device's layers. None: it has all layers."""
        hidden = None
        for i, (stage, of_stage) in enumerate(zip(self._stages[:-1], cache.caches, strict=False)):
            with self._timing(i, len(batch.tokens)):
                hidden = stage.run(batch, of_stage, hidden)
        return hidden

    @contextmanager
    def _timing(self, i: int, n: int) -> Iterator[None]:
        """Count the time of the block for a stage that works on n tokens."""
        is_prompt = int(n > self.cheap_tokens)
        started = time.perf_counter()
        yield
        self._seconds[i, is_prompt] += time.perf_counter() - started
        if i == -1:
            self._passes += 1 - is_prompt
            self._tokens[is_prompt] += n

    def describe(self) -> BackendFacts:
        """Return facts about all devices. gpu, compute_capability and launches name each that differs."""
        facts = [stage.describe() for stage in self._open()]

        def each(name: str) -> str | None:
            values = dict.fromkeys(str(value) for fact in facts if (value := getattr(fact, name)) is not None)
            return ", ".join(values) or None

        return BackendFacts(
            device=",".join(fact.device for fact in facts),
            layers=", ".join(map(str, self.places)),
            n_threads=facts[-1].n_threads,
            cpu_affinity=facts[-1].cpu_affinity,
            isa=facts[-1].isa,
            gpu=each("gpu"),
            compute_capability=each("compute_capability"),
            n_multiprocessors=sum(fact.n_multiprocessors or 0 for fact in facts),
            kv_dtype=self.kv_dtype,
            weight_bytes=sum(fact.weight_bytes for fact in facts),
            scratch_bytes=sum(fact.scratch_bytes for fact in facts),
            launches=each("launches"),
        )

    def pending_bytes(self) -> int:
        """Return the bytes of the machine's memory that the CPU's layers will still take."""
        return sum(stage.pending_bytes() for stage in self._stages)

    def profile(self) -> Profile:
        """Return the time of each device's layers so far."""
        stages = self._open()
        steps = tuple(
            StepTime(name, float(few), float(many), stage.describe().weight_bytes)
            for name, (few, many), stage in zip(self._names, self._seconds, stages, strict=True)
        )
        return Profile(steps, self._passes, *self._tokens)

    def close(self) -> None:
        """Give back all that is on the devices. A step that a signal's handler interrupts comes to its end first."""
        self._closing = True
        if not self._lock.held_here:
            with self._lock:
                self._release()

    def _release(self) -> None:
        for stage in self._stages:
            stage.close()
        self._stages = ()

    def _open(self) -> tuple[Stage, ...]:
        if not self._stages:
            raise ClosedError("this Llama is closed")
        return self._stages

    @contextmanager
    def _turn(self) -> Iterator[tuple[Stage, ...]]:
        """A block for one thread at a time, with the stages."""
        self._open()
        if self._lock.held_here:
            raise ValueError(AMID_A_STEP)
        with self._lock:
            stages = self._open()
            try:
                yield stages
            finally:
                if self._closing:
                    self._release()
