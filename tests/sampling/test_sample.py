"""The compiled loops of the sampler, with every instruction set, against the same steps in plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import instruction_sets
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllama2.sampling import sample

ISAS = [isa for isa in ("scalar", "avx2", "avx512") if isa in instruction_sets.HERE]
VOCAB = 20_011


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYLLAMA2_CPU_ISA", request.param)
    return str(request.param)


def likeliest_first(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(-logits.astype(np.float64), kind="stable")


def plain_kept(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ascending ids of the tokens that can be drawn, and their weights: whole sorts and sums, nothing clever."""
    ids = np.sort(likeliest_first(logits)[: top_k or None])
    with np.errstate(over="ignore"):
        weights = np.exp((logits[ids].astype(np.float64) - logits.max()) / temperature)
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.concatenate(([0.0], np.cumsum(weights[order])[:-1]))
        kept = np.sort(order[before <= top_p * math.fsum(weights)])
        ids, weights = ids[kept], weights[kept]
    if min_p > 0:
        ids, weights = ids[weights >= min_p], weights[weights >= min_p]
    return ids, weights


def sampled(logits: NDArray[np.float32], params: tuple[float, int, float, float], uniform: float) -> int:
    return sample.sample(logits, float(logits.max()), *params, uniform)


def check_draws(logits: NDArray[np.float32], params: tuple[float, int, float, float], n: int = 40) -> None:
    """The same tokens by chance, at both ends of the unit interval, and just inside of both ends of some tokens."""
    ids, weights = plain_kept(logits, *params)
    mass = np.cumsum(weights)
    ends = mass / mass[-1]
    starts = np.concatenate(([0.0], ends[:-1]))
    for uniform in np.random.default_rng(3).random(n):
        if np.abs(ends - uniform).min() > 1e-11:  # else rounding may choose a neighbour
            assert sampled(logits, params, uniform) == ids[np.searchsorted(ends, uniform, side="right")], uniform
    assert sampled(logits, params, 0.0) == ids[np.flatnonzero(weights)[0]]
    last = ids == sampled(logits, params, 1 - 2**-53)
    assert ends[last] > 1 - 1e-11 and weights[last] > 0
    wide = np.flatnonzero(ends - starts > 1e-10)
    for i in wide[:: max(1, len(wide) // n)]:
        for uniform in (starts[i] + 1e-11, ends[i] - 1e-11):
            assert sampled(logits, params, uniform) == ids[i]


def spread(rng: np.random.Generator, scale: float, n: int = VOCAB) -> NDArray[np.float32]:
    return (rng.standard_normal(n) * scale).astype(np.float32)


def few_high(rng: np.random.Generator) -> NDArray[np.float32]:
    logits = spread(rng, 3)
    logits[rng.integers(0, VOCAB, 30)] += 12
    return logits


LOGITS = {
    "like a model's": few_high,
    "flat": lambda rng: spread(rng, 0.1),
    "wide": lambda rng: spread(rng, 40),
    "coarse, with many equals": lambda rng: np.round(spread(rng, 2)),
    "all equal": lambda rng: np.full(VOCAB, -7.25, np.float32),
    "zeros of both signs": lambda rng: np.where(rng.random(VOCAB) < 0.5, 0.0, -0.0).astype(np.float32),
    "ascending": lambda rng: np.sort(spread(rng, 3)),
    "descending": lambda rng: np.sort(spread(rng, 3))[::-1].copy(),
    "far apart": lambda rng: spread(rng, 1e37),
    "mostly forbidden": lambda rng: np.where(np.arange(VOCAB) % 1000 == 7, spread(rng, 2), -np.inf).astype(np.float32),
    "one is allowed": lambda rng: np.where(np.arange(VOCAB) == 321, 5, -np.inf).astype(np.float32),
    "at the end of the vocabulary": lambda rng: np.where(np.arange(VOCAB) > VOCAB - 9, 9, spread(rng, 1)).astype(
        np.float32
    ),
    "just apart": lambda rng: np.float32(11) + (rng.integers(0, 3, VOCAB) * np.float32(2**-20)).astype(np.float32),
    "subnormal": lambda rng: (rng.integers(-9, 9, VOCAB) * 1e-44).astype(np.float32),
    "odd size": lambda rng: spread(rng, 3, 1009),
    "smaller than a vector": lambda rng: spread(rng, 1, 5),
}
PARAMS = [
    (0.6, 0, 0.9, 0.0),  # the defaults
    (1.0, 0, 1.0, 0.0), (0.6, 0, 1.0, 0.0), (3.0, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0), (1.0, 40, 1.0, 0.0), (1.0, 700, 1.0, 0.0), (1.0, 15_000, 1.0, 0.0), (1.0, 10**30, 1.0, 0.0),
    (1.0, 0, 1e-9, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 0, 0.99, 0.0), (1.0, 0, 0.999_999, 0.0), (2.5, 0, 0.95, 0.0),
    (1e-3, 0, 0.9, 0.0), (1e-30, 0, 0.9, 0.0), (5e-324, 0, 0.9, 0.0), (1e30, 40, 1.0, 0.0),
    (1.0, 0, 1.0, 0.05), (1.0, 0, 1.0, 1e-9), (1.0, 0, 1.0, 1.0), (0.6, 0, 0.9, 0.1),
    (0.8, 40, 0.9, 0.05), (1.3, 2000, 0.7, 0.001),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_samples_are_those_of_plain_sorts(kind: str, params: tuple[float, int, float, float]) -> None:
    logits = LOGITS[kind](np.random.default_rng(1))
    check_draws(logits, params, 6)


@pytest.mark.parametrize("kind", LOGITS)
def test_all_instruction_sets_sample_alike(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = LOGITS[kind](np.random.default_rng(2))
    uniforms = np.random.default_rng(3).random(8)
    result = []
    for name in ISAS:
        monkeypatch.setenv("PYLLAMA2_CPU_ISA", name)
        highest, lowest = sample.extremes(logits)
        tokens = [sample.sample(logits, highest, *params, u) for params in PARAMS for u in uniforms]
        result.append((highest, lowest, sample.log_sum(logits, highest), tokens))
    assert result[1:] == result[:-1]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=600),
    st.sampled_from([0.5, 4.0, 30.0]),
    st.sampled_from([0, 1, 3, 20, 500]),
    st.sampled_from([1e-6, 0.1, 0.5, 0.75, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 1e-4, 0.3, 1.0]),
)
def test_small_vocabularies_with_many_equals(
    values: list[int], scale: float, top_k: int, top_p: float, min_p: float
) -> None:
    check_draws(np.asarray(values, np.float32) / np.float32(scale), (1.0, top_k, top_p, min_p), 10)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_nucleus_is_exact_where_its_edge_is_near(scale: float, isa: str) -> None:
    """Masses that just exceed top_p, or just do not, by more and by less than a rough sum of the others can tell."""
    logits = few_high(np.random.default_rng(0)) / np.float32(scale)
    order = likeliest_first(logits)
    weights = np.exp(logits[order].astype(np.float64) - logits.max())
    mass = np.cumsum(weights) / math.fsum(weights)
    for n in (1, 2, 5, 12, 20, 100, 1000):
        for by in (1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
            for top_p, n_kept in ((mass[n - 1] * (1 - by), n), (mass[n - 1] * (1 + by), n + 1)):
                if top_p >= 1 or not (mass[n_kept - 2] if n_kept > 1 else 0.0) <= top_p < mass[n_kept - 1]:
                    continue  # so far off that others are between
                result = {sampled(logits, (1.0, 0, top_p, 0.0), uniform) for uniform in (0.0, 1 - 2**-53)}
                assert result == {order[:n_kept].min(), order[:n_kept].max()}
                assert n_kept == len(plain_kept(logits, 1.0, 0, top_p, 0.0)[0])


@pytest.mark.slow
def test_equals_on_both_sides_of_the_first_cut_of_the_nucleus(isa: str) -> None:
    """3,400 logits differ but weigh the same, and some lie above the cut: of all of them the lowest ids stay."""
    rng = np.random.default_rng(7)
    highest, depth = 8.0, 8 - math.log(1 - 0.9)
    logits = np.full(VOCAB, -1000, np.float32)
    logits[5] = highest
    places = np.sort(rng.choice(np.arange(6, VOCAB), 3400, replace=False))
    logits[places] = rng.uniform(-2e-15, 2e-15, len(places))
    for step in range(-20, 20):  # units in the last place: one of these cuts is as near to 0 as the logits
        temperature = highest / (depth + 1e-9) * (1 - 1e-15 * (2 + step / 4))
        ids, _ = plain_kept(logits, temperature, 0, 0.9, 0.0)
        assert 5 < len(ids) < 1000
        result = {sample.sample(logits, highest, temperature, 0, 0.9, 0.0, u) for u in np.linspace(0.9, 1, 100)[:-1]}
        assert result <= set(ids.tolist())


class TestExtremes:
    def test_highest_and_lowest(self, isa: str) -> None:
        for n in (1, 5, 16, 255, 4099):
            logits = spread(np.random.default_rng(n), 5, n)
            assert sample.extremes(logits) == (logits.max(), logits.min())

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_seen_anywhere(self, bad: float, isa: str) -> None:
        for place in (0, 7, 16, 50, 63, 64, 69):
            logits = spread(np.random.default_rng(0), 5, 70)
            logits[place] = bad
            highest, lowest = sample.extremes(logits)
            expected = (math.nan, math.nan) if math.isnan(bad) else (logits.max(), logits.min())
            assert np.array_equal((highest, lowest), expected, equal_nan=True)


class TestLargest:
    @pytest.mark.parametrize("kind", LOGITS)
    def test_is_a_stable_sort(self, kind: str, isa: str) -> None:
        logits = LOGITS[kind](np.random.default_rng(4))
        for k in {1, 2, 5, 40, 600, 1250, 15_000, len(logits) - 1, len(logits)}:
            if k <= len(logits):
                assert sample.largest(logits, k).tolist() == sorted(likeliest_first(logits)[:k].tolist())


class TestLogSum:
    @pytest.mark.parametrize("kind", LOGITS)
    def test_is_that_of_exact_sums(self, kind: str, isa: str) -> None:
        logits = LOGITS[kind](np.random.default_rng(5))
        highest = float(logits.max())
        with np.errstate(over="ignore"):
            expected = math.log(math.fsum(np.exp(logits.astype(np.float64) - highest)))
        assert sample.log_sum(logits, highest) == pytest.approx(expected, abs=1e-14, rel=1e-14)


class TestPenalties:
    def test_against_a_plain_loop(self) -> None:
        rng = np.random.default_rng(6)
        for repetition, presence, frequency in (
            (1.3, 0, 0),
            (0.7, 0.5, 0),
            (1, 0, -0.25),
            (1e300, 1e300, 3),
            (2, 1, 1),
        ):
            logits = spread(rng, 3, 300)
            ids = rng.integers(0, 300, 120).tolist()
            expected = logits.copy()
            with np.errstate(over="ignore"):
                for token_id in set(ids[70:]) if repetition != 1 else ():
                    value = float(logits[token_id])
                    expected[token_id] = np.float64(value / repetition if value > 0 else value * repetition)
                for token_id in set(ids[40:]):
                    expected[token_id] = np.float64(expected[token_id]) - (
                        presence + frequency * ids[40:].count(token_id)
                    )
            sample.penalize(logits, ids, 70, 40, repetition, presence, frequency)
            assert np.array_equal(logits, expected)

    def test_ids_outside_the_vocabulary_are_refused(self) -> None:
        for token_id in (-1, 5, 2**40):
            logits = np.ones(5, np.float32)
            with pytest.raises(IndexError, match=str(token_id)):
                sample.penalize(logits, [0, token_id], 0, 0, 2.0, 0.0, 0.0)
            assert (logits == 1).all()


class TestForbid:
    @pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 1009])
    def test_bits(self, n: int) -> None:
        rng = np.random.default_rng(n)
        for density in (0.0, 0.02, 0.5, 0.98, 1.0):
            allowed = rng.random(n) < density
            mask = np.zeros(n // 32 + 1, np.uint32)
            for i in np.flatnonzero(allowed):
                mask[i >> 5] |= np.uint32(1 << (int(i) & 31))
            logits = spread(rng, 3, n)
            expected = np.where(allowed, logits, -np.inf)
            assert sample.forbid(logits, mask) == allowed.any()
            np.testing.assert_array_equal(logits, expected)
            ids = np.flatnonzero(allowed).tolist()
            assert sample.few_allowed(mask, n, n) == ids
            if ids:
                assert sample.few_allowed(mask, n, len(ids)) == ids
                assert sample.few_allowed(mask, n, len(ids) - 1) is None

    def test_bits_beyond_the_vocabulary_do_not_count(self) -> None:
        logits = np.zeros(33, np.float32)
        mask = np.array([0, 0xFFFFFFFE], np.uint32)
        assert not sample.forbid(logits, mask) and np.all(logits == -np.inf)
        assert sample.few_allowed(mask, 33, 5) == []
