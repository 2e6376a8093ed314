"""A tensor of floating-point numbers in a mapped file: F32, F16 or BF16.

Float32 and float16 are used in place. The bits of a bfloat16 number are the upper half of a float32's, so that a
shift converts it exactly. It is not converted to float16, which has a smaller range.
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
    """Place and layout of a tensor in a file.

    Attributes:
        file: the mapped file.
        dtype: "F32", "F16" or "BF16".
        shape: length of each dimension, never 0.
        offset: byte of the file where the first element is.
        strides: distance of neighbours in each dimension, in elements; None for row-major.

    Raises:
        CheckpointError: the tensor does not fit into the file.
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
        """The type of the array that read() returns: float16 or float32."""
        return np.dtype(_READ_AS[self.dtype])

    @property
    def nbytes(self) -> int:
        """Bytes of its elements in the file."""
        return prod(self.shape) * np.dtype(_BITS[self.dtype]).itemsize

    def read(self) -> NDArray[Any]:
        """Return the numbers as an array of shape and read_dtype; a view of the file unless they are BF16."""
        stored = self._stored()
        if self.dtype != "BF16":
            return stored
        numbers = np.empty(self.shape, np.float32)
        _widen(stored, numbers)
        return numbers

    def read_into(self, out: NDArray[Any]) -> None:
        """Copy the numbers.

        Args:
            out: an array of the tensor's shape and of read_dtype; it may be a slice of a larger array.
        """
        if self.dtype == "BF16":
            _widen(self._stored(), out)
        else:
            out[...] = self._stored()

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows start .. stop - 1 as read() does, without reading others."""
        row = prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + start * row * np.dtype(_BITS[self.dtype]).itemsize
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=offset).read()

    def release(self) -> None:
        """Let the operating system take back the pages of the tensor.

        Raises:
            CheckpointError: the file has changed since it was mapped.
        """
        self.file.release(self.offset, self._span().nbytes)

    def lazy(self) -> LazyTensor:
        """Return a LazyTensor that reads this tensor."""
        return LazyTensor(self.dtype, self.nbytes, self.read, self.read_rows, self.release)

    def _span(self) -> NDArray[Any]:
        """Return all elements from the first to the last one of the tensor, (n,), as a view of the file."""
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
    """Check that StoredTensor can read a type.

    Args:
        path: the file, for the error message.
        name: the tensor, for the error message.
        dtype: its type.

    Raises:
        CheckpointError: dtype is not F32, F16 or BF16.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name[:80]!r} is {dtype}; F32, F16 and BF16 are supported")


def _widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)
