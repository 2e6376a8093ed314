"""The quantizers: exact codes, bounded errors, and the layout that weights.py defines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyllama2._cpu import quantize_matrix
from pyllama2._cpu.quantizer import quantize_matrix as compiled
from pyllama2.storage.weights import Quantization, Weight, packed_shapes

GROUPS = (32, 64, 128)
finite = st.floats(-1e4, 1e4, width=32)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 150)), elements=finite)


def round_trip(matrix: np.ndarray, type: str, group_size: int) -> tuple[Weight, np.ndarray]:
    codes, scales = quantize_matrix(matrix, type, group_size, n_threads=2)
    assert (codes.shape, scales.shape) == packed_shapes(type, matrix.shape, group_size)
    weight = Weight("w", type, matrix.shape, codes, scales, group_size)
    return weight, weight.dequantize()


def grouped(matrix: np.ndarray, group_size: int) -> np.ndarray:
    """(rows, groups, group_size), padded with zeros."""
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // group_size) * group_size), np.float32)
    padded[:, :columns] = matrix
    return padded.reshape(rows, -1, group_size)


def scales_of(weight: Weight) -> np.ndarray:
    """(rows, groups) float32."""
    assert weight.scales is not None
    scales = weight.scales.transpose(0, 2, 1).reshape(-1, weight.scales.shape[1])
    return scales[: weight.shape[0]].astype(np.float32)


@pytest.mark.slow
@settings(deadline=None)
@given(matrices, st.sampled_from(GROUPS))
def test_q8_is_the_definition(matrix: np.ndarray, group_size: int) -> None:
    weight, back = round_trip(matrix, "q8", group_size)
    groups = grouped(matrix, group_size)
    largest = np.abs(groups).max(-1)
    scale = (largest / np.float32(127)).astype(np.float16).astype(np.float32)
    assert np.array_equal(scales_of(weight), scale)
    # Half a step, and what rounding the scale to float16 takes from the largest numbers.
    bound = scale[..., None] * 0.5001 + largest[..., None] * 2**-11 + 127 * 2.0**-24
    assert np.all(np.abs(grouped(back, group_size) - groups) <= bound)


@pytest.mark.slow
@settings(deadline=None)
@given(matrices, st.sampled_from(GROUPS))
def test_q4_is_no_worse_than_the_plain_scale(matrix: np.ndarray, group_size: int) -> None:
    _, back = round_trip(matrix, "q4", group_size)
    groups, found = grouped(matrix, group_size), grouped(back, group_size)
    at, largest = np.abs(groups).argmax(-1), np.abs(groups).max(-1).astype(float)
    plain = np.take_along_axis(groups, at[..., None], -1) / -8
    codes = np.clip(np.rint(np.divide(groups, plain, out=np.zeros_like(groups), where=np.abs(plain) > 1e-6)), -8, 7)
    weights = np.sqrt(np.abs(groups.astype(float)))
    errors = [np.sum(weights * (other - groups) ** 2, -1) for other in (found, codes * plain)]
    # float16 scales cost a little: one part in 2^11 of each number
    slack = np.sum(weights * groups.astype(float) ** 2, -1) * 2.0**-20 + (largest + 1e-3) ** 2.5 * 1e-5
    assert np.all(errors[0] <= errors[1] * 1.01 + slack)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GROUPS), st.sampled_from(["q8", "q4"]))
def test_numbers_that_the_format_holds_are_kept_exactly(seed: int, group_size: int, type: str) -> None:
    rng = np.random.default_rng(seed)
    rows, groups = 11, 3
    low, high = (-127, 127) if type == "q8" else (-8, 7)
    codes = rng.integers(low, high + 1, (rows, groups, group_size)).astype(np.float32)
    codes[..., rng.integers(group_size)] = low
    scales = np.exp2(rng.uniform(-14, 8, (rows, groups, 1))).astype(np.float16).astype(np.float32)
    matrix = (codes * scales).reshape(rows, -1)
    assert np.array_equal(round_trip(matrix, type, group_size)[1], matrix)


@pytest.mark.parametrize("type", ["q8", "q4"])
@pytest.mark.parametrize("group_size", GROUPS)
def test_threads_instruction_sets_and_dtypes_agree(type: str, group_size: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((37, 300)).astype(np.float16)
    expected = compiled(matrix.astype(np.float32), type, group_size, 1, "scalar")
    for threads, isa, dtype in [(1, "", np.float16), (3, "", np.float32), (8, "scalar", np.float16)]:
        found = compiled(matrix.astype(dtype), type, group_size, threads, isa)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("type", ["q8", "q4"])
def test_extremes(type: str) -> None:
    zeros = np.zeros((3, 40), np.float32)
    assert np.array_equal(round_trip(zeros, type, 32)[1], zeros)
    tiny = np.full((3, 40), 1e-30, np.float32)
    assert np.abs(round_trip(tiny, type, 32)[1]).max() <= 1e-6
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        matrix = np.ones((9, 40), np.float32)
        matrix[8, 39] = bad
        with pytest.raises(ValueError, match="not finite or too large"):
            quantize_matrix(matrix, type, 32)


def best_by_importance(group: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes and scale of one group, by trying twelve scales in float64."""
    group, importance = group.astype(np.float64), importance.astype(np.float64)
    largest = group[np.abs(group).argmax()]
    found = []
    for factor in np.linspace(7, 12.5, 12):
        codes = np.clip(np.rint(group * -factor / largest), -8, 7)
        scale = (importance * group * codes).sum() / (importance * codes * codes).sum()
        found.append((float((importance * (group - codes * scale) ** 2).sum()), scale))
    scale = float(np.float16(min(found)[1]))
    return np.clip(np.rint(group / scale), -8, 7), scale


