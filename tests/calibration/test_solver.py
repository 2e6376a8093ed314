"""GPTQ and its correction against a slow implementation in float64."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.slow_gptq import corrected, gptq
from numpy.typing import NDArray

from pyllama2.calibration.products import Products
from pyllama2.calibration.solver import Inputs, Solution, inverse_factor, solve
from pyllama2.storage.weights import StorageType, Weight

Array = NDArray[np.float32]


def correlated(n_tokens: int, width: int, seed: int = 0) -> Array:
    """Inputs whose columns depend on each other and differ in size, as a model's do."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * 0.3 + np.eye(width)
    sizes = np.exp(rng.standard_normal(width))
    return (rng.standard_normal((n_tokens, width)) @ mixing * sizes).astype(np.float32)


def matrix(rows: int, columns: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def solved(
    weights: Array, x: Array, kind: str, group_size: int, exact: Array | None = None, n_threads: int = 1
) -> Solution:
    products = Products(n_threads)
    inputs = Inputs.of(products, products.second_moments(x), group_size, corrected=exact is not None)
    cross = None if exact is None else products.cross_moments(exact - x, x)
    return solve(products, weights, inputs, cross, kind, group_size)


def dequantized(solution: Solution, group_size: int, columns: int) -> NDArray[np.float64]:
    scales = np.repeat(solution.scales.astype(np.float64), group_size, axis=1)
    return (solution.codes * scales)[:, :columns]


def loss(difference: NDArray[np.float64], x: Array) -> float:
    return float(np.square(x.astype(np.float64) @ difference.T).mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q4", "q8"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("columns", [128, 200])
def test_gptq_is_that_of_float64(kind: str, group_size: int, columns: int) -> None:
    """Codes differ only where float32 rounds another way and all that follows goes with it; the loss is the same."""
    weights, x = matrix(19, columns), correlated(500, columns)
    solution = solved(weights, x, kind, group_size)
    wide = x.astype(np.float64)
    codes, scales = gptq(weights.astype(np.float64), wide.T @ wide / len(x), kind, group_size)
    assert (solution.codes[:, :columns] == codes).mean() > 0.97
    expected = codes * np.repeat(scales, group_size, axis=1)[:, :columns]
    ours = loss(dequantized(solution, group_size, columns) - weights, x)
    theirs = loss(expected - weights, x)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_it_is_far_better_than_rounding() -> None:
    from pyllama2._cpu import quantize_matrix

    weights, x = matrix(32, 256), correlated(600, 256)
    plain = Weight("", "q4", weights.shape, *quantize_matrix(weights, "q4", 64), 64).dequantize()
    assert loss(dequantized(solved(weights, x, "q4", 64), 64, 256) - weights, x) < 0.5 * loss(plain - weights, x)


def test_losses_are_the_errors_of_the_outputs() -> None:
    weights, x = matrix(20, 128), correlated(600, 128)
    solution = solved(weights, x, "q4", 32)
    error = x.astype(np.float64) @ (dequantized(solution, 32, 128) - weights).T
    damping = 0.01 * np.square(x).mean()
    expected = np.square(error).mean(0) + damping * np.square(dequantized(solution, 32, 128) - weights).sum(1)
    assert solution.losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [128, 150])
def test_the_correction_is_that_of_float64(columns: int) -> None:
    """With q8, whose rounding hides little of the target."""
    weights, exact = matrix(17, columns), correlated(700, columns)
    x = exact + 0.2 * correlated(700, columns, seed=5)
    target = corrected(*(a.astype(np.float64) for a in (weights, exact, x)))
    found = dequantized(solved(weights, x, "q8", 32, exact), 32, columns)
    assert loss(found - target, x) < 3e-3 * loss(weights - target, x)
    wide = x.astype(np.float64)
    codes, scales = gptq(target, wide.T @ wide / len(x), "q8", 32)
    assert np.abs(found - codes * np.repeat(scales, 32, axis=1)[:, :columns]).max() < 0.05 * np.abs(target).max()


def test_the_correction_makes_up_for_wrong_inputs() -> None:
    weights, exact = matrix(32, 128), correlated(900, 128)
    x = exact + 0.3 * correlated(900, 128, seed=9)

    def output_error(solution: Solution) -> float:
        return float(np.square(exact @ weights.T - x @ dequantized(solution, 64, 128).T).mean())

    assert output_error(solved(weights, x, "q4", 64, exact)) < 0.9 * output_error(solved(weights, x, "q4", 64))


class TestDeadInputs:
    def test_they_are_rounded_by_themselves(self) -> None:
        weights, x = matrix(16, 96), correlated(400, 96)
        x[:, [3, 40, 41]] = 0
        solution = solved(weights, x, "q4", 32)
        found = dequantized(solution, 32, 96)
        scales = np.repeat(solution.scales.astype(np.float32), 32, axis=1)
        for column in (3, 40, 41):
            nearest = np.clip(np.rint(weights[:, column] / scales[:, column]), -8, 7) * scales[:, column]
            assert found[:, column] == pytest.approx(nearest)
        wide = x.astype(np.float64)
        codes, _ = gptq(weights.astype(np.float64), wide.T @ wide / len(x), "q4", 32)
        assert (solution.codes == codes).mean() > 0.97

    def test_all_of_them(self) -> None:
        """Nothing is known then: plain rounding with the best scales."""
        weights = matrix(16, 64)
        found = dequantized(solved(weights, np.zeros((10, 64), np.float32), "q4", 32), 32, 64)
        assert np.square(found - weights).mean() < 0.02

    def test_padding_has_code_zero(self) -> None:
        solution = solved(matrix(9, 100), correlated(300, 100), "q4", 64)
        assert solution.codes.shape == (9, 128) and not solution.codes[:, 100:].any()


def test_matrices_of_zeros_and_tiny_numbers() -> None:
    for weights in (np.zeros((5, 64), np.float32), np.full((5, 64), 1e-33, np.float32)):
        solution = solved(weights, correlated(200, 64), "q4", 32)
        assert not solution.codes.any() and not solution.scales.any()


def test_numbers_without_a_float16_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of numbers are not finite or too large"):
        solved(np.full((5, 64), 1e7, np.float32), correlated(200, 64), "q4", 32)


@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_results_do_not_depend_on_the_number_of_threads(n_threads: int) -> None:
    weights, exact = matrix(50, 300), correlated(2500, 300)
    x = exact + 0.1 * correlated(2500, 300, seed=2)
    one, many = (solved(weights, x, "q4", 64, exact, n) for n in (1, n_threads))
    assert np.array_equal(one.codes, many.codes)
    assert np.array_equal(one.scales, many.scales) and np.array_equal(one.losses, many.losses)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 64, 128, 129, 300, 520])
