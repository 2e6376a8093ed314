"""Up to how many columns a product is faster by blocks of rows than by unpacked panels (matrix.pyx).

It depends on the processor, and not only on its instruction set: the table has those that were measured with whole
matrices. Others are measured before the first chunk that is worth it. Blocks and panels give the same bits.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..storage.weights import Weight, WeightType
from .dispatch import amd_family
from .matrix import MatrixProduct

COUNTS = (8, 12, 16, 24, 32, 48, 64)
# By AMD's family and the instruction set. bench_kernels.py --few-columns tells.
_MEASURED: dict[tuple[int, str], dict[WeightType, int]] = {
    (0x19, "avx2"): {"float32": 24, "float16": 24, "q8": 64, "q4": 64},  # Zen 3
    (0x19, "avx512"): {"float32": 24, "float16": 24, "q8": 64, "q4": 64},  # Zen 4
    (0x1A, "avx512"): {"float32": 24, "float16": 24, "q8": 32, "q4": 64},  # Zen 5
}
_REPEATS = 4  # the first of which touches new memory
_GROUP_SIZE = 64
_SHAPES = {"float32": (192, 2048), "float16": (192, 2048), "q8": (384, 2048), "q4": (384, 2048)}


def few_columns(kind: WeightType, isa: str) -> int:
    """Return the largest number of columns that are multiplied by blocks.

    Args:
        kind: of the weights.
        isa: an instruction set that has panels.
    """
    known = known_few_columns(kind, isa)
    return measure(kind, isa) if known is None else known


def known_few_columns(kind: WeightType, isa: str) -> int | None:
    """Return few_columns() if the table has this processor, else None."""
    known = _MEASURED.get((amd_family(), isa))
    return known[kind] if known else None


@cache
def measure(kind: WeightType, isa: str) -> int:
    """Return the last of COUNTS up to which blocks are faster. One thread measures, for some 20 milliseconds."""
    weight = _make_weight(kind)
    first_of_panels = bisect_left(COUNTS, True, 1, key=lambda n: _panels_are_faster(weight, n, isa))
    return COUNTS[first_of_panels - 1]


def _panels_are_faster(weight: Weight, n: int, isa: str) -> bool:
    blocks, panels = (MatrixProduct(weight, n, 1, isa, limit) for limit in (n, 0))
    x = np.ones((n, weight.shape[1]), np.float32)
    blocks_s = panels_s = float("inf")
    for _ in range(_REPEATS):
        blocks_s = min(blocks_s, _seconds(blocks, x))
        panels_s = min(panels_s, _seconds(panels, x))
    return panels_s < blocks_s


def _seconds(product: MatrixProduct, x: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    product(x)
    return time.perf_counter() - started


def _make_weight(kind: WeightType) -> Weight:
    shape = rows, columns = _SHAPES[kind]
    if kind in ("float32", "float16"):
        return Weight("", kind, shape, np.ones(shape, kind))
    codes = np.ones((rows, columns // 2), np.uint8) if kind == "q4" else np.ones(shape, np.int8)
    return Weight("", kind, shape, codes, np.ones((rows, columns // _GROUP_SIZE), np.float16), _GROUP_SIZE)
