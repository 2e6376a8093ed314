"""The KV cache of the CUDA backend: arrays on the device that its kernels read and write in place."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.base import KVCache
from ..config import ModelConfig
from .launchers.cache import CacheRows
from .layout import Shapes, allocate

KEY_BLOCK = 32  # positions whose keys are interleaved, see kernels/cache.cu
_PIECE_BYTES = 16
KV_DTYPES = ("float16", "int8")


def positions_of(max_seq_len: int) -> int:
    """Positions that a cache of sequences of up to max_seq_len tokens has room for."""
    return -(-max_seq_len // KEY_BLOCK) * KEY_BLOCK


def cache_arrays(config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> Shapes:
    """Arrays of a cache; int8 has a float32 scale for each vector, as on the CPU.

    Raises ValueError for another dtype than float16 and int8, and for no row or no position.
    """
    if dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype must be {' or '.join(KV_DTYPES)} on a GPU, not {dtype!r}")
    if n_rows < 1 or max_seq_len < 1:
        raise ValueError("a cache needs at least one row and one position")
    head_dim, n_positions = config.head_dim, positions_of(max_seq_len)
    heads = (config.n_layers, n_rows, config.n_kv_heads)
    piece = math.gcd(head_dim, _PIECE_BYTES // np.dtype(dtype).itemsize)
    shapes: Shapes = {
        "keys": (dtype, (*heads, n_positions // KEY_BLOCK, head_dim // piece, KEY_BLOCK, piece)),
        "values": (dtype, (*heads, n_positions, head_dim)),
    }
    if dtype == "int8":
        shapes |= dict.fromkeys(("key_scales", "value_scales"), ("float32", (*heads, n_positions)))
    return shapes


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, as kernels take them; scales are None but for int8."""

    keys: Any
    values: Any
    key_scales: Any
    value_scales: Any
    n_positions: int


class CudaKVCache(KVCache):
    """Keys and values of n_rows sequences on the device.

        keys          (n_layers, n_rows, n_kv_heads, n_positions / 32, head_dim / piece, 32, piece)
        values        (n_layers, n_rows, n_kv_heads, n_positions, head_dim)
        key_scales    (n_layers, n_rows, n_kv_heads, n_positions) float32, of int8: a number is a code -127 .. 127
        value_scales  times the scale of its position

    cupy    the module, or what stands in for it
    dtype   float16 or int8
    stream  what kernels and copies are ordered by; None: cupy's current one
    """

    def __init__(
        self, cupy: Any, config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str, stream: Any = None
    ) -> None:
        shapes = cache_arrays(config, n_rows, max_seq_len, dtype)
        self.n_rows = n_rows
        self.max_seq_len = max_seq_len
        self.dtype = dtype
        self.head_dim = config.head_dim
        self.n_positions = positions_of(max_seq_len)
        self._stream = contextlib.nullcontext() if stream is None else stream
        self._rows = CacheRows(cupy, config.head_dim, dtype)
        self._arrays: dict[str, Any] = allocate(cupy, shapes)
        self.layers = tuple(self._layer(i) for i in range(config.n_layers))

    def _layer(self, i: int) -> LayerCache:
        keys, values, key_scales, value_scales = (
            self._arrays[name][i] if name in self._arrays else None
            for name in ("keys", "values", "key_scales", "value_scales")
        )
        return LayerCache(keys, values, key_scales, value_scales, self.n_positions)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""
        return sum(int(array.nbytes) for array in self._arrays.values())

    def copy_prefix(self, src_row: int, dst_row: int, length: int, source: KVCache | None = None) -> None:
        """Make the first length positions of dst_row those of src_row, in source: another cache of the same backend."""
        origin = self if source is None else source
        if not isinstance(origin, CudaKVCache) or origin.dtype != self.dtype:
            raise ValueError("a row can only be copied from a cache of the same kind")
        origin._check(src_row, length)
        self._check(dst_row, length)
        if length and (origin is not self or src_row != dst_row):
            with self._stream:
                self._rows.copy_prefix(origin._arrays, src_row, self._arrays, dst_row, length)

    def save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """Copies of the first length positions of a row, as the CPU backend's cache gives them.

        keys, values               (n_layers, n_kv_heads, length, head_dim)
        key_scales, value_scales   (n_layers, n_kv_heads, length), for int8
        """
        self._check(row, length)
        saved = {}
        with self._stream:
            for name, array in self._arrays.items():
                heads = (array.shape[0], array.shape[2])
                plain = np.empty((*heads, length, *self._width(name)), array.dtype)
                for layer, head in np.ndindex(*heads) if length else ():
                    plain[layer, head] = self._fetch(name, layer, row, head, length)
                saved[name] = plain
        return saved

    def load_row(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put back what save_row() gave. Raises ValueError when shapes or dtypes do not fit this cache."""
        length = arrays["keys"].shape[2] if arrays["keys"].ndim == 4 else 0
        self._check(row, length)
        for name, array in self._arrays.items():
            if name not in arrays:
                raise ValueError(f"this cache wants saved {name}")
            wanted, given = (array.shape[0], array.shape[2], length, *self._width(name)), arrays[name]
            if given.shape != wanted or given.dtype != array.dtype:
                raise ValueError(f"saved {name} {given.dtype} {given.shape} do not fit this cache")
        with self._stream:
            for name, array in self._arrays.items():
                for layer, head in np.ndindex(array.shape[0], array.shape[2]) if length else ():
                    self._put(name, layer, row, head, arrays[name][layer, head])

    def close(self) -> None:
        """Give the memory back."""
        self._arrays = {}
        self.layers = ()
        self.n_rows = 0

    def _width(self, name: str) -> tuple[int, ...]:
        """Dimensions of a position in a saved array."""
        return () if name.endswith("scales") else (self.head_dim,)

    def _fetch(self, name: str, layer: int, row: int, head: int, length: int) -> NDArray[Any]:
        """The first length positions of a head, (length, head_dim) or (length,): one copy from the device."""
        array = self._arrays[name][layer, row, head]
        if name != "keys":
            return np.asarray(array[:length].get())
        blocks = np.asarray(array[: -(-length // KEY_BLOCK)].get())  # (blocks, pieces, 32, piece)
        return blocks.transpose(0, 2, 1, 3).reshape(-1, self.head_dim)[:length]

    def _put(self, name: str, layer: int, row: int, head: int, plain: NDArray[Any]) -> None:
        """The first positions of a head become plain; those after them stay."""
        array, length = self._arrays[name][layer, row, head], len(plain)
        if name != "keys":
            array[:length].set(np.ascontiguousarray(plain))
            return
        n_blocks = -(-length // KEY_BLOCK)
        whole = np.empty((n_blocks * KEY_BLOCK, self.head_dim), plain.dtype)
        whole[:length] = plain
        if length % KEY_BLOCK:
            last = np.asarray(array[n_blocks - 1].get()).transpose(1, 0, 2).reshape(KEY_BLOCK, self.head_dim)
            whole[length:] = last[length % KEY_BLOCK :]
        pieces = whole.reshape(n_blocks, KEY_BLOCK, -1, array.shape[-1]).transpose(0, 2, 1, 3)
        array[:n_blocks].set(np.ascontiguousarray(pieces))

    def _check(self, row: int, length: int) -> None:
        self.check_open()
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is not in 0 .. {self.n_rows - 1}")
        if not 0 <= length <= self.max_seq_len:
            raise ValueError(f"length {length} is not in 0 .. {self.max_seq_len}")
