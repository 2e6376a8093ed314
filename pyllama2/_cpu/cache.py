"""The KV cache of the CPU backend: arrays that attention.pyx reads and writes in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..backend.kv_cache import KVCache
from ..backend.resident import resident_bytes
from ..config import ModelConfig

BLOCK = 16  # KEY_BLOCK of kernels.h: positions whose keys are interleaved, and what values are padded to
_ALIGNMENT = 64  # bytes


def cache_arrays(
    config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of the arrays of a cache, by name."""
    heads = (config.n_layers, n_rows, config.n_kv_heads, math.ceil(max_seq_len / BLOCK))
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {
        "keys": (dtype, (*heads, config.head_dim, BLOCK)),
        "values": (dtype, (*heads, BLOCK, math.ceil(config.head_dim / BLOCK) * BLOCK)),
    }
    if dtype == "int8":
        arrays |= dict.fromkeys(("key_scales", "value_scales"), ("float32", (*heads, BLOCK)))
    return arrays


def allocated_bytes(config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> int:
    """Return what CpuKVCache.nbytes will be."""
    arrays = cache_arrays(config, n_rows, max_seq_len, dtype).values()
    return sum(math.prod(shape) * np.dtype(type).itemsize for type, shape in arrays)


class CpuKVCache(KVCache):
    """Keys and values of n_rows sequences, laid out as attention reads them. Positions lie in blocks of 16.

        keys          (n_layers, n_rows, n_kv_heads, n_blocks, head_dim, 16)
        values        (n_layers, n_rows, n_kv_heads, n_blocks, 16, head_dim rounded up to 16)
        key_scales    (n_layers, n_rows, n_kv_heads, n_blocks, 16) float32, of int8: a number is a code -127 .. 127
        value_scales  times the scale of its position

    dtype is float32, float16 or int8. Only pages that were written to take memory. A page has 2 MiB where the system
    has such pages.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    key_scales: NDArray[np.float32] | None
    value_scales: NDArray[np.float32] | None

    def __init__(self, config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> None:
        super().__init__(config, n_rows, max_seq_len, dtype)
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

    def _copy_prefix(self, source: CpuKVCache, src_row: int, dst_row: int, length: int) -> None:
        full, rest = divmod(length, BLOCK)
        theirs, ours = source._views(src_row), self._views(dst_row)
        for name in theirs:
            ours[name][:, :, :full] = theirs[name][:, :, :full]
            ours[name][:, :, full : full + 1, :rest] = theirs[name][:, :, full : full + 1, :rest]

    def _save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        saved = {}
        for name, view in self._views(row).items():
            blocks = view[:, :, : math.ceil(length / BLOCK)].copy()
            n_positions = blocks.shape[2] * BLOCK
            saved[name] = blocks.reshape(*view.shape[:2], n_positions, *view.shape[4:])[:, :, :length].copy()
        return saved

    def _load_row(self, row: int, length: int, arrays: dict[str, NDArray[Any]]) -> None:
        full, rest = divmod(length, BLOCK)
        for name, view in self._views(row).items():
            whole = arrays[name][:, :, : full * BLOCK]
            view[:, :, :full] = whole.reshape(*view.shape[:2], full, *view.shape[3:])
            view[:, :, full : full + 1, :rest] = arrays[name][:, :, None, full * BLOCK :]

    def _free(self) -> None:
        self.keys = np.empty((0,) * 6, self.keys.dtype)
        self.values = np.empty((0,) * 6, self.values.dtype)
        self.key_scales = self.value_scales = None

    def _arrays(self) -> list[NDArray[Any]]:
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        return [array for array in arrays if array is not None]

    def _views(self, row: int) -> dict[str, NDArray[Any]]:
        """Views of one row, (n_layers, n_kv_heads, n_blocks, 16, head_dim); scales without head_dim."""
        head_dim = self._config.head_dim
        views = {"keys": self.keys[:, row].swapaxes(-1, -2), "values": self.values[:, row, ..., :head_dim]}
        if self.key_scales is not None and self.value_scales is not None:
            views |= {"key_scales": self.key_scales[:, row], "value_scales": self.value_scales[:, row]}
        return views


def _zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that start at a multiple of 64 bytes, so that an aligned vector lies in one cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    array = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -array.ctypes.data % _ALIGNMENT
    return array[start : start + size].view(dtype).reshape(shape)
