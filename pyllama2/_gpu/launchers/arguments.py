"""Arguments of kernels: checked arrays, and numbers of the size that a kernel declares.

CuPy passes a Python int as 8 bytes and a float as a double, whatever the kernel declares. So numbers are numpy's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NULL = np.uint64(0)  # for an array that is optional


def expect(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """Return array. Raises ValueError unless it is contiguous and has this dtype and shape. name is for the error."""
    if array.dtype != np.dtype(dtype) or tuple(array.shape) != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous {dtype} array {shape}, not {array.dtype} {tuple(array.shape)}")
    return array


def expect_at_least(name: str, array: Any, dtype: str, size: int) -> Any:
    """Return array. Raises ValueError unless it is contiguous and has this dtype and at least size numbers."""
    if array.dtype != np.dtype(dtype) or array.size < size or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous {dtype} array of {size} numbers, not {array.size} {array.dtype}")
    return array


def integers(*values: int) -> tuple[np.int32, ...]:
    """Return values as arguments that a kernel declares as int."""
    return tuple(np.int32(value) for value in values)
