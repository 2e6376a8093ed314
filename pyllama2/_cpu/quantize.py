"""quantize_matrix(): the compiled quantizer, with as many threads as everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quantizer import quantize_matrix as _quantize_matrix
from .threads import default_threads


def quantize_matrix(
    matrix: NDArray[Any],
    weight_type: str,
    group_size: int,
    n_threads: int | None = None,
    importance: NDArray[np.float32] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Quantize a matrix.

    Args:
        matrix: (rows, columns), float32 or float16.
        weight_type: "q8" or "q4".
        group_size: weights that share a scale: 32, 64 or 128.
        n_threads: None: default_threads().
        importance: for q4: of each input, float32 (columns,), above 0, such as the mean square of that input. What
            weights of important inputs lose counts more in the search for scales. None: it is not known.

    Returns:
        Codes and scales, laid out as weights.py says.

    Raises:
        ValueError: an argument is out of range, or a number is not finite.
    """
    return _quantize_matrix(matrix, weight_type, group_size, n_threads or default_threads(), "", importance)
