"""SamplingParams and Sampler, against a plain definition of every step."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from helpers.tiny import log_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllama2.errors import NumericalError
from pyllama2.sampling.params import SamplingParams
from pyllama2.sampling.sampler import Sampler, largest, log_probabilities_of

LOGITS = np.array([1.0, 3.0, -2.0, 3.0, 0.5, -1.0], np.float32)


def sample(logits: Any, prompt: list[int] = [0], generated: list[int] = [], seed: int = 0, **params: Any) -> int:  # noqa: B006
    sampler = Sampler(SamplingParams.of(None, **params), seed)
    return sampler.sample(np.asarray(logits, np.float32), [*prompt, *generated], len(prompt))


def support(logits: Any, n: int = 400, **params: Any) -> set[int]:
    """The tokens that are drawn at all; n is large enough for probabilities above some percent."""
    params = {"temperature": 1.0, "top_p": 1.0} | params
    sampler = Sampler(SamplingParams.of(None, **params), 1)
    return {sampler.sample(np.asarray(logits, np.float32), [0], 1) for _ in range(n)}


class TestParams:
    def test_defaults(self) -> None:
        assert {f.name: f.default for f in fields(SamplingParams)} == {
            "temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "repetition_window": 64, "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 256, "stop": (),
            "stop_token_ids": (), "ignore_eos": False, "logprobs": None, "echo": False, "seed": None,
            "logit_bias": None, "logits_processors": (), "logits_processor_factories": (), "json_schema": None,
            "regex": None, "grammar": None,
        }  # fmt: skip

    def test_frozen_and_copied(self) -> None:
        bias = {3: 1.0}
        params = SamplingParams(logit_bias=bias, stop="x", seed=7)
        bias[4] = 2.0
        assert params.logit_bias == {3: 1.0}
        with pytest.raises(FrozenInstanceError):
            params.seed = 8  # type: ignore[misc]
        assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params

    def test_numbers_of_numpy_are_numbers(self) -> None:
        params = SamplingParams(temperature=np.float32(0.5), max_tokens=np.int64(3), stop_token_ids=np.array([1, 2]))
        assert params == SamplingParams(temperature=0.5, max_tokens=3, stop_token_ids=(1, 2))
        assert type(params.max_tokens) is int

    def test_stop_may_be_one_string(self) -> None:
        assert SamplingParams(stop="ab").stop == ("ab",)
        assert SamplingParams(stop=["ab", "c"]).stop == ("ab", "c")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", 10**400),
            ("top_p", 0), ("top_p", 0.0), ("top_p", 1.01), ("top_p", math.nan), ("top_p", -1),
            ("top_k", -1), ("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan),
            ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", math.nan),
            ("repetition_window", -1), ("presence_penalty", math.nan), ("presence_penalty", math.inf),
            ("frequency_penalty", math.nan), ("max_tokens", -1), ("stop", ""), ("stop", ["a", ""]),
            ("stop_token_ids", [-1]), ("logprobs", -1), ("seed", -1), ("seed", 2**64),
            ("logit_bias", {-1: 1.0}), ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}),
        ],
    )  # fmt: skip
    def test_out_of_range_is_named(self, name: str, value: object) -> None:
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: value})
        with pytest.raises(ValueError, match=name):
            SamplingParams.of(SamplingParams(), **{name: value})

    def test_limits_are_in_range(self) -> None:
        SamplingParams(
            temperature=0, top_p=1, min_p=1, top_k=0, max_tokens=0, logprobs=0, seed=2**64 - 1, repetition_window=0,
            logit_bias={0: -math.inf, 1: 5},
        )  # fmt: skip
        SamplingParams(max_tokens=None, seed=0, min_p=0)

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("max_new_tokens", "max_tokens"), ("repeat_penalty", "repetition_penalty"), ("temp", "temperature"),
            ("top_pp", "top_p"), ("stops", "stop"), ("presence_penality", "presence_penalty"),
        ],
    )  # fmt: skip
    def test_unknown_names_suggest_the_right_one(self, wrong: str, right: str) -> None:
        for make in (SamplingParams, lambda **kw: SamplingParams.of(SamplingParams(), **kw)):
            with pytest.raises(TypeError, match=f"{wrong}.*did you mean '{right}'"):
                make(**{wrong: 1})

    def test_unknown_names_without_a_likeness_list_all(self) -> None:
        with pytest.raises(TypeError, match=r"there are temperature, top_p, .*logits_processors"):
            SamplingParams.of(None, zzz=1)

    def test_of(self) -> None:
        params = SamplingParams(top_k=3)
        assert SamplingParams.of(params) is params
        assert SamplingParams.of(params, seed=1) == SamplingParams(top_k=3, seed=1)
        assert SamplingParams.of(None, seed=1) == SamplingParams(seed=1)
        with pytest.raises(TypeError, match="SamplingParams, not dict"):
            SamplingParams.of({"top_k": 3})  # type: ignore[arg-type]


class TestGreedy:
    def test_lowest_id_of_equals(self) -> None:
        assert sample(LOGITS, temperature=0) == 1
        assert sample([-math.pi] * 9, temperature=0) == 0

    def test_takes_no_random_numbers_and_ignores_cuts(self) -> None:
        assert {sample(LOGITS, temperature=0, seed=s, top_k=2, top_p=0.1, min_p=1.0) for s in range(20)} == {1}

    def test_after_penalties_and_bias(self) -> None:
        assert sample(LOGITS, temperature=0, logit_bias={4: 10}) == 4
        assert sample(LOGITS, prompt=[1], temperature=0, repetition_penalty=1.5) == 3


class TestTemperature:
    def test_low_is_nearly_greedy(self) -> None:
        for temperature in (1e-3, 1e-30, 1e-300, 5e-324):
            assert support(LOGITS, 50, temperature=temperature) == {1, 3}

    def test_high_is_nearly_uniform(self) -> None:
        assert support(LOGITS, temperature=1e300) == set(range(6))

    def test_frequencies_follow_the_softmax(self) -> None:
        logits = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
        sampler = Sampler(SamplingParams(temperature=0.7, top_p=1), 11)
        n = 20_000
        counts = Counter(sampler.sample(logits, [0], 1) for _ in range(n))
        expected = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
        for token_id, p in enumerate(expected):
            assert abs(counts[token_id] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


class TestTopK:
    def test_keeps_the_largest(self) -> None:
        assert support([5, 4, 3, 2, 1], top_k=2, temperature=10) == {0, 1}

    def test_ties_go_to_lower_ids(self) -> None:
        assert support([1, 2, 2, 2, 0], top_k=2, temperature=10) == {1, 2}
        assert support([7] * 6, top_k=3) == {0, 1, 2}
        assert support([1, 2, 2, 2, 0], top_k=1) == {1}

    def test_zero_and_more_than_the_vocabulary_are_off(self) -> None:
        for k in (0, 6, 7, 10**30):
            assert support(LOGITS, top_k=k, temperature=100) == set(range(6))


class TestTopP:
    def test_keeps_what_reaches_the_mass(self) -> None:
        probabilities = np.log([0.5, 0.3, 0.15, 0.05])
        assert support(probabilities, top_p=0.49) == {0}
        assert support(probabilities, top_p=0.6) == {0, 1}
        assert support(probabilities, top_p=0.81) == {0, 1, 2}
        assert support(probabilities, top_p=0.96) == {0, 1, 2, 3}

    def test_at_least_one_stays(self) -> None:
        assert support(LOGITS[[0, 1, 2]], top_p=1e-300) == {1}

    def test_a_token_is_dropped_when_the_mass_before_it_exceeds_p(self) -> None:
        # Equal logits: masses before are 0, 1/4, 1/2, 3/4 exactly; 1/2 does not exceed 1/2.
        assert support([3, 3, 3, 3], top_p=0.5) == {0, 1, 2}
        assert support([3, 3, 3, 3], top_p=0.499) == {0, 1}
        assert support([3, 3], top_p=0.5) == {0, 1}

    def test_ties_go_to_lower_ids(self) -> None:
        assert support([0, 9, 9, 9, 9, 0], top_p=0.45, temperature=0.5) == {1, 2}

    def test_one_is_off(self) -> None:
        assert support([0.0, 3.0], top_p=1.0) == {0, 1}

    def test_is_renormalised_after_top_k(self) -> None:
        # Of [0.4 0.3 0.3], 0.4 is the mass before the second; after top_k=2 it is 4/7 = 0.571.
        logits = np.log([0.4, 0.3, 0.3])
        assert support(logits, top_p=0.5) == {0, 1}
        assert support(logits, top_p=0.5, top_k=2) == {0}

    def test_acts_after_the_temperature(self) -> None:
        logits = np.log([0.5, 0.3, 0.2])
        assert support(logits, top_p=0.55) == {0, 1}
        assert support(logits, top_p=0.55, temperature=0.5) == {0}  # 25 / 38 = 0.66


class TestMinP:
    def test_is_relative_to_the_largest(self) -> None:
        logits = np.log([0.5, 0.26, 0.24])
        assert support(logits, min_p=0.5) == {0, 1}
        assert support(logits, min_p=0.1) == {0, 1, 2}

    def test_one_keeps_the_largest_and_its_equals(self) -> None:
        assert support(LOGITS, min_p=1) == {1, 3}

    def test_acts_after_top_p(self) -> None:
        logits = np.log([0.5, 0.3, 0.2])
        assert support(logits, top_p=0.6, min_p=0.3) == {0, 1}
        assert support(logits, top_p=0.9, min_p=0.5) == {0, 1}


class TestPenalties:
    def test_repetition_divides_positive_and_multiplies_negative(self) -> None:
        # Prompt and generated tokens; each once, however often it occurs.
        params = {"repetition_penalty": 2.0, "temperature": 0}
        assert sample([2.0, 1.1, 0.0], prompt=[0, 0], generated=[0], **params) == 1
        assert sample([2.0, 0.9, 0.0], prompt=[0, 0], generated=[0], **params) == 0
        assert sample([-1.0, -1.9], prompt=[0], **params) == 1
        assert sample([-1.0, -2.1], prompt=[0], **params) == 0

    def test_repetition_counts_within_the_window(self) -> None:
        logits = [2.0, 1.9, 1.8]
        for window, expected in ((0, 0), (1, 0), (2, 0), (3, 1), (64, 1)):
            result = sample(
                logits, prompt=[0], generated=[2, 2], temperature=0, repetition_penalty=9, repetition_window=window
            )
            assert result == expected, window

    def test_presence_and_frequency_count_generated_tokens_only(self) -> None:
        logits = [2.0, 1.0]
        assert sample(logits, prompt=[0, 0, 0], temperature=0, presence_penalty=5, frequency_penalty=5) == 0
        assert sample(logits, generated=[0], temperature=0, presence_penalty=1.5) == 1
        assert sample(logits, generated=[0, 0], temperature=0, presence_penalty=0.9) == 0
        assert sample(logits, generated=[0], temperature=0, frequency_penalty=0.6) == 0
        assert sample(logits, generated=[0, 0], temperature=0, frequency_penalty=0.6) == 1
        assert sample(logits, generated=[1, 1], temperature=0, frequency_penalty=-0.6) == 1

    def test_order_penalties_then_bias_then_temperature(self) -> None:
        # (4 / 2) + 1 = 3 against 3.1; were the bias first, (4 + 1) / 2 = 2.5 against 2.6.
        assert sample([4, 3.1], prompt=[0], temperature=0, repetition_penalty=2, logit_bias={0: 1}) == 1
        assert sample([4, 2.9], prompt=[0], temperature=0, repetition_penalty=2, logit_bias={0: 1}) == 0
        # A bias of 1 at temperature 0.01 is one of 100.
        assert support([0, 0], temperature=0.01, logit_bias={1: 1}) == {1}

    def test_extreme_penalties_raise_no_warning(self) -> None:
        assert sample([1, -1], prompt=[0, 1], temperature=0, repetition_penalty=1e300) == 0
        assert sample([1, -1], prompt=[0], temperature=0, repetition_penalty=1e300, generated=[0]) == 0
        assert sample([1, 0.5], generated=[0], temperature=0, presence_penalty=1e300) == 1
        with pytest.raises(NumericalError, match="no token can follow position 1"):
            sample([1, 0.5], generated=[0], temperature=0, presence_penalty=-1e300)


class TestProcessors:
    def test_see_raw_logits_and_all_ids_in_order(self) -> None:
        calls: list[tuple[str, list[int], list[float]]] = []

        def first(ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            calls.append(("first", ids, logits.tolist()))
            return logits + 1

        def second(ids: list[int], logits: NDArray[np.float32]) -> None:
            calls.append(("second", ids, logits.tolist()))
            logits[2] = 99
            ids.clear()

        raw = LOGITS.copy()
        result = sample(
            raw, prompt=[1, 2], generated=[3], temperature=0, logits_processors=(first, second), repetition_penalty=2
        )
        assert result == 2
        assert calls[0] == ("first", [1, 2, 3], LOGITS.tolist())
        assert calls[1][2] == (LOGITS + 1).tolist() and len(calls) == 2
        assert np.array_equal(raw, LOGITS)

    def test_may_return_a_list_or_its_own_array(self) -> None:
        own = np.array([0, 5.0, 0])
        params: dict[str, Any] = {"temperature": 0, "logits_processors": [lambda i, x: own], "logit_bias": {0: 9}}
        assert sample([1, 2, 3], **params) == 0
        assert own.tolist() == [0, 5, 0]
        assert sample([1, 2, 3], temperature=0, logits_processors=[lambda i, x: [9, 0, 0]]) == 0

    def test_a_wrong_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
            sample([1, 2, 3], logits_processors=[lambda i, x: x[:2]])

    def test_exceptions_reach_the_caller(self) -> None:
        def broken(ids: list[int], logits: NDArray[np.float32]) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            sample(LOGITS, logits_processors=[broken])


class TestNumbers:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("temperature", [0, 1])
    def test_raw_logits_must_be_finite(self, bad: float, temperature: float) -> None:
        with pytest.raises(NumericalError, match="position 2"):
            sample([0, bad, 1], prompt=[0, 1], generated=[2], temperature=temperature)

    def test_minus_infinity_forbids(self) -> None:
        assert support(LOGITS, logit_bias={1: -math.inf, 3: -math.inf}, temperature=9) == {0, 2, 4, 5}
        assert support(LOGITS, top_k=5, logit_bias=dict.fromkeys(range(1, 6), -math.inf)) == {0}

        def only_two(ids: list[int], logits: NDArray[np.float32]) -> None:
            logits[np.arange(6) != 2] = -np.inf

        assert support(LOGITS, logits_processors=[only_two]) == {2}
        assert sample(LOGITS, logits_processors=[only_two], prompt=[0, 1], repetition_penalty=3, temperature=0) == 2

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_a_processor_spoils_is_an_error(self, bad: float) -> None:
        def spoil(ids: list[int], logits: NDArray[np.float32]) -> None:
            logits[1] = bad

        with pytest.raises(NumericalError, match=r"position 0.*logits_processors"):
            sample(LOGITS, logits_processors=[spoil])

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_nothing_left_is_an_error(self, temperature: float) -> None:
        with pytest.raises(NumericalError, match="position 0"):
            sample([1, 2], logit_bias={0: -math.inf, 1: -math.inf}, temperature=temperature)


class TestSeeds:
    def test_the_same_seed_repeats_and_others_do_not(self) -> None:
        def run(seed: int | None) -> list[int]:
            sampler = Sampler(SamplingParams(temperature=2, top_p=1), seed)
            return [sampler.sample(LOGITS, [0], 1) for _ in range(50)]

        assert run(3) == run(3)
        assert run(3) != run(4)
        assert run(2**64 - 1) != run(0)
        assert run(None) != run(None)

    def test_known_draws(self) -> None:
        """Python promises that a seed gives the same random() on every version and machine."""
        sampler = Sampler(SamplingParams(temperature=1, top_p=1), 42)
        uniform = np.zeros(1000, np.float32)
        assert [sampler.sample(uniform, [0], 1) for _ in range(5)] == [639, 25, 275, 223, 736]

    def test_samplers_do_not_share_numbers(self) -> None:
        alone = Sampler(SamplingParams(temperature=2), 5)
        expected = [alone.sample(LOGITS, [0], 1) for _ in range(20)]
        a, b = Sampler(SamplingParams(temperature=2), 5), Sampler(SamplingParams(temperature=2), 6)
        result = []
        for _ in range(20):
            b.sample(LOGITS, [0], 1)
            result.append(a.sample(LOGITS, [0], 1))
        assert result == expected


def plain_support(logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The same tokens by sorting, as the definitions say."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    kept, before = [], 0.0
    for token_id, weight in zip(order, weights, strict=True):
        if before <= top_p * weights.sum():
            kept.append((token_id, weight))
        before += weight
    return {token_id for token_id, weight in kept if weight >= min_p and weight > 0}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=40),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 12),
    st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_the_support_is_that_of_the_definition(
    values: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.asarray(values, np.float32) / 2
    expected = plain_support(logits, temperature, top_k, top_p, min_p)
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), 0)
    result = set()
    for i in range(200):  # quantiles instead of chance: every token with 0.5% is hit
        sampler._random.random = lambda i=i: (i + 0.5) / 200  # type: ignore[method-assign, misc]
        result.add(sampler.sample(logits, [0], 1))
    assert result <= expected
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    mass = sum(weights[token_id] for token_id in expected)
    assert {token_id for token_id in expected if weights[token_id] > 0.0051 * mass} <= result


@pytest.mark.slow
def test_a_large_vocabulary_with_all_cuts_at_once() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.01, 4.0):
        logits = (rng.standard_normal(49_152) * scale).astype(np.float32)
        for top_p in (0.1, 0.99):
            expected = plain_support(logits, 0.8, 0, top_p, 0.001)
            sampler = Sampler(SamplingParams(temperature=0.8, top_p=top_p, min_p=0.001), 0)
            for u in (0.0, 0.3, 0.999, 1 - 2**-53):
                sampler._random.random = lambda u=u: u  # type: ignore[method-assign, misc]
                assert sampler.sample(logits, [0], 1) in expected


@given(st.lists(st.integers(-4, 4), max_size=30), st.integers(0, 40))
def test_largest_is_a_stable_sort(values: list[int], n: int) -> None:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert largest(np.asarray(values, np.float32), n).tolist() == order[:n]


@settings(deadline=None)
@given(st.lists(st.floats(-200, 1000, width=32), min_size=1, max_size=300))
def test_log_probabilities(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    result = log_probabilities_of(logits, range(len(logits)))
    assert np.allclose(result, log_probabilities(logits), rtol=1e-12, atol=1e-12)
