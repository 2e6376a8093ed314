"""The KV cache of the CUDA backend: arrays on the device, which its kernels read and write in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.kv_cache import KVCache, check_kv_dtype, saved_arrays
from ..config import ModelConfig
from .launchers.cache import CacheRows
from .layout import Shapes, allocate, copy_to

KEY_BLOCK = 32  # positions whose keys are interleaved; see kernels/cache.cu
_PIECE_BYTES = 16
DTYPES = ("float16", "int8")  # the types of keys and values that the kernels have


def positions_of(max_seq_len: int) -> int:
    """Return the number of positions in a cache of sequences of up to max_seq_len tokens."""
    return -(-max_seq_len // KEY_BLOCK) * KEY_BLOCK


def cache_arrays(config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> Shapes:
    """Return dtype and shape of the arrays of a cache, by name. dtype is one of DTYPES."""
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
    """Keys and values of one layer, as kernels take them. Scales are None unless the dtype is int8."""

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

    Args:
        cupy: the module, or a stand-in.
        config: of the model.
        n_rows: number of sequences.
        max_seq_len: longest sequence in tokens.
        dtype: "float16" or "int8".
        turn: returns a block in which a thread has the backend to itself, with its device and stream. All kernels and
            copies are within such blocks. None: those of cupy's current device and stream, with no such block.
    """

    def __init__(
        self, cupy: Any, config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str,
        turn: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:  # fmt: skip
        check_kv_dtype(dtype, DTYPES)
        super().__init__(config, n_rows, max_seq_len, dtype)
        self.n_positions = positions_of(max_seq_len)
        self._cupy, self._turn = cupy, turn or nullcontext
        self._rows = CacheRows(cupy, config.head_dim, dtype)
        self._arrays: dict[str, Any] = allocate(cupy, cache_arrays(config, n_rows, max_seq_len, dtype))
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

    def _copy_prefix(self, source: CudaKVCache, src_row: int, dst_row: int, length: int) -> None:
        if source._turn != self._turn:
            raise ValueError("a row can only be copied from a cache of the same backend")
        if length and (source is not self or src_row != dst_row):
            with self._turn():
                self._rows.copy_prefix(source._arrays, src_row, self._arrays, dst_row, length)

    def _save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        saved = {}
        with self._turn():
            for name, (dtype, shape) in saved_arrays(self._config, length, self.dtype).items():
                saved[name] = np.empty(shape, dtype)
                for layer, head in np.ndindex(*shape[:2]) if length else ():
                    saved[name][layer, head] = self._fetch(name, layer, row, head, length)
        return saved

    def _load_row(self, row: int, length: int, arrays: dict[str, NDArray[Any]]) -> None:
        with self._turn():
            for name in self._arrays:
                for layer, head in np.ndindex(*arrays[name].shape[:2]) if length else ():
                    self._put(name, layer, row, head, arrays[name][layer, head])

    def _free(self) -> None:
        self._arrays = {}
        self.layers = ()

    def _fetch(self, name: str, layer: int, row: int, head: int, length: int) -> NDArray[Any]:
        """Copy the first length positions of a head from the device: (length, head_dim) or (length,)."""
        array = self._arrays[name][layer, row, head]
        if name != "keys":
            return np.asarray(array[:length].get())
        blocks = np.asarray(array[: -(-length // KEY_BLOCK)].get())  # (blocks, pieces, 32, piece)
        return blocks.transpose(0, 2, 1, 3).reshape(-1, self._config.head_dim)[:length]

    def _put(self, name: str, layer: int, row: int, head: int, plain: NDArray[Any]) -> None:
        """Copy plain to the first positions of a head. Those after them stay as they are."""
        array, length = self._arrays[name][layer, row, head], len(plain)
        if name != "keys":
            copy_to(self._cupy, np.ascontiguousarray(plain), array[:length])
            return
        n_blocks = -(-length // KEY_BLOCK)
        whole = np.empty((n_blocks * KEY_BLOCK, self._config.head_dim), plain.dtype)
        whole[:length] = plain
        if length % KEY_BLOCK:
            last = np.asarray(array[n_blocks - 1].get()).transpose(1, 0, 2).reshape(KEY_BLOCK, self._config.head_dim)
            whole[length:] = last[length % KEY_BLOCK :]
        pieces = whole.reshape(n_blocks, KEY_BLOCK, -1, array.shape[-1]).transpose(0, 2, 1, 3)
        copy_to(self._cupy, np.ascontiguousarray(pieces), array[:n_blocks])
