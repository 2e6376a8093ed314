"""A tensor of floating-point numbers that lies in a mapped file: F32, F16 or BF16.

Float32 and float16 are used in place. A bfloat16 number is the upper half of a float32's bits, so that
widening it is a shift and exact; float16 could not hold its range. Used by the readers of .pth and
safetensors files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from .base import LazyTensor

_BITS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_READ_AS = {"F32": np.float32, "F16": np.float16, "BF16": np.float32}
DTYPES = tuple(_BITS)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and how.

    dtype    "F32", "F16" or "BF16"
    shape    of the tensor; no dimension is 0
    offset   byte of the file where its first element is
    strides  distance of neighbours in each dimension, in elements; None for row-major

    Raises CheckpointError when the file does not hold all of it.
    """

    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._span()

    @property
    def read_dtype(self) -> np.dtype[Any]:
        """The type that read() gives: float16 or float32."""
        return np.dtype(_READ_AS[self.dtype])

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * np.dtype(_BITS[self.dtype]).itemsize

    def read(self) -> NDArray[Any]:
        """The numbers as float32 or float16; a view of the file unless they are BF16."""
        stored = self._stored()
        if self.dtype != "BF16":
            return stored
        numbers = np.empty(self.shape, np.float32)
        _widen(stored, numbers)
        return numbers

    def read_into(self, out: NDArray[Any]) -> None:
        """Copy the numbers into an array of the same shape and of read_dtype, which may be a slice of another."""
        if self.dtype == "BF16":
            _widen(self._stored(), out)
        else:
            out[...] = self._stored()

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start .. stop - 1 as read() gives them, without touching others."""
        row = prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + start * row * np.dtype(_BITS[self.dtype]).itemsize
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=offset).read()

    def release(self) -> None:
        """Let the system take back the pages of the tensor."""
        self.file.release(self.offset, self._span().nbytes)

    def lazy(self) -> LazyTensor:
        """The same as LazyTensor."""
        return LazyTensor(self.dtype, self.nbytes, self.read, self.read_rows, self.release)

    def _span(self) -> NDArray[Any]:
        """The elements from the first to the last one used, (n,), a view of the file."""
        if self.strides is None:
            length = prod(self.shape)
        else:
            length = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.file.array(self.offset, _BITS[self.dtype], (length,))

    def _stored(self) -> NDArray[Any]:
        span = self._span()
        if self.strides is None:
            return span.reshape(self.shape)
        strides = [stride * span.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(span, self.shape, strides, writeable=False)


def check_dtype(path: str, name: str, dtype: str) -> None:
    """Raise CheckpointError unless dtype is one that StoredTensor reads."""
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name[:80]!r} is {dtype}; F32, F16 and BF16 are supported")


def _widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)
