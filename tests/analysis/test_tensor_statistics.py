"""Statistics of tensors: numpy's when all is read, of a fair sample otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyllama2.analysis import tensor_statistics
from pyllama2.analysis.tensor_statistics import SAMPLE, merged, statistics_of


def assert_numpys(result: tensor_statistics.Statistics, numbers: NDArray[np.float32]) -> None:
    expected = numbers.astype(np.float64)
    assert (result.min, result.max) == (expected.min(), expected.max())
    assert result.mean == pytest.approx(expected.mean(), rel=1e-9, abs=1e-12)
    assert result.std == pytest.approx(expected.std(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", [(1,), (5,), (100,), (1, 1), (9, 3), (64, 100), (200, 17)])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_are_numpys(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_statistics, "_CHUNK", chunk)
    numbers = (np.random.default_rng(0).standard_normal(shape) + 3).astype(np.float32)
    result = statistics_of(shape, lambda start, stop: numbers[start:stop])
    assert (result.n_read, result.not_finite) == (numbers.size, 0)
    assert_numpys(result, numbers)


def test_far_from_zero() -> None:
    """A sum of squares would lose all digits of the deviation."""
    numbers = (1e6 + np.arange(10_000) % 2).astype(np.float64)
    assert statistics_of((10_000,), lambda start, stop: numbers[start:stop]).std == pytest.approx(0.5, rel=1e-9)


def test_halves_do_not_overflow() -> None:
    numbers = np.full((4096, 8), 60_000, np.float16)
    result = statistics_of(numbers.shape, lambda start, stop: numbers[start:stop])
    assert (result.mean, result.std) == (pytest.approx(numbers[0, 0].item()), 0)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 1000, SAMPLE, 3 * SAMPLE])
def test_a_sample_is_spread_over_the_tensor(columns: int) -> None:
    rows = 8 * (4 * SAMPLE // columns // 8 or 1) + 8
    seen: list[int] = []

    def read_rows(start: int, stop: int) -> NDArray[np.float32]:
        seen.extend(range(start, stop))
        return np.full((stop - start, columns), start, np.float32)

    result = statistics_of((rows, columns), read_rows)
    assert result.n_read == len(seen) * columns < rows * columns
    assert result.n_read <= max(SAMPLE, 8 * columns)
    assert len(set(seen)) == len(seen) and max(seen) < rows and min(seen) == 0
    if columns <= 1000:
        assert result.n_read > SAMPLE // 2 and max(seen) > 0.9 * rows
    seen.clear()
    assert statistics_of((rows, columns), read_rows, exact=True).n_read == rows * columns
    assert sorted(seen) == list(range(rows))


def test_a_sample_is_close() -> None:
    numbers = np.random.default_rng(1).standard_normal((4096, 512)).astype(np.float32)
    result = statistics_of(numbers.shape, lambda start, stop: numbers[start:stop])
    assert result.n_read == SAMPLE
    assert result.mean == pytest.approx(0, abs=0.01) and result.std == pytest.approx(1, abs=0.01)


def test_numbers_that_are_not_finite_are_counted_and_left_out() -> None:
    numbers = np.ones((16, 4), np.float32)
    numbers[3] = [np.nan, np.inf, -np.inf, 5]
    result = statistics_of((16, 4), lambda start, stop: numbers[start:stop])
    assert (result.n_read, result.not_finite, result.min, result.max) == (64, 3, 1, 5)
    assert_numpys(result, numbers[np.isfinite(numbers)])
    nothing = statistics_of((16, 4), lambda start, stop: np.full((stop - start, 4), np.nan))
    assert (nothing.not_finite, nothing.min, nothing.max, nothing.mean, nothing.std) == (64, None, None, None, None)
    assert merged([nothing, result]).not_finite == 67
    assert merged([nothing, result]).mean == result.mean
