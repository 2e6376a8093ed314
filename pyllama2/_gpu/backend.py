"""CudaBackend: the Backend contract over CuPy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..backend.base import AMID_A_STEP, BackendFacts, Batch
from ..backend.fitting import USUAL_CONTEXT
from ..backend.kv_cache import KVCache, check_kv_dtype
from ..backend.stages import Layers, Stage
from ..errors import BackendUnavailableError, ClosedError, Pyllama2Error
from ..process.locks import Lock
from ..sampling.sampler import Draw
from ..storage.model_file import StoredModel
from . import availability
from .cache import DTYPES, CudaKVCache, cache_arrays
from .device_model import DeviceModel, upload
from .forward import Forward
from .launchers.attention import SPAN, spans_of
from .layout import Shapes, bytes_of
from .planner import (
    DECODE_TOKENS,
    GRANULE,
    GRAPHS,
    Plan,
    driver_bytes,
    plan,
    taken_bytes,
    unsupported,
    weight_arrays,
    workspace_arrays,
)
from .step_graphs import StepGraphs
from .steps_ahead import SampledStep, StepsAhead
from .workspace import Workspace

_NO_TILES = np.empty((0, 2), np.int32)
_MOST_LEFT_OVER = 6  # arrays of a cache and a workspace that are large, and need not fill the last GRANULE
_T = TypeVar("_T")


class CudaBackend(Stage):
    """A model on a device of CUDA, from compute capability 6.1 on.

    Weights are copied there.

    Args:
        model: the model, or a part of it.
        n_threads: not used.
        kv_dtype: "float16" or "int8". None: float16, or int8 if only that leaves room for a sequence.
        device: number of the device. None: CUDA's current one.
        layers: which layers the model has. None: all.

    Raises:
        BackendUnavailableError: it cannot run this model.
        DeviceMemoryError: the model does not fit into memory. The message has the numbers.
        ValueError: kv_dtype is another.
    """

    cheap_tokens = DECODE_TOKENS
    survives_fork = False
    goes_ahead = True

    @classmethod
    def unavailable_reason(cls, device: int | None = None) -> str | None:
        """Return None, or what is missing and what to install: cupy, a driver, a GPU, CUDA's compiler or headers."""
        return availability.unavailable_reason(device)

    @classmethod
    def unsupported_reason(
        cls,
        model: StoredModel,
        kv_dtype: str | None = None,
        device: int | None = None,
        layers: Layers | None = None,
    ) -> str | None:
        """Return None, or why not: the type of keys and values, too wide heads, or too little memory."""
        reason = cls.unsupported_type(model, kv_dtype)
        if reason is not None:
            return reason
        cupy = availability.import_cupy()
        with _device(cupy, device):
            return _usual_plan(model, kv_dtype, _free_bytes(cupy), layers).problem

    @classmethod
    def unsupported_type(cls, model: StoredModel, kv_dtype: str | None = None) -> str | None:
        """Return None, or why not, whatever the memory: the type of keys and values, or too wide heads."""
        if kv_dtype not in (None, *DTYPES):
            return f"the CUDA backend has {' or '.join(DTYPES)} keys and values, not {kv_dtype}"
        return unsupported(model.config)

    def __init__(
        self,
        model: StoredModel,
        *,
        n_threads: int | None = None,
        kv_dtype: str | None = None,
        device: int | None = None,
        layers: Layers | None = None,
    ) -> None:
        if kv_dtype is not None:
            check_kv_dtype(kv_dtype, DTYPES)
        reason = unsupported(model.config)
        if reason is not None:
            raise BackendUnavailableError(reason)
        self._cupy = cupy = availability.import_cupy()
        self._device, self._name = _device(cupy, device), "cuda" if device is None else f"cuda:{device}"
        with self._device:
            planned = _usual_plan(model, kv_dtype, _free_bytes(cupy), layers)
        planned.check()
        self.config, self.quantization, self.kv_dtype = model.config, model.quantization, planned.kv_dtype
        self.layers = layers or Layers.all_of(model.config)
        self._process = os.getpid()
        self._lock = Lock()  # one pass at a time: scratch memory is shared
        self._closing = False  # at the end of the pass that is under way
        self._work: Workspace | None = None  # as long as the longest cache so far
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)  # the default one cannot be captured
            self._processor = availability.Processor.of(cupy, self._device.id)
            with self._stream:
                self._model: DeviceModel | None = _allocated(lambda: upload(cupy, model, layers))
                if self._model is None:
                    raise planned.refused(_free_bytes(cupy))
                for file in model.files():  # they are not read any more after this
                    file.check()
                cupy.get_default_memory_pool().free_all_blocks()  # what the weights were copied through
                arguments = self.config, self._model, self.kv_dtype, self._processor
                self._forward: Forward | None = Forward(cupy, *arguments)
        self._graphs = StepGraphs(cupy, self._stream, GRAPHS)
        self._ahead = StepsAhead(self._stream)

    def new_cache(self, n_rows: int, max_seq_len: int) -> CudaKVCache:
        """Make an empty cache. Raises DeviceMemoryError, with the numbers, when there is not enough memory."""
        with self._turn():
            planned = self.plan(n_rows, max_seq_len)
            planned.check()
            if self._has_workspace(max_seq_len, planned.chunk):
                arguments = self._cupy, self.config, n_rows, max_seq_len, self.kv_dtype, self._turn
                cache = _allocated(lambda: CudaKVCache(*arguments))
                if cache is not None:
                    return cache
            raise planned.refused(_free_bytes(self._cupy))

    def _has_workspace(self, max_seq_len: int, chunk: int) -> bool:
        """Provide a workspace for sequences of so many tokens, and for at most so many tokens of a prompt.

        False if CUDA refuses; the old one is still there then. It is freed first. Its pieces are given back, or CuPy
        would cut arrays from them, and could not give back the rest.
        """
        old = (0, chunk) if self._work is None else (self._work.max_seq_len, self._work.n_tokens)
        wanted = max(max_seq_len, old[0]), chunk
        if old[0] == wanted[0] and old[1] <= chunk:
            return True
        self._graphs.clear()
        self._work = None
        for sizes in (wanted, old):
            self._cupy.get_default_memory_pool().free_all_blocks()
            if sizes[0]:
                arguments = self._cupy, self.config, self.quantization, *sizes
                hands_over = len(self.layers) < self.layers.n
                self._work = _allocated(partial(Workspace, *arguments, hands_over=hands_over))
            if self._work is not None:
                return sizes == wanted
        return False

    def kv_cache_bytes(self, n_rows: int, max_seq_len: int) -> int:
        """Return the bytes of the device that new_cache() would take."""
        return bytes_of(cache_arrays(self.config, n_rows, max_seq_len, self.kv_dtype))

    def plan(self, n_rows: int, max_seq_len: int) -> Plan:
        """Plan the model with one cache, and check whether they fit beside all that is on the device."""
        self._model_open()
        with self._device:
            free = _free_bytes(self._cupy)
        free += taken_bytes(bytes_of({"": shape}) for shapes in self._resident() for shape in shapes.values())
        arguments = self.config, self.quantization, n_rows, max_seq_len, self.kv_dtype
        return plan(*arguments, free_bytes=free, layers=self.layers)

    def _resident(self) -> list[Shapes]:
        """The arrays that are on the device without caches."""
        shapes = list(weight_arrays(self.config, self.quantization, self.layers).values())
        if self._work is not None:
            sizes = self._work.max_seq_len, self._work.n_tokens
            shapes.append(workspace_arrays(self.config, self.quantization, *sizes))
        return shapes

    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Run the model on a batch, as Backend.forward() says."""
        return self.run(batch, cache, None)

    def run(self, batch: Batch, cache: KVCache, hidden: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Run the layers on a batch, as Stage.run() says."""
        cache, n = self._checked(batch, cache), len(batch.tokens)
        if not self.layers.outputs:
            batch = replace(batch, outputs=batch.outputs[:0])
        logits = np.empty((len(batch.outputs), self.config.vocab_size), np.float32)
        after = np.empty((0 if self.layers.outputs else n, self.config.dim), np.float32)
        with self._turn():
            for chunk, wanted, part in batch.chunks(self._workspace().n_tokens):
                if hidden is not None:
                    self._workspace().put_hidden(hidden[chunk])
                compute = self._few if len(part.tokens) <= DECODE_TOKENS else self._many
                compute(part, cache, logits, wanted)
                if not self.layers.outputs:
                    after[chunk] = self._workspace().fetch_hidden(len(part.tokens))
                self._stream.synchronize()  # the inputs may be written over; Ctrl-C takes effect here
        return logits if self.layers.outputs else after

    def sample(
        self, batch: Batch, cache: KVCache, draws: Sequence[Draw], following: Sequence[Draw] | None = None
    ) -> NDArray[np.int32] | None:
        """Tokens (m,) that are sampled on the device, in the same graph as the step; None for more than 8 tokens."""
        self._checked(batch, cache)
        return self.sample_from(batch, cache, draws, None, following) if self.can_sample(batch) else None

    def can_sample(self, batch: Batch) -> bool:
        """Whether there are at most 8 tokens, and each of batch.outputs is wanted once."""
        return len(batch.tokens) <= DECODE_TOKENS and 0 < batch.outputs.size == np.unique(batch.outputs).size

    def sample_from(
        self, batch: Batch, cache: KVCache, draws: Sequence[Draw], hidden: NDArray[np.float32] | None,
        following: Sequence[Draw] | None = None,
    ) -> NDArray[np.int32]:  # fmt: skip
        """Run the last layers on a batch and sample, as Stage.sample_from() says; following is as in sample()."""

        def launch(step: SampledStep) -> None:
            if step is wanted:  # the device itself makes the inputs of the one that follows
                if hidden is not None:
                    work.put_hidden(hidden)
                work.put(batch, batch.outputs[:0], _NO_TILES, changes=True)
            work.put_draws(step.draws)
            self._launch(len(step), step.last, step.cache, wants_logits=True, samples=True)

        wanted = SampledStep.of(batch, self._checked(batch, cache), draws)
        with self._turn(uses_ahead=True):
            work = self._workspace()
            return self._ahead.sample(wanted, following, launch, work)

    def _checked(self, batch: Batch, cache: KVCache) -> CudaKVCache:
        if not isinstance(cache, CudaKVCache):
            raise TypeError("the cache belongs to another backend")
        batch.check(self.config, cache)
        return cache

    def _few(self, part: Batch, cache: CudaKVCache, logits: NDArray[np.float32], wanted: NDArray[np.intp]) -> None:
        """Compute 1 to 8 tokens, and all their logits or none."""
        self._decode(part, cache)
        if wanted.size:
            logits[wanted] = self._workspace().fetch_logits(len(part.tokens))[part.outputs]

    def _decode(self, part: Batch, cache: CudaKVCache) -> None:
        """Compute a step of 1 to 8 tokens: one graph."""
        self._workspace().put(part, part.outputs[:0], _NO_TILES)
        self._launch(len(part.tokens), int(part.positions.max()), cache, wants_logits=part.outputs.size > 0)

    def _launch(self, n: int, last: int, cache: CudaKVCache, *, wants_logits: bool, samples: bool = False) -> None:
        """Launch a step of n tokens. last is the largest of their positions."""
        forward, work = self._forward_open(), self._workspace()
        spans = min(1 << (spans_of(last + 1) - 1).bit_length(), spans_of(cache.max_seq_len))
        forward.prepare(n)

        def launch() -> None:
            forward.decode_step(n, cache, spans * SPAN, wants_logits, work)
            if samples:
                forward.sample(n, work)

        self._graphs.run(cache, (n, spans, wants_logits, samples), launch)

    def _many(self, part: Batch, cache: CudaKVCache, logits: NDArray[np.float32], wanted: NDArray[np.intp]) -> None:
        """Compute a chunk of prompts, launched kernel by kernel."""
        forward, work = self._forward_open(), self._workspace()
        tiles = forward.attend_prompt.tiles(part.rows)
        outputs, places = np.unique(part.outputs, return_inverse=True)  # there is room for each token only once
        work.put(part, outputs, tiles)
        forward.prompt_chunk(len(part.tokens), cache, len(tiles), work)
        for i in range(0, outputs.size, DECODE_TOKENS):
            n = min(DECODE_TOKENS, outputs.size - i)
            forward.logits(i, n, work)
            found = work.fetch_logits(n)
            asked = np.flatnonzero((places >= i) & (places < i + n))
            logits[wanted[asked]] = found[places[asked] - i]

    def describe(self) -> BackendFacts:
        """Return facts about the GPU, the memory in use, and how steps are launched."""
        weight_bytes = self._model_open().nbytes
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._device.id)
        problem = self._graphs.problem
        return BackendFacts(
            device=self._name,
            gpu=properties["name"].decode(errors="replace"),
            compute_capability="{}.{}".format(*divmod(self._processor.compute_capability, 10)),
            n_multiprocessors=self._processor.n_multiprocessors,
            kv_dtype=self.kv_dtype,
            weight_bytes=weight_bytes,
            scratch_bytes=self._work.nbytes if self._work else 0,
            launches="one graph for each decoding step" if problem is None else f"kernel by kernel ({problem})",
        )

    def free_bytes(self) -> int | None:
        """Return the bytes of the device that a cache of any length can have, without what scratch memory needs."""
        with self._turn():
            longest = self.plan(1, self.config.max_seq_len)
            growth = longest.parts["workspace"] - (self._work.nbytes if self._work else 0)
            left_over = _MOST_LEFT_OVER * GRANULE
            return max(0, _free_bytes(self._cupy) - driver_bytes(self.config) - left_over - growth)

    def close(self) -> None:
        """Give back the weights, scratch memory and graphs."""
        if self._process != os.getpid():
            return  # they belong to the parent process
        self._closing = True
        if not self._lock.held_here:  # else a signal's handler interrupts a pass
            with self._lock, self._device, self._stream:
                self._release()

    def _release(self) -> None:
        if self._model is not None:
            self._stream.synchronize()
            self._ahead.forget()
            self._graphs.clear()
            self._model = self._forward = self._work = None
            self._cupy.get_default_memory_pool().free_all_blocks()

    @contextmanager
    def _turn(self, *, uses_ahead: bool = False) -> Iterator[None]:
        """A block for one thread at a time, with the backend's device and stream. The backend must be open."""
        self._model_open()
        if self._lock.held_here:
            raise ValueError(AMID_A_STEP)
        with self._lock, self._device, self._stream:
            self._model_open()
            try:
                if not uses_ahead:  # what the block does must not come between a step and its results
                    self._ahead.drop()
                yield
            except BaseException:
                self._ahead.forget()
                with suppress(RuntimeError):  # of CUDA: the first error says more
                    self._stream.synchronize()  # a copy that is under way reads what the next pass would write over
                raise
            finally:
                if self._closing:
                    self._release()

    def _model_open(self) -> DeviceModel:
        if self._process != os.getpid():
            raise Pyllama2Error("a model on a GPU cannot be used in a forked process; load it there, or use spawn")
        if self._model is None:
            raise ClosedError("this Llama is closed")
        return self._model

    def _forward_open(self) -> Forward:
        assert self._forward is not None
        return self._forward

    def _workspace(self) -> Workspace:
        assert self._work is not None  # there is a cache
        return self._work


def _usual_plan(model: StoredModel, kv_dtype: str | None, free_bytes: int, layers: Layers | None) -> Plan:
    """Plan the model with one sequence of the usual length."""
    context = min(model.config.max_seq_len, USUAL_CONTEXT)
    return plan(model.config, model.quantization, 1, context, kv_dtype, free_bytes=free_bytes, layers=layers)


def _device(cupy: Any, device: int | None) -> Any:
    """A device of CUDA, or the current one."""
    return cupy.cuda.Device() if device is None else cupy.cuda.Device(device)


def _free_bytes(cupy: Any) -> int:
    """Free bytes of the current device.

    What CuPy's pool keeps is given back first, as far as it can be. The rest is in pieces, which serve few arrays.
    """
    cupy.get_default_memory_pool().free_all_blocks()
    return int(cupy.cuda.runtime.memGetInfo()[0])


def _allocated(make: Callable[[], _T]) -> _T | None:
    """Return what make() returns, or None if there is not enough memory.

    The error is forgotten here: it would keep the arrays that were made before it.
    """
    try:
        return make()
    except MemoryError:
        return None