def test_inverse_factor(size: int) -> None:
    x = correlated(2 * size + 10, size)
    moments = x.T @ x / len(x)
    moments[np.diag_indices(size)] += 0.01 * moments.diagonal().mean()
    factor = inverse_factor(Products(2), moments.astype(np.float32)).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    assert factor.T @ factor @ moments == pytest.approx(np.eye(size), abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, 511, 700])
def test_moments(width: int) -> None:
    x, y = correlated(2100, width), correlated(2100, width, seed=3)
    products = Products(2)
    moments = products.second_moments(x)
    assert np.array_equal(moments, moments.T)
    scale = float(np.abs(moments).max())
    assert moments == pytest.approx(x.T.astype(np.float64) @ x / len(x), abs=1e-5 * scale)
    assert products.cross_moments(y, x) == pytest.approx(y.T.astype(np.float64) @ x / len(x), abs=1e-5 * scale)


@pytest.mark.parametrize(("kind", "group_size"), [("q4", 32), ("q4", 128), ("q8", 64)])
def test_codes_are_laid_out_as_they_are_read(kind: str, group_size: int) -> None:
    rng = np.random.default_rng(0)
    groups = -(-150 // group_size)
    codes = rng.integers(-8, 8, (11, groups * group_size)).astype(np.int8)
    codes[:, 150:] = 0
    scales = rng.standard_normal((11, groups)).astype(np.float16)
    weight = Weight.of_codes("w", StorageType(kind, group_size), (11, 150), codes, scales)
    expected = codes[:, :150] * np.repeat(scales.astype(np.float32), group_size, axis=1)[:, :150]
    assert np.array_equal(weight.dequantize(), expected)
    assert weight.data.flags.c_contiguous and weight.scales is not None and weight.scales.flags.c_contiguous
