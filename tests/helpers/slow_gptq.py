"""GPTQ and its correction in float64, one number at a time: slow, and by other formulas than the package's.

Optimal Brain Quantization in a fixed order of columns (arXiv:2208.11580). There is no Cholesky factor: the inverse of H
is kept for the columns that are left. Rounding column j by e changes every later column k by -e * Hinv[j, k] /
Hinv[j, j]; then column j leaves, Hinv -= Hinv[:, j] Hinv[j, :] / Hinv[j, j].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def corrected(weights: Array, exact: Array, quantized: Array) -> Array:
    """W + W mean((y - x) x') (H + 0.1 mean(diag H))^-1 for inputs y = exact and x = quantized, (tokens, columns)."""
    n, columns = quantized.shape
    h = quantized.T @ quantized / n
    cross = (exact - quantized).T @ quantized / n
    return weights + weights @ cross @ np.linalg.inv(h + 0.1 * h.diagonal().mean() * np.eye(columns))


def order_of(diagonal: Array, group_size: int) -> list[int]:
    """Groups by descending mean, columns of a group by descending number; a last group is filled with zeros."""
    padded = np.concatenate([diagonal, np.zeros(-len(diagonal) % group_size)])
    starts = range(0, len(padded), group_size)
    groups = sorted(starts, key=lambda start: -padded[start : start + group_size].mean())
    return [
        column
        for start in groups
        for column in sorted(range(start, start + group_size), key=lambda column: -padded[column])
        if column < len(diagonal)
    ]


def gptq(weights: Array, h: Array, kind: str, group_size: int) -> tuple[NDArray[np.int64], Array]:
    """Codes (rows, columns) and scales (rows, groups) for second moments h (columns, columns)."""
    rows, columns = weights.shape
    weights, low, high = weights.copy(), *((-8, 7) if kind == "q4" else (-127, 127))
    mean = h.diagonal().mean()
    h = h + (0.01 * mean if mean else 1.0) * np.eye(columns)
    order = order_of(h.diagonal() - h.diagonal().min(), group_size)
    inverse = np.linalg.inv(h)
    codes, scales = np.zeros((rows, columns), np.int64), np.zeros((rows, -(-columns // group_size)))
    for column in order:
        group = column // group_size
        inside = [c for c in order if c // group_size == group]
        if column == inside[0]:
            for row in range(rows):
                scales[row, group] = _scale(weights[row, inside], h.diagonal()[inside], kind)
        for row in range(rows):
            scale = scales[row, group]
            code = np.clip(np.rint(weights[row, column] / scale), low, high) if scale else 0.0
            codes[row, column] = int(code)
            error = (weights[row, column] - code * scale) / inverse[column, column]
            weights[row] -= error * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes, scales


def _scale(numbers: Array, importance: Array, kind: str) -> float:
    most = float(numbers[np.abs(numbers).argmax()])
    if kind == "q8":
        return float(np.float16(abs(most) / 127))
    best, best_gain = 0.0, 0.0
    for factor in np.linspace(7, 10, 19):
        if abs(most) <= 1e-30:
            break
        codes = np.clip(np.rint(numbers * (-factor / most)), -8, 7)
        explained, power = float((importance * numbers * codes).sum()), float((importance * codes * codes).sum())
        if explained**2 / power > best_gain:
            best, best_gain = explained / power, explained**2 / power
    return float(np.float16(best))
