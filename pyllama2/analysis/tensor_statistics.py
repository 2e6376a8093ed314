"""Minimum, maximum, mean and standard deviation of a tensor, of all of its numbers or of a sample.

A tensor is read in runs of rows, so that memory holds one run at a time. A sample consists of runs of 8 rows, which
our quantized files store together, spread evenly over the matrix. Means and deviations of the runs are merged as in
https://doi.org/10.2307/2683386 (Chan, Golub, LeVeque 1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE = 1 << 18  # numbers of a sample
_RUN_ROWS = 8
_CHUNK = 1 << 20  # numbers of a run when all are read


@dataclass(frozen=True)
class Statistics:
    """Statistics of the numbers of a tensor. NaN and infinities are only counted.

    Attributes:
        n_read: how many numbers were read; fewer than the tensor has if it was sampled.
        not_finite: how many of these are NaN or infinite.
        min: the least finite number; None if there is no finite one, as for those below.
        max: the largest.
        mean: their mean.
        std: their standard deviation.
    """

    n_read: int
    not_finite: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None


def statistics_of(
    shape: tuple[int, ...], read_rows: Callable[[int, int], NDArray[np.floating]], *, exact: bool = False
) -> Statistics:
    """Compute the statistics of a tensor.

    Args:
        shape: the tensor's shape.
        read_rows: reads rows start to stop - 1 of the tensor, as read_rows(start, stop).
        exact: read all numbers. Otherwise a tensor of more than SAMPLE numbers is sampled.
    """
    parts = [_of_part(read_rows(start, stop)) for start, stop in _runs(shape, exact)]
    return merged(parts)


def _runs(shape: tuple[int, ...], exact: bool) -> Iterator[tuple[int, int]]:
    """The runs of rows to read, as (start, stop)."""
    rows, columns = shape[0], math.prod(shape[1:])
    if exact or rows * columns <= SAMPLE:
        step = max(_RUN_ROWS, _CHUNK // columns // _RUN_ROWS * _RUN_ROWS)
        yield from ((start, min(start + step, rows)) for start in range(0, rows, step))
        return
    n_blocks = -(-rows // _RUN_ROWS)
    n_runs = min(n_blocks, max(1, SAMPLE // (_RUN_ROWS * columns)))
    for i in range(n_runs):
        start = i * n_blocks // n_runs * _RUN_ROWS
        yield start, min(start + _RUN_ROWS, rows)


def _of_part(part: NDArray[np.floating]) -> Statistics:
    finite = part[np.isfinite(part)] if not np.isfinite(part).all() else part
    bad = part.size - finite.size
    if not finite.size:
        return Statistics(part.size, bad, None, None, None, None)
    mean, std = float(finite.mean(dtype=np.float64)), float(finite.std(dtype=np.float64))
    return Statistics(part.size, bad, float(finite.min()), float(finite.max()), mean, std)


def merged(parts: list[Statistics]) -> Statistics:
    """Merge the statistics of parts into those of all of their numbers. There must be at least one part."""
    known = [(part.n_read - part.not_finite, part) for part in parts if part.mean is not None]
    n_read, not_finite = sum(part.n_read for part in parts), sum(part.not_finite for part in parts)
    if not known:
        return Statistics(n_read, not_finite, None, None, None, None)
    count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean
    for n, part in known:
        distance = (part.mean or 0.0) - mean
        squares += n * (part.std or 0.0) ** 2 + distance**2 * count * n / (count + n)
        count += n
        mean += distance * n / count
    least = min(part.min for _, part in known if part.min is not None)
    largest = max(part.max for _, part in known if part.max is not None)
    return Statistics(n_read, not_finite, least, largest, mean, math.sqrt(squares / count))
