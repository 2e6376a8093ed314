"""Arguments of kernels: checked arrays, and numbers of the width that a kernel declares.

CuPy hands a Python int over as 8 bytes and a float as a double, whatever the kernel says: numbers are wrapped.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NULL = np.uint64(0)  # in place of an array that a kernel can do without


def expect(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """array, unless it has another dtype or shape or is not contiguous: then ValueError."""
    if array.dtype != np.dtype(dtype) or tuple(array.shape) != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous {dtype} array {shape}, not {array.dtype} {tuple(array.shape)}")
    return array


def expect_at_least(name: str, array: Any, dtype: str, size: int) -> Any:
    """array, unless it has another dtype, fewer numbers or is not contiguous: then ValueError."""
    if array.dtype != np.dtype(dtype) or array.size < size or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous {dtype} array of {size} numbers, not {array.size} {array.dtype}")
    return array


def integers(*values: int) -> tuple[np.int32, ...]:
    """Arguments that a kernel declares as int."""
    return tuple(np.int32(value) for value in values)
