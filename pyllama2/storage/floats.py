"""Conversion between float types, with a check that the numbers are finite and fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .weights import all_finite

_CHUNK = 1 << 18  # numbers that are converted and checked at a time, so that they are in the CPU's cache


def as_float(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert array to dtype, float32 or float16, without a copy if it has that type already.

    Raises CheckpointError for NaN, infinity, and numbers that do not fit.
    """
    source = np.require(array, requirements=["C", "A"])
    result = source if source.dtype == dtype else np.empty(source.shape, dtype)
    flat_source, flat_result = source.reshape(-1), result.reshape(-1)
    for start in range(0, flat_source.size, _CHUNK):
        part, converted = flat_source[start : start + _CHUNK], flat_result[start : start + _CHUNK]
        if result is not source:
            with np.errstate(over="ignore"):
                np.copyto(converted, part, casting="same_kind")
        if not all_finite(converted):
            at = start + int(np.flatnonzero(~np.isfinite(converted))[0])
            value = float(flat_source[at])
            what = f"does not fit into {dtype}" if np.isfinite(value) else "is not a finite number"
            raise CheckpointError(f"tensor {name}: the weight {value:g} at {at} of {flat_source.size} {what}")
    return result
