"""The KV cache of the CPU backend: two arrays that attention.pyx reads and writes in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import KVCache
from ..config import ModelConfig


class CpuKVCache(KVCache):
    """keys and values, (n_layers, n_rows, n_kv_heads, max_seq_len, head_dim), float32 or float16.

    A head's positions lie one after the other, since attention reads them so. Memory is only taken
    up by the positions that were written.
    """

    def __init__(self, config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> None:
        if n_rows < 1 or max_seq_len < 1:
            raise ValueError("a cache needs at least one row and one position")
        shape = (config.n_layers, n_rows, config.n_kv_heads, max_seq_len, config.head_dim)
        self.n_rows = n_rows
        self.max_seq_len = max_seq_len
        self.keys = np.zeros(shape, dtype)
        self.values = np.zeros(shape, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def copy_prefix(self, src_row: int, dst_row: int, length: int) -> None:
        """Make the first length positions of dst_row those of src_row."""
        self._check(src_row, length)
        self._check(dst_row, length)
        for array in (self.keys, self.values):
            array[:, dst_row, :, :length] = array[:, src_row, :, :length]

    def save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """Copies of the first length positions of a row."""
        self._check(row, length)
        return {"keys": self.keys[:, row, :, :length].copy(), "values": self.values[:, row, :, :length].copy()}

    def load_row(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put back what save_row() gave. Raises ValueError when shapes or dtypes do not fit this cache."""
        length = arrays["keys"].shape[2] if arrays["keys"].ndim == 4 else 0
        self._check(row, length)
        for name, target in (("keys", self.keys), ("values", self.values)):
            part = target[:, row, :, :length]
            if arrays[name].shape != part.shape or arrays[name].dtype != part.dtype:
                raise ValueError(f"saved {name} {arrays[name].dtype} {arrays[name].shape} do not fit this cache")
            part[...] = arrays[name]

    def close(self) -> None:
        """Give the memory back."""
        self.keys = self.values = np.empty((0, 0, 0, 0, 0), self.keys.dtype)
        self.n_rows = 0

    def _check(self, row: int, length: int) -> None:
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is not in 0 .. {self.n_rows - 1}")
        if not 0 <= length <= self.max_seq_len:
            raise ValueError(f"length {length} is not in 0 .. {self.max_seq_len}")
