"""The CPU backend: Cython and OpenMP. backend.py is its face; kernels/ holds the inner loops."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .threads import default_threads
from .wait_policy import short_spins

with short_spins():
    from .backend import CpuBackend
    from .matrix import end_team
    from .quantizer import quantize_matrix as _quantize_matrix

if hasattr(os, "register_at_fork"):
    # A child has no team: libgomp would wait for threads that are not there. Without a team it starts another.
    os.register_at_fork(before=end_team)

__all__ = ["CpuBackend", "default_threads", "quantize_matrix"]


def quantize_matrix(
    matrix: NDArray[Any], type: str, group_size: int, n_threads: int | None = None
) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Codes and scales, laid out as weights.py says, of a float32 or float16 matrix (rows, columns).

    Raises ValueError for another type than "q8" and "q4", another group size than 32, 64 and 128,
    and numbers that are not finite.
    """
    return _quantize_matrix(matrix, type, group_size, n_threads or default_threads())
