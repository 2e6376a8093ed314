"""The contract between a model and the device it runs on, and the choice of a device.

    weights (immutable)  Backend      one per loaded model
    keys and values      KVCache      mutable, any number per backend
    work                 Batch        n tokens of any sequences at any positions

One call of forward() serves prefill, decode, batched decode, mixtures of them, and the
verification of guessed tokens. Positions belong to the caller, so rewinding a sequence costs
nothing. The result for a token depends only on its own sequence: to the bit, neither on what
else is in the batch nor on the number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..sampling.sampler import Draw
from ..storage.model_file import StoredModel
from .step_times import Profile


@dataclass(frozen=True)
class Batch:
    """n tokens, m of which want logits. All arrays are int32 and one-dimensional.

    tokens     (n,) token ids
    rows       (n,) the row of the KV cache (the sequence) each token belongs to
    positions  (n,) its position in that sequence; a row's positions ascend within one batch
    outputs    (m,) indices into tokens of those whose logits are wanted
    """

    tokens: NDArray[np.int32]
    rows: NDArray[np.int32]
    positions: NDArray[np.int32]
    outputs: NDArray[np.int32]

    @classmethod
    def of_sequence(cls, tokens: list[int], row: int = 0, start: int = 0, outputs: str = "last") -> Batch:
        """Consecutive tokens of one sequence; outputs is "last", "all" or "none"."""
        n = len(tokens)
        wanted = {"last": np.arange(n - 1, n), "all": np.arange(n), "none": np.arange(0)}[outputs]
        return cls(
            np.asarray(tokens, np.int32),
            np.full(n, row, np.int32),
            np.arange(start, start + n, dtype=np.int32),
            wanted.astype(np.int32),
        )

    def check(self, config: ModelConfig, cache: KVCache) -> None:
        """Raise ValueError or TypeError unless every index is in bounds: what compiled code relies on."""
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


class KVCache(ABC):
    """Keys and values of n_rows sequences of up to max_seq_len tokens each."""

    n_rows: int
    max_seq_len: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""

    @property
    def resident_bytes(self) -> int:
        """Those of them that memory was taken for by now."""
        return self.nbytes

    @abstractmethod
    def copy_prefix(self, src_row: int, dst_row: int, length: int, source: KVCache | None = None) -> None:
        """Make the first length positions of dst_row those of src_row, in source: another cache of the same backend."""

    @abstractmethod
    def save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """Copies of the first length positions: "keys" and "values", (n_layers, n_kv_heads, length, head_dim)."""

    @abstractmethod
    def load_row(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put back what save_row() gave."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back. The cache cannot be used afterwards."""


class Backend(ABC):
    """The weights of one model, resident on one device."""

    config: ModelConfig
    # A step of this many tokens takes hardly longer than one of a single token, because reading the weights is most of
    # its time.
    cheap_tokens = 12
    # Whether a forked process may go on using it.
    survives_fork = True

    @classmethod
    @abstractmethod
    def unavailable_reason(cls) -> str | None:
        """None when this backend can run here, else one sentence that says what to install."""

    @classmethod
    def unsupported_reason(cls, model: StoredModel, kv_dtype: str | None = None) -> str | None:
        """None when this backend, which is usable, can run this model here, else one sentence that says why not."""
        return None

    @abstractmethod
    def __init__(self, model: StoredModel, *, n_threads: int | None = None, kv_dtype: str | None = None) -> None: ...

    @abstractmethod
    def new_cache(self, n_rows: int, max_seq_len: int) -> KVCache:
        """An empty cache."""

    @abstractmethod
    def kv_cache_bytes(self, n_rows: int, max_seq_len: int) -> int:
        """KVCache.nbytes of new_cache(), before there is one."""

    @abstractmethod
    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Logits (m, vocab_size) of batch.outputs; appends keys and values of all tokens to the cache.

        Any number of tokens: they are taken in chunks inside. Calls from several threads take turns. Ctrl-C
        raises KeyboardInterrupt between two steps; the cache then holds some of the batch's keys and values,
        at the batch's own positions only. Raises ValueError for indices out of bounds.
        """

    def sample(self, batch: Batch, cache: KVCache, draws: Sequence[Draw]) -> NDArray[np.int32] | None:
        """Like forward(), but the tokens (m,) that are chosen from the logits; -1 where logits are not finite.

        For a device that chooses by itself, so that logits need not be copied. None, and nothing was done, where this
        backend cannot do that for this batch: then forward() serves.
        """
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts: device, kv_dtype, threads or SM count, instruction set; weight_bytes of all weights, and scratch_bytes
        of other memory that was taken by now, keys and values left out."""

    def free_bytes(self) -> int | None:
        """Bytes that keys and values could have on a device with memory of its own; None: the machine's memory."""
        return None

    def pending_bytes(self) -> int:
        """Bytes of the machine's memory that the backend will take or read, and that still seem to be available."""
        return 0

    def profile(self) -> Profile:
        """Time of each step so far; a backend that does not count gives no steps."""
        return Profile((), 0, 0, 0)

    @abstractmethod
    def close(self) -> None:
        """Let go of the weights and of all scratch memory."""
