"""Keys and values: the types that they can have, and the class of all caches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import ClosedError
from ..shown import shown_value
from ..storage.weights import Quantization

KV_DTYPES = ("float32", "float16", "int8")  # a backend has all of them, or some


def default_kv_dtype(quantization: Quantization) -> str:
    """Return the type that the CPU gives to keys and values of a model if none is asked for."""
    return "float32" if quantization.type == "float32" else "float16"


def check_kv_dtype(kv_dtype: str, dtypes: Sequence[str] = KV_DTYPES) -> None:
    """Raise ValueError unless kv_dtype is one of dtypes."""
    if kv_dtype not in dtypes:
        raise ValueError(f"kv_dtype must be {', '.join(dtypes[:-1])} or {dtypes[-1]}, not {shown_value(kv_dtype)}")


def saved_arrays(config: ModelConfig, length: int, kv_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of the arrays that KVCache.save_row() returns, by name.

    Args:
        config: of the model.
        length: number of positions.
        kv_dtype: type of the keys and values.

    Returns:
        "keys" and "values", (n_layers, n_kv_heads, length, head_dim). For int8 also "key_scales" and "value_scales",
        (n_layers, n_kv_heads, length) float32: a number is its code times the scale of its position.
    """
    heads = (config.n_layers, config.n_kv_heads, length)
    arrays: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(
        ("keys", "values"), (kv_dtype, (*heads, config.head_dim))
    )
    if kv_dtype == "int8":
        arrays |= dict.fromkeys(("key_scales", "value_scales"), ("float32", heads))
    return arrays


class KVCache(ABC):
    """Keys and values of n_rows sequences.

    The methods here check their arguments. Those of a backend, whose names begin with an underscore, trust them.

    Args:
        config: of the model.
        n_rows: number of sequences, at least 1.
        max_seq_len: longest sequence in tokens, at least 1.
        dtype: type of the keys and values.

    Attributes:
        n_rows: number of sequences; 0 when it is closed.
        max_seq_len: longest sequence in tokens.
        dtype: type of the keys and values.
    """

    def __init__(self, config: ModelConfig, n_rows: int, max_seq_len: int, dtype: str) -> None:
        if n_rows < 1 or max_seq_len < 1:
            raise ValueError("a cache needs at least one row and one position")
        self.n_rows = n_rows
        self.max_seq_len = max_seq_len
        self.dtype = dtype
        self._config = config

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of nbytes that really take memory by now."""
        return self.nbytes

    def copy_prefix(self, src_row: int, dst_row: int, length: int, source: KVCache | None = None) -> None:
        """Copy the first length positions of src_row to dst_row.

        Args:
            src_row: where they are.
            dst_row: where they go.
            length: number of positions.
            source: the cache that has src_row, of the same backend and dtype. None: this cache.

        Raises:
            ValueError: a row or the length is out of bounds, or source is of another kind.
            ClosedError: a cache is closed.
        """
        source = self if source is None else source
        if type(source) is not type(self) or source.dtype != self.dtype:
            raise ValueError("a row can only be copied from a cache of the same kind")
        source._check(src_row, length)
        self._check(dst_row, length)
        self._copy_prefix(source, src_row, dst_row, length)

    def save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """Copy the first length positions of a row into arrays that saved_arrays() describes.

        Raises:
            ValueError: the row or the length is out of bounds.
            ClosedError: the cache is closed.
        """
        self._check(row, length)
        return self._save_row(row, length)

    def load_row(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put arrays of save_row() into a row.

        Raises:
            ValueError: the row is out of bounds, or the arrays do not fit this cache.
            ClosedError: the cache is closed.
        """
        keys = arrays.get("keys")
        length = keys.shape[2] if keys is not None and keys.ndim == 4 else 0
        self._check(row, length)
        for name, (dtype, shape) in saved_arrays(self._config, length, self.dtype).items():
            if name not in arrays:
                raise ValueError(f"this cache wants saved {name}")
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                raise ValueError(f"saved {name} {arrays[name].dtype} {arrays[name].shape} do not fit this cache")
        self._load_row(row, length, arrays)

    def close(self) -> None:
        """Give the memory back. The cache cannot be used afterwards: its methods raise ClosedError."""
        self.n_rows = 0
        self._free()

    def check_open(self) -> None:
        """Raise ClosedError when the cache is closed."""
        if self.n_rows == 0:
            raise ClosedError("this cache is closed")

    def _check(self, row: int, length: int) -> None:
        self.check_open()
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is not in 0 .. {self.n_rows - 1}")
        if not 0 <= length <= self.max_seq_len:
            raise ValueError(f"length {length} is not in 0 .. {self.max_seq_len}")

    @abstractmethod
    def _copy_prefix(self, source: Any, src_row: int, dst_row: int, length: int) -> None:
        """Do copy_prefix(). source is a cache of the same class and dtype, perhaps this one."""

    @abstractmethod
    def _save_row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """Do save_row()."""

    @abstractmethod
    def _load_row(self, row: int, length: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Do load_row(). arrays have all names, with the shapes and dtypes of saved_arrays()."""

    @abstractmethod
    def _free(self) -> None:
        """Give the memory back."""
