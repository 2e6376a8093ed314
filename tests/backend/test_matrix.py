"""Products of one weight matrix: every kind, instruction set, and number of columns and threads."""

from __future__ import annotations

from itertools import cycle, product

import numpy as np
import pytest
from helpers import instruction_sets
from helpers.quantized_reference import quantize_activations
from numpy.typing import NDArray

from pyllama2._cpu import quantize_matrix
from pyllama2._cpu.matrix import MatrixProduct
from pyllama2.storage.weights import Weight

KINDS = [("float32", 0), ("float16", 0), *product(("q8", "q4"), (32, 64, 128))]
SHAPES = [(64, 256), (8, 32), (1, 1), (75, 173), (200, 90), (130, 1100)]
COUNTS = (1, 2, 3, 4, 5, 7, 8, 12, 13, 24, 25, 32, 33, 64, 65, 77)  # on both sides of what is few for some CPU


def make_weight(type: str, group_size: int, shape: tuple[int, int]) -> Weight:
    matrix = np.random.default_rng(3).standard_normal(shape, np.float32)
    if group_size:
        codes, scales = quantize_matrix(matrix, type, group_size)
        return Weight("w", type, shape, codes, scales, group_size)
    return Weight("w", type, shape, matrix.astype(type))


def make_columns(n: int, columns: int) -> NDArray[np.float32]:
    x = np.random.default_rng(4).standard_normal((n, columns), np.float32)
    x[:, columns // 2] *= 30.0  # an outlier in each, as models have them
    return x


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("type", "group_size"), KINDS)
def test_products_equal_the_definition_and_each_other(type: str, group_size: int, shape: tuple[int, int]) -> None:
    weight = make_weight(type, group_size, shape)
    x = make_columns(max(COUNTS), shape[1])
    exact = quantize_activations(x.astype(np.float64), weight) if group_size else x.astype(np.float64)
    expected = exact @ weight.dequantize().astype(np.float64).T
    tolerance = 2e-6 * np.abs(exact) @ np.abs(weight.dequantize().astype(np.float64).T) + 1e-6
    found = {}
    for isa in instruction_sets.HERE:
        whole = MatrixProduct(weight, len(x), 2, isa)(x)
        assert (np.abs(whole - expected) <= tolerance).all()
        found[isa] = whole
        for (n, few_columns), n_threads in zip(product(COUNTS, (0, 100)), cycle((1, 2, 3)), strict=False):
            part = MatrixProduct(weight, n, n_threads, isa, few_columns)(x[:n])
            assert part.tobytes() == whole[:n].tobytes(), (isa, n, few_columns, n_threads)
    exact_in_all = [whole for isa, whole in found.items() if group_size or isa != "scalar"]
    assert all(whole.tobytes() == exact_in_all[0].tobytes() for whole in exact_in_all)


@pytest.mark.parametrize(("type", "group_size"), [("q8", 128), ("q4", 128), ("q4", 64)])
def test_largest_codes_do_not_overflow(type: str, group_size: int) -> None:
    matrix = np.full((32, 512), -1.0, np.float32)
    matrix[::2, ::3] = 1.0
    codes, scales = quantize_matrix(matrix, type, group_size)
    weight = Weight("w", type, matrix.shape, codes, scales, group_size)
    x = np.where(np.arange(512) % 7 < 4, np.float32(1), np.float32(-1)) * np.ones((70, 1), np.float32)
    x[1], x[2] = 1, -1  # all of a sum's products have the same sign
    expected = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    for isa in instruction_sets.HERE:
        found = MatrixProduct(weight, len(x), 1, isa)
        for n in (1, 3, 4, 20, 70):
            assert np.abs(found(x[:n]) - expected[:n]).max() < 1e-3


@pytest.mark.parametrize("type", ["float32", "q8", "q4"])
def test_what_is_not_finite_shows(type: str) -> None:
    weight = make_weight(type, 0 if type == "float32" else 64, (40, 130))
    x = make_columns(16, 130)
    x[3, 100], x[7, 5] = np.inf, np.nan
    for isa in instruction_sets.HERE:
        found = MatrixProduct(weight, len(x), 1, isa)
        for n in (1, 16):
            bad = ~np.isfinite(found(x[3 : 3 + n] if n == 1 else x)).all(1)
            assert bad.tolist() == ([True] if n == 1 else [c in (3, 7) for c in range(16)])
