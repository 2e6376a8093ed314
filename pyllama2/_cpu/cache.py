"""The KV cache of the CPU backend: arrays that attention.pyx reads and writes in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backend.base import KVCache
from ..backend.resident import resident_bytes
from ..config import ModelConfig

BLOCK = 16  # KEY_BLOCK of kernels.h: positions whose keys are interleaved, and what values are padded to
_ALIGNMENT = 64  # bytes


def cache_arrays(
    config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of the arrays of a cache, by name."""
    heads = (config.n_layers, n_rows, config.n_kv_heads, math.ceil(max_seq_len / BLOCK))
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {
        "keys": (dtype, (*heads, config.head_dim, BLOCK)),
        "values": (dtype, (*heads, BLOCK, math.ceil(config.head_dim / BLOCK) * BLOCK)),
    }
    if dtype == "int8":
        arrays |= dict.fromkeys(("key_scales", "value_scales"), ("float32", (*heads, BLOCK)))
    return arrays


def allocated_bytes(config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> int:
    """CpuKVCache.nbytes, before there is one."""
    arrays = cache_arrays(config, n_rows, max_seq_len, dtype).values()
    return sum(math.prod(shape) * np.dtype(type).itemsize for type, shape in arrays)


class CpuKVCache(KVCache):
    """Keys and values of n_rows sequences, laid out as attention reads them. Positions lie in blocks of 16.

        keys          (n_layers, n_rows, n_kv_heads, n_blocks, head_dim, 16)
        values        (n_layers, n_rows, n_kv_heads, n_blocks, 16, head_dim rounded up to 16)
        key_scales    (n_layers, n_rows, n_kv_heads, n_blocks, 16) float32, of int8: a number is a code -127 .. 127
        value_scales  times the scale of its position

    dtype is float32, float16 or int8. Memory is only taken up by the pages that were written to, which are of 2 MiB
    where the system gives such.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    key_scales: NDArray[np.float32] | None
    value_scales: NDArray[np.float32] | None

    def __init__(self, config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> None:
        if n_rows < 1 or max_seq_len < 1:
            raise ValueError("a cache needs at least one row and one position")
        self.n_rows = n_rows
        self.max_seq_len = max_seq_len
        self.head_dim = config.head_dim
        arrays = {
            name: _zeros(shape, type)
            for name, (type, shape) in cache_arrays(config, n_rows, max_seq_len, dtype).items()
        }
        self.keys, self.values = arrays["keys"], arrays["values"]
        self.key_scales, self.value_scales = arrays.get("key_scales"), arrays.get("value_scales")

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""
        return sum(array.nbytes for array in self._arrays())

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that were written to."""
        return resident_bytes(self._arrays())

    def copy_prefix(self, src_row: int, dst_row: int, length: int, source: KVCache | None = None) -> None:
        """Make the first length positions of dst_row those of src_row, in source: another cache of the same backend."""
        origin = self if source is None else source
        if not isinstance(origin, CpuKVCache) or origin.keys.dtype != self.keys.dtype:
            raise ValueError("a row can only be copied from a cache of the same kind")
        origin._check(src_row, length)
        self._check(dst_row, length)
        full, rest = divmod(length, BLOCK)
        theirs, ours = origin._views(src_row), self._views(dst_row)
        for name in theirs:
            ours[name][:, :, :full] = theirs[name][:, :, :full]
            ours[name][:, :, full : full + 1, :rest] = theirs[name][:, :, full : full + 1, :rest]

    def save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """Copies of the first length positions of a row.

        keys, values               (n_layers, n_kv_heads, length, head_dim)
        key_scales, value_scales   (n_layers, n_kv_heads, length), for int8
        """
        self._check(row, length)
        saved = {}
        for name, view in self._views(row).items():
            blocks = view[:, :, : math.ceil(length / BLOCK)].copy()
            saved[name] = blocks.reshape(*_shape(view, -1))[:, :, :length].copy()
        return saved

    def load_row(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put back what save_row() gave. Raises ValueError when shapes or dtypes do not fit this cache."""
        self._check(row, 0)
        views = self._views(row)
        length = arrays["keys"].shape[2] if arrays["keys"].ndim == 4 else 0
        self._check(row, length)
        for name, view in views.items():
            if name not in arrays:
                raise ValueError(f"this cache wants saved {name}")
            if arrays[name].shape != _shape(view, length) or arrays[name].dtype != view.dtype:
                raise ValueError(f"saved {name} {arrays[name].dtype} {arrays[name].shape} do not fit this cache")
        full, rest = divmod(length, BLOCK)
        for name, view in views.items():
            whole = arrays[name][:, :, : full * BLOCK]
            view[:, :, :full] = whole.reshape(*view.shape[:2], full, *view.shape[3:])
            view[:, :, full : full + 1, :rest] = arrays[name][:, :, None, full * BLOCK :]

    def close(self) -> None:
        """Give the memory back."""
        self.keys = np.empty((0,) * 6, self.keys.dtype)
        self.values = np.empty((0,) * 6, self.values.dtype)
        self.key_scales = self.value_scales = None
        self.n_rows = 0

    def _arrays(self) -> list[NDArray[Any]]:
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        return [array for array in arrays if array is not None]

    def _views(self, row: int) -> dict[str, NDArray[Any]]:
        """Views of one row, (n_layers, n_kv_heads, n_blocks, 16, head_dim); scales without head_dim."""
        views = {"keys": self.keys[:, row].swapaxes(-1, -2), "values": self.values[:, row, ..., : self.head_dim]}
        if self.key_scales is not None and self.value_scales is not None:
            views |= {"key_scales": self.key_scales[:, row], "value_scales": self.value_scales[:, row]}
        return views

    def _check(self, row: int, length: int) -> None:
        self.check_open()
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is not in 0 .. {self.n_rows - 1}")
        if not 0 <= length <= self.max_seq_len:
            raise ValueError(f"length {length} is not in 0 .. {self.max_seq_len}")


def _zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """np.zeros, at an address that vectors of any instruction set load from whole cache lines."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    array = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -array.ctypes.data % _ALIGNMENT
    return array[start : start + size].view(dtype).reshape(shape)


def _shape(view: NDArray[Any], length: int) -> tuple[int, ...]:
    """Of saved arrays of so many positions."""
    return (*view.shape[:2], length, *view.shape[4:])
