"""The KV cache of a model on several devices: a cache on each, of the layers that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.kv_cache import KVCache
from ..config import ModelConfig


class StagedKVCache(KVCache):
    """Keys and values of n_rows sequences.

    Args:
        config: of the whole model.
        caches: of the stages, in order, of the same n_rows, max_seq_len and dtype.
        n_layers: number of layers of each.
    """

    def __init__(self, config: ModelConfig, caches: Sequence[KVCache], n_layers: Sequence[int]) -> None:
        first = caches[0]
        super().__init__(config, first.n_rows, first.max_seq_len, first.dtype)
        self.caches = tuple(caches)
        self._ends = np.cumsum(n_layers)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values, on all devices."""
        return sum(cache.nbytes for cache in self.caches)

    @property
    def resident_bytes(self) -> int:
        """Bytes of nbytes that really take memory by now."""
        return sum(cache.resident_bytes for cache in self.caches)

    def _copy_prefix(self, source: StagedKVCache, src_row: int, dst_row: int, length: int) -> None:
        if not np.array_equal(source._ends, self._ends):
            raise ValueError("a row can only be copied from a cache of the same backend")
        for ours, theirs in zip(self.caches, source.caches, strict=True):
            ours.copy_prefix(src_row, dst_row, length, theirs)

    def _save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        saved = [cache.save_row(row, length) for cache in self.caches]
        return {name: np.concatenate([arrays[name] for arrays in saved]) for name in saved[0]}

    def _load_row(self, row: int, length: int, arrays: dict[str, NDArray[Any]]) -> None:
        for cache, layers in zip(self.caches, self._slices(), strict=True):
            cache.load_row(row, {name: np.ascontiguousarray(array[layers]) for name, array in arrays.items()})

    def _slices(self) -> Iterator[slice]:
        first = 0
        for end in self._ends:
            yield slice(first, int(end))
            first = int(end)

    def _free(self) -> None:
        for cache in self.caches:
            cache.close()
        self.caches = ()
