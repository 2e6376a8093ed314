"""The best codes of a matrix for given inputs: the correction for errors before it, and GPTQ.

    x, y        inputs of the matrix in the quantized and in the unquantized model, over the tokens of a text
    H           mean(x x')
    target      W + W mean((y - x) x') (H + CORRECTION_DAMPING mean(diag H) I)^-1

x is what the matrix gets, y what it should have got: the target is the matrix that brings W y closest from x (after
GPTAQ, arXiv:2504.02692). GPTQ (_cpu/gptq.pyx) rounds it in the metric H + DAMPING mean(diag H) I. Groups of inputs
are rounded in the order of their mean squares, and so are the inputs of a group: what weighs most is rounded while
there are most others left to correct it. Groups stay where they are in the file.

An input that is always zero has the damping for its mean square: it is rounded by itself. So is the padding of the
last group, to code zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._cpu.gptq import BLOCK, inverse_of_factor, quantize_block
from ..errors import NumericalError
from .products import Matrix, Products

DAMPING = 0.01  # shares of the mean of H's diagonal
CORRECTION_DAMPING = 0.1
_LEAF = 128  # size of the blocks that are factored number by number


@dataclass(frozen=True)
class Solution:
    """Codes and scales of a matrix (rows, columns), whose columns are padded to whole groups.

    Attributes:
        codes: int8 (rows, groups * group_size), signed.
        scales: float16 (rows, groups).
        losses: float32 (rows,), mean over tokens of the squared error of each output, against the corrected target.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    losses: NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """What the inputs of a matrix are like, in an order in which they are to be rounded.

    Attributes:
        order: int64 (padded columns,), the column that comes first, second, ...
        importance: float32 (padded columns,), the diagonal of H in this order, damped.
        factor: U of gptq.pyx for H in this order, damped.
        correction_factor: that of the correction's damping; None: without a correction.
    """

    order: NDArray[np.int64]
    importance: NDArray[np.float32]
    factor: Matrix
    correction_factor: Matrix | None

    @classmethod
    def of(cls, products: Products, moments: Matrix, group_size: int, corrected: bool) -> Inputs:
        """Order and factor the second moments of inputs.

        Args:
            products: what multiplies matrices.
            moments: H, float32 (columns, columns).
            group_size: inputs that share a scale.
            corrected: whether there is going to be a correction.

        Raises:
            NumericalError: the moments are not finite.
        """
        columns = len(moments)
        padding = -columns % group_size
        diagonal = np.pad(moments.diagonal(), (0, padding))
        mean = float(moments.diagonal().mean(dtype=np.float64))
        if not np.isfinite(mean):
            raise NumericalError("the model computes numbers that are not finite on the calibration text")
        order = _order(diagonal, group_size)
        padded = np.pad(moments, (0, padding)) if padding else moments
        ordered = padded[order[:, None], order]

        def damped(share: float) -> Matrix:
            result = ordered.copy()
            result[np.diag_indices(len(result))] += max(share * mean, 1e-30) if mean else 1.0
            return result

        metric = damped(DAMPING)
        importance = metric.diagonal().copy()
        factor = inverse_factor(products, metric)
        return cls(
            order, importance, factor, inverse_factor(products, damped(CORRECTION_DAMPING)) if corrected else None
        )


def solve(
    products: Products, matrix: Matrix, inputs: Inputs, cross: Matrix | None, kind: str, group_size: int
) -> Solution:
    """Quantize a matrix for its inputs.

    Args:
        products: what multiplies matrices.
        matrix: W, float32 (rows, columns).
        inputs: the matrix's, of the same group_size.
        cross: mean((y - x) x'), float32 (columns, columns); None: without a correction.
        kind: "q4" or "q8".
        group_size: inputs that share a scale.

    Raises:
        ValueError: a number is not finite, or too large for a float16 scale.
    """
    rows, n = len(matrix), len(inputs.order)
    width = BLOCK // group_size * group_size
    weights = _ordered(matrix, inputs.order)
    if cross is not None and inputs.correction_factor is not None:
        factor = inputs.correction_factor
        residual = _ordered(products.times(matrix, np.ascontiguousarray(cross.T)), inputs.order)
        residual = products.times(residual, factor)
        products.subtract(weights, -residual, np.ascontiguousarray(factor.T))
    codes, losses = np.empty((rows, n), np.int8), np.zeros(rows, np.float32)
    scales = np.empty((rows, n // group_size), np.uint16)
    for first in range(0, n, width):
        last = min(n, first + width)
        errors = np.empty((rows, last - first), np.float32)
        quantize_block(
            weights, first, last - first, inputs.factor, inputs.importance, group_size, kind, codes, scales, errors,
            products.n_threads,
        )  # fmt: skip
        losses += np.square(errors).sum(axis=1)
        if last < n:
            products.subtract(weights[:, last:], errors, np.ascontiguousarray(inputs.factor[first:last, last:].T))
    in_place, groups = np.empty_like(codes), np.empty_like(scales)
    in_place[:, inputs.order] = codes
    groups[:, inputs.order[::group_size] // group_size] = scales
    return Solution(in_place, groups.view(np.float16), losses)


def _order(diagonal: NDArray[np.float32], group_size: int) -> NDArray[np.int64]:
    """Groups by descending mean, and the columns of each by descending number; equal ones as they lie."""
    by_group = diagonal.reshape(-1, group_size)
    groups = np.argsort(-by_group.mean(axis=1, dtype=np.float64), kind="stable")
    within = np.argsort(-by_group, axis=1, kind="stable")
    return (groups[:, None] * group_size + within[groups]).reshape(-1)


def _ordered(matrix: Matrix, order: NDArray[np.int64]) -> Matrix:
    """The columns of a matrix in an order, in which those that it does not have are zeros."""
    columns = matrix.shape[1]
    result = np.zeros((len(matrix), len(order)), np.float32)
    inside = order < columns
    result[:, inside] = matrix[:, order[inside]]
    return result


def inverse_factor(products: Products, matrix: Matrix) -> Matrix:
    """U, upper triangular, with U' U = matrix^-1; float32 (n, n).

    If matrix, with rows and columns in reverse, is L L' then U is L^-1 in reverse.

    Raises:
        NumericalError: the matrix is not positive definite.
    """
    return np.ascontiguousarray(_inverse_of_factor(products, matrix[::-1, ::-1])[::-1, ::-1])


def _inverse_of_factor(products: Products, matrix: Matrix) -> Matrix:
    """L^-1 of a matrix L L', lower triangular. It is cut in halves:

    matrix = | A  B' |    L = | La        |    L^-1 = | La^-1                |    with C = B La'^-1
             | B  D  |        | C      Ld |           | -Ld^-1 C La^-1  Ld^-1 |        Ld Ld' = D - C C'
    """
    n = len(matrix)
    if n <= _LEAF:
        inverse = inverse_of_factor(np.ascontiguousarray(matrix))
        if inverse is None:
            raise NumericalError("the second moments of a matrix's inputs are not positive definite")
        return inverse
    half = -(-n // (2 * _LEAF)) * _LEAF
    upper = _inverse_of_factor(products, matrix[:half, :half])
    below = products.times(matrix[half:, :half], upper)
    rest = matrix[half:, half:].copy()
    products.subtract(rest, below, below)
    lower = _inverse_of_factor(products, rest)
    result = np.zeros((n, n), np.float32)
    result[:half, :half], result[half:, half:] = upper, lower
    below = products.times(below, np.ascontiguousarray(upper.T))
    products.subtract(result[half:, :half], lower, np.ascontiguousarray(below.T))
    return result