@pytest.mark.parametrize("group_size", GROUPS)
def test_importance_is_what_the_search_weighs_errors_with(group_size: int) -> None:
    rng = np.random.default_rng(0)
    columns = 3 * group_size - 5  # an odd number of groups, the last of which is padded
    matrix = rng.standard_normal((13, columns)).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(columns)).astype(np.float32)
    codes, scales = quantize_matrix(matrix, "q4", group_size, 2, importance)
    weight = Weight("w", "q4", matrix.shape, codes, scales, group_size)
    found, groups = scales_of(weight), grouped(matrix, group_size)
    padded = grouped(importance[None], group_size)[0]
    expected = [
        [best_by_importance(group, weights)[1] for group, weights in zip(row, padded, strict=True)] for row in groups
    ]
    assert (found == np.array(expected, np.float32)).mean() > 0.95  # the others are as good, but for float32
    assert found == pytest.approx(np.array(expected), rel=0.35)

    def loss(back: np.ndarray) -> float:
        return float((importance * (back - matrix) ** 2).sum())

    assert loss(weight.dequantize()) < 0.8 * loss(round_trip(matrix, "q4", group_size)[1])


@pytest.mark.parametrize("group_size", GROUPS)
def test_importance_for_threads_instruction_sets_and_dtypes(group_size: int) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((37, 300)).astype(np.float16)
    importance = np.exp(rng.standard_normal(300)).astype(np.float32)
    expected = compiled(matrix.astype(np.float32), "q4", group_size, 1, "scalar", importance)
    for threads, isa, dtype, factor in [(1, "", np.float16, 1), (3, "", np.float32, 4), (8, "scalar", np.float16, 0.5)]:
        found = compiled(matrix.astype(dtype), "q4", group_size, threads, isa, importance * np.float32(factor))
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_numbers_of_the_grid_are_kept_whatever_their_importance() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(-8, 8, (11, 3, 32)).astype(np.float32)
    codes[..., 5] = -8
    matrix = (codes * np.exp2(rng.integers(-9, 3, (11, 3, 1))).astype(np.float32)).reshape(11, 96)
    importance = np.exp(3 * rng.standard_normal(96)).astype(np.float32)
    weight = Weight("w", "q4", matrix.shape, *quantize_matrix(matrix, "q4", 32, 1, importance), 32)
    assert np.array_equal(weight.dequantize(), matrix)


def test_wrong_importance() -> None:
    matrix, ones = np.ones((8, 32), np.float32), np.ones(32, np.float32)
    for wrong in (ones[:31], ones * 0, -ones, ones * np.nan, ones * np.inf, np.ones((8, 32), np.float32)):
        with pytest.raises(ValueError, match="importance"):
            quantize_matrix(matrix, "q4", 32, 1, wrong)
    with pytest.raises(ValueError, match="for q4 only"):
        quantize_matrix(matrix, "q8", 32, 1, ones)


def test_wrong_arguments() -> None:
    matrix = np.ones((8, 32), np.float32)
    for wrong in (("q3", 32), ("q8", 31), ("float32", 32)):
        with pytest.raises(ValueError):
            quantize_matrix(matrix, *wrong)
    for other in (matrix[0], matrix.astype(np.float64)):
        with pytest.raises(ValueError):
            quantize_matrix(other, "q8", 32)
    for wrong_quantization in (("q8", "q8", 0), ("float32", "q8", 0), ("q4", "float32", 64), ("q5", "q8", 64)):
        with pytest.raises(ValueError):
            Quantization(*wrong_quantization)  # type: ignore[arg-type]
