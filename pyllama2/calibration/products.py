"""Products of large matrices by the CPU backend's kernels.

They are as fast as a BLAS, and their numbers do not depend on how many threads there are: each number is one sum, in
an order that follows from its length alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._cpu.matrix import MatrixProduct
from .._cpu.threads import team_of
from ..storage.weights import Weight

Matrix = NDArray[np.float32]

_ROWS = 512  # of x that are multiplied together
_TOKENS = 2048  # that are summed up before they are added to the sum of those before


class Products:
    """Products with a number of threads.

    Args:
        n_threads: None: the usual number.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = team_of(n_threads)

    def of(self, weight: Weight, x: Matrix) -> Matrix:
        """Multiply x (n, columns) by a weight (rows, columns) of any storage type: (n, rows)."""
        product = MatrixProduct(weight, min(_ROWS, len(x)), self.n_threads)
        y = np.empty((len(x), weight.shape[0]), np.float32)
        for start in range(0, len(x), _ROWS):
            y[start : start + _ROWS] = product(np.ascontiguousarray(x[start : start + _ROWS]))
        return y

    def times(self, x: Matrix, w: Matrix) -> Matrix:
        """Return x (n, columns) times w (rows, columns) transposed: (n, rows)."""
        w = np.require(w, np.float32, ["C", "A"])
        return self.of(Weight("", "float32", w.shape, w), x)

    def subtract(self, target: Matrix, x: Matrix, w: Matrix) -> None:
        """Take x (n, columns) times w (rows, columns) transposed off target (n, rows), which may be a view."""
        product = MatrixProduct(Weight("", "float32", w.shape, w), min(_ROWS, len(x)), self.n_threads)
        for start in range(0, len(x), _ROWS):
            target[start : start + _ROWS] -= product(np.ascontiguousarray(x[start : start + _ROWS]))

    def second_moments(self, x: Matrix) -> Matrix:
        """Return the mean over n tokens of x x', for x (n, width): (width, width), symmetric."""
        n, width = x.shape
        total = np.zeros((width, width), np.float32)
        for start in range(0, n, _TOKENS):
            columns = np.ascontiguousarray(x[start : start + _TOKENS].T)  # (width, tokens)
            for row in range(0, width, _ROWS):
                part = slice(row, row + _ROWS)
                total[part, : part.stop] += self.times(columns[part], columns[: part.stop])
        for row in range(0, width, _ROWS):
            total[:row, row : row + _ROWS] = total[row : row + _ROWS, :row].T
        total /= max(n, 1)
        return total

    def cross_moments(self, a: Matrix, b: Matrix) -> Matrix:
        """Return the mean over n tokens of a b', for a (n, rows) and b (n, columns): (rows, columns)."""
        n, width = a.shape
        total = np.zeros((width, b.shape[1]), np.float32)
        for start in range(0, n, _TOKENS):
            left, right = (np.ascontiguousarray(x[start : start + _TOKENS].T) for x in (a, b))
            for row in range(0, width, _ROWS):
                total[row : row + _ROWS] += self.times(left[row : row + _ROWS], right)
        total /= max(n, 1)
        return total
