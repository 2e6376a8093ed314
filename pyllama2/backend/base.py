"""The contract between a model and the device that it runs on.

    weights (immutable)  Backend      one per loaded model
    keys and values      KVCache      mutable, any number per backend
    work                 Batch        n tokens of any sequences at any positions

One call of forward() serves prefill, decode, batched decode, mixtures of them, and the verification of guessed tokens.
The caller chooses positions, so rewinding a sequence costs nothing. The result for a token depends only on its own
sequence: it is the same to the bit whatever else is in the batch, and with any number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..sampling.sampler import Draw
from ..storage.model_file import StoredModel
from .kv_cache import KVCache
from .step_times import Profile

# What a signal's handler is told that wants another step of the model amid one.
AMID_A_STEP = "a signal's handler cannot wait for the step of the model that it interrupts"


@dataclass(frozen=True)
class Batch:
    """n tokens, m of which want logits. All arrays are int32 and one-dimensional.

    Attributes:
        tokens: (n,) token ids.
        rows: (n,) the row of the KV cache, which is the sequence, of each token.
        positions: (n,) the position of each token in its sequence. Those of one row ascend within a batch.
        outputs: (m,) indices into tokens of those whose logits are wanted.
    """

    tokens: NDArray[np.int32]
    rows: NDArray[np.int32]
    positions: NDArray[np.int32]
    outputs: NDArray[np.int32]

    @classmethod
    def of_sequence(cls, tokens: list[int], row: int = 0, start: int = 0, outputs: str = "last") -> Batch:
        """Make a batch of consecutive tokens of one sequence.

        Args:
            tokens: token ids.
            row: the row of the KV cache.
            start: position of the first token.
            outputs: tokens whose logits are wanted: "last", "all" or "none".
        """
        n = len(tokens)
        wanted = {"last": np.arange(n - 1, n), "all": np.arange(n), "none": np.arange(0)}[outputs]
        return cls(
            np.asarray(tokens, np.int32),
            np.full(n, row, np.int32),
            np.arange(start, start + n, dtype=np.int32),
            wanted.astype(np.int32),
        )

    def chunks(self, n: int) -> Iterator[tuple[slice, NDArray[np.intp], Batch]]:
        """Cut it into batches of at most n tokens.

        Yields:
            The place of its tokens in this batch, the indices of its outputs among those of this batch, and the batch.
        """
        for start in range(0, len(self.tokens), n):
            chunk = slice(start, start + n)
            wanted = np.flatnonzero((self.outputs >= start) & (self.outputs < start + n))
            outputs = (self.outputs[wanted] - start).astype(np.int32)
            yield chunk, wanted, Batch(self.tokens[chunk], self.rows[chunk], self.positions[chunk], outputs)

    def check(self, config: ModelConfig, cache: KVCache) -> None:
        """Check all that compiled code relies on.

        Args:
            config: of the model.
            cache: the KV cache that the batch is for.

        Raises:
            TypeError: an array has the wrong type or more than one dimension.
            ValueError: an index is out of bounds, or lengths or the order of positions are wrong.
            ClosedError: the cache is closed.
        """
        cache.check_open()
        n = len(self.tokens)
        for name in ("tokens", "rows", "positions", "outputs"):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.ndim != 1:
                raise TypeError(f"{name} must be a one-dimensional int32 array")
        if len(self.rows) != n or len(self.positions) != n:
            raise ValueError("tokens, rows and positions must have the same length")
        _check_range("tokens", self.tokens, config.vocab_size)
        _check_range("rows", self.rows, cache.n_rows)
        _check_range("positions", self.positions, cache.max_seq_len)
        _check_range("outputs", self.outputs, n)
        if n > 1:
            # A token sees the cache up to its own position, so a row's earlier tokens must come first.
            order = np.argsort(self.rows, kind="stable")
            same_row = np.diff(self.rows[order]) == 0
            if np.any(same_row & (np.diff(self.positions[order]) <= 0)):
                raise ValueError("positions of one row must ascend within a batch")


def _check_range(name: str, array: NDArray[np.int32], stop: int) -> None:
    if array.size and (array.min() < 0 or array.max() >= stop):
        raise ValueError(f"{name} must lie in 0 .. {stop - 1}")


@dataclass(frozen=True, kw_only=True)
class BackendFacts:
    """What a backend says about itself. None: the device has no such thing.

    Attributes:
        device: "cpu" or "cuda"; "cuda:1" of a GPU that was asked for by number, and "cuda:0,cpu" of several devices.
        layers: which layers are on which of several devices.
        n_threads: threads of the CPU.
        cpu_affinity: the CPUs that these threads are bound to, if they are: "0-3,8".
        isa: the CPU's instruction set that the kernels use.
        gpu: name of the GPU.
        compute_capability: of the GPU, such as "8.0".
        n_multiprocessors: of the GPU.
        kv_dtype: type of the keys and values.
        weight_bytes: bytes of all weights.
        scratch_bytes: bytes of other memory taken so far, without keys and values.
        launches: how the steps are launched on the GPU.
    """

    device: str
    layers: str | None = None
    n_threads: int | None = None
    cpu_affinity: str | None = None
    isa: str | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    n_multiprocessors: int | None = None
    kv_dtype: str
    weight_bytes: int
    scratch_bytes: int
    launches: str | None = None

    def known(self) -> dict[str, str | int]:
        """The facts that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Backend(ABC):
    """The weights of one model, resident on one device."""

    config: ModelConfig
    # A step of this many tokens takes hardly longer than a step of one token: most of the time reads weights.
    cheap_tokens = 12
    # Whether a forked process may go on using it.
    survives_fork = True
    # Whether sample() begins the step that follows, if it is told how that one samples.
    goes_ahead = False

    @classmethod
    @abstractmethod
    def unavailable_reason(cls) -> str | None:
        """None when this backend can run here, else one sentence that says what to install."""

    @classmethod
    def unsupported_reason(cls, model: StoredModel, kv_dtype: str | None = None) -> str | None:
        """None when this backend can run this model here, else one sentence that says why not.

        The backend must be usable: see unavailable_reason().
        """
        return None

    @abstractmethod
    def __init__(self, model: StoredModel, *, n_threads: int | None = None, kv_dtype: str | None = None) -> None: ...

    @abstractmethod
    def new_cache(self, n_rows: int, max_seq_len: int) -> KVCache:
        """Make an empty cache. Raises ClosedError when the backend is closed."""

    @abstractmethod
    def kv_cache_bytes(self, n_rows: int, max_seq_len: int) -> int:
        """Bytes that new_cache() would reserve."""

    @abstractmethod
    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Run the model on a batch and append keys and values of all its tokens to the cache.

        A batch may have any number of tokens: it is computed in chunks. Calls from several threads take turns. Ctrl-C
        raises KeyboardInterrupt between two steps. The cache then holds some of the batch's keys and values, only at
        the batch's own positions.

        Returns:
            Logits (m, vocab_size) float32 of batch.outputs.

        Raises:
            ValueError: an index is out of bounds, or a signal's handler calls it amid a step.
            ClosedError: the backend or the cache is closed.
        """

    def sample(
        self, batch: Batch, cache: KVCache, draws: Sequence[Draw], following: Sequence[Draw] | None = None
    ) -> NDArray[np.int32] | None:
        """Run the model on a batch and sample on the device, so that logits need not be copied.

        Args:
            batch: as in forward().
            cache: as in forward().
            draws: how to sample, one for each of batch.outputs.
            following: how the step after this one will probably sample, which feeds each token that is sampled here,
                at the next position of its row. A backend that goes_ahead may begin it before this one's tokens are
                known. A later call that wants that step, or some of its sequences, finds it done. Any other use of the
                cache waits for it and drops it; keys and values at those positions are undefined then. It changes no
                result.

        Returns:
            Tokens (m,) int32, -1 where logits are not finite. None if this backend cannot do it for this batch: then
            nothing was done, and forward() must be called.
        """
        return None

    @abstractmethod
    def describe(self) -> BackendFacts:
        """Return facts about the device and the memory in use. Raises ClosedError when the backend is closed."""

    def parts(self) -> Sequence[Backend]:
        """Return the backends that it consists of, each with layers and memory of its own: itself, if it has none."""
        return (self,)

    def free_bytes(self) -> int | None:
        """Bytes free for keys and values on a device with memory of its own. None: it uses the machine's memory."""
        return None

    def pending_bytes(self) -> int:
        """Bytes of the machine's memory that the backend will still take or read, though they seem to be available."""
        return 0

    def profile(self) -> Profile:
        """Return the time of each step so far. A backend that does not measure it has no steps."""
        return Profile((), 0, 0, 0)

    @abstractmethod
    def close(self) -> None:
        """Give back the weights and all scratch memory. What needs them raises ClosedError afterwards.

        A step that a signal's handler interrupts with it comes to its end first.
        """
