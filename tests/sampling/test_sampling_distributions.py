"""How often the sampler draws each token, against exact probabilities, for every step alone and in their order.

The probabilities come from a plain definition below, which shares nothing with the sampler. Seeds are fixed, so a test
either always passes or always fails; chi-square's limit is one that a right sampler exceeds once in 2,000 times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llama import PROMPT

from pyllama2 import Llama, SamplingParams
from pyllama2.sampling.sampler import Sampler

N_DRAWS = 8_000
ORDER = ("penalties", "logit_bias", "temperature", "top_k", "top_p", "min_p")
# Close to each other at the top, of both signs, and with a tail, as in a small vocabulary.
LOGITS = [2.1, 1.9, -0.4, 1.2, 0.3, 1.9, -1.5, 0.9, -0.2, 1.4, -3.0, 0.6]
PROMPT_IDS, GENERATED = [0, 3, 3, 8], [1, 9, 1, 6, 1]


def softmax(values: dict[int, float]) -> dict[int, float]:
    highest = max(values.values())
    weights = {token_id: math.exp(value - highest) for token_id, value in values.items()}
    return {token_id: weight / sum(weights.values()) for token_id, weight in weights.items()}


def exact(
    logits: Sequence[float],
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    order: Sequence[str] = ORDER,
    **params: Any,
) -> dict[int, float]:
    """The probability of each token that can be drawn: one step after the other as the documentation says."""
    p = {**vars(SamplingParams(temperature=1.0, top_p=1.0)), **params}
    values = dict(enumerate(map(float, logits)))
    for step in order:
        likeliest_first = sorted(values, key=lambda token_id: (-values[token_id], token_id))
        probabilities = softmax(values)
        if step == "penalties":
            both = [*prompt, *generated]
            for token_id in set(both[max(0, len(both) - p["repetition_window"]) :]) & set(values):
                penalty = p["repetition_penalty"]
                values[token_id] = values[token_id] / penalty if values[token_id] > 0 else values[token_id] * penalty
            for token_id in set(generated) & set(values):
                values[token_id] -= p["presence_penalty"]
                values[token_id] -= p["frequency_penalty"] * list(generated).count(token_id)
        elif step == "logit_bias":
            for token_id, bias in (p["logit_bias"] or {}).items():
                values[token_id] = values.get(token_id, -math.inf) + bias
        elif step == "temperature":
            values = {token_id: value / p["temperature"] for token_id, value in values.items()}
        elif step == "top_k" and p["top_k"] > 0:
            values = {token_id: values[token_id] for token_id in likeliest_first[: p["top_k"]]}
        elif step == "top_p":
            before, kept = 0.0, {}
            for token_id in likeliest_first:
                if before <= p["top_p"]:
                    kept[token_id] = values[token_id]
                before += probabilities[token_id]
            values = kept
        elif step == "min_p":
            least = p["min_p"] * max(probabilities.values())
            values = {token_id: value for token_id, value in values.items() if probabilities[token_id] >= least}
    return {token_id: probability for token_id, probability in softmax(values).items() if probability > 0}


def draw(
    logits: Sequence[float], prompt: Sequence[int], generated: Sequence[int], seed: int, **params: Any
) -> Counter[int]:
    params = {"temperature": 1.0, "top_p": 1.0} | params
    sampler = Sampler(SamplingParams(**params), seed)
    array = np.asarray(logits, np.float32)
    ids = [*prompt, *generated]
    return Counter(sampler.sample(array, ids, len(prompt)) for _ in range(N_DRAWS))


def chi_square(counts: Counter[int], expected: dict[int, float]) -> tuple[float, float]:
    """The statistic and its limit. Tokens that are expected less than 5 times count as one."""
    if not set(counts) <= set(expected):
        return math.inf, 0.0
    n = sum(counts.values())
    cells = [(counts[token_id], n * p) for token_id, p in expected.items() if n * p >= 5]
    rest = [(counts[token_id], n * p) for token_id, p in expected.items() if n * p < 5]
    if rest:
        cells.append((sum(result for result, _ in rest), sum(wanted for _, wanted in rest)))
    statistic = sum((result - wanted) ** 2 / wanted for result, wanted in cells)
    k = len(cells) - 1
    if k == 0:
        return statistic, 1e-9
    # Wilson and Hilferty's approximation of the quantile at 1 - 1/2000, whose normal deviate is 3.29.
    return statistic, k * (1 - 2 / (9 * k) + 3.29 * math.sqrt(2 / (9 * k))) ** 3


def agrees(counts: Counter[int], expected: dict[int, float]) -> bool:
    statistic, limit = chi_square(counts, expected)
    return statistic <= limit


ALONE: list[dict[str, Any]] = [
    {}, {"temperature": 0.3}, {"temperature": 0.6}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 2}, {"top_k": 5},
    {"top_k": 12}, {"top_p": 0.05}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.99}, {"min_p": 0.1}, {"min_p": 0.7},
    {"min_p": 1.0}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7},
    {"repetition_penalty": 1.5, "repetition_window": 3}, {"repetition_penalty": 1.5, "repetition_window": 7},
    {"repetition_penalty": 9.0, "repetition_window": 0}, {"presence_penalty": 0.8}, {"presence_penalty": -0.8},
    {"frequency_penalty": 0.5}, {"frequency_penalty": -0.3}, {"logit_bias": {2: 1.5, 0: -1.0}},
    {"logit_bias": {0: -math.inf, 5: -math.inf}},
]  # fmt: skip
TOGETHER: list[dict[str, Any]] = [
    {"temperature": 0.6, "top_p": 0.9},  # the defaults
    {"temperature": 1.6, "top_k": 6},
    {"top_k": 4, "top_p": 0.6},
    {"top_k": 6, "min_p": 0.5},
    {"temperature": 2.0, "top_p": 0.8, "min_p": 0.6},
    {"presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_window": 6},
    {"repetition_penalty": 2.0, "logit_bias": {1: 1.2, 3: 0.4, 6: 1.5}},
    {"temperature": 0.5, "logit_bias": {10: 3.0, 2: 1.0}},
    {"repetition_penalty": 1.2, "top_k": 5, "temperature": 1.5},
    {
        "repetition_penalty": 1.3, "presence_penalty": 0.3, "frequency_penalty": 0.1, "logit_bias": {4: 0.7, 1: 0.5},
        "temperature": 1.4, "top_k": 9, "top_p": 0.85, "min_p": 0.3,
    },
]  # fmt: skip


def name(params: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in params.items()) or "none"


@pytest.mark.slow
@pytest.mark.parametrize("params", ALONE + TOGETHER, ids=name)
def test_draws_follow_the_definition(params: dict[str, Any]) -> None:
    counts = draw(LOGITS, PROMPT_IDS, GENERATED, seed=17, **params)
    assert agrees(counts, exact(LOGITS, PROMPT_IDS, GENERATED, **params))


@pytest.mark.parametrize(
    ("params", "order"),
    [
        # The bias before the penalties; the cuts before the temperature; the nucleus of all tokens; min_p before top_p.
        ({"repetition_penalty": 2.0, "logit_bias": {1: 1.2, 3: 0.4, 6: 1.5}}, ("logit_bias", "penalties")),
        ({"temperature": 2.0, "top_p": 0.8}, ("top_p", "temperature")),
        ({"temperature": 2.0, "min_p": 0.6}, ("min_p", "temperature")),
        ({"top_k": 4, "top_p": 0.6}, ("top_p", "top_k")),
        ({"top_p": 0.8, "min_p": 0.45}, ("min_p", "top_p")),
        ({"temperature": 0.5, "logit_bias": {10: 3.0, 2: 1.0}}, ("temperature", "logit_bias")),
        ({"top_k": 2, "repetition_penalty": 3.0}, ("top_k", "penalties")),
    ],
    ids=lambda value: name(value) if isinstance(value, dict) else " ".join(value),
)
def test_another_order_would_be_noticed(params: dict[str, Any], order: tuple[str, ...]) -> None:
    counts = draw(LOGITS, PROMPT_IDS, GENERATED, seed=17, **params)
    assert agrees(counts, exact(LOGITS, PROMPT_IDS, GENERATED, **params))
    swapped = [*ORDER]
    places = sorted(swapped.index(step) for step in order)
    for place, step in zip(places, order, strict=True):
        swapped[place] = step
    assert not agrees(counts, exact(LOGITS, PROMPT_IDS, GENERATED, order=swapped, **params))


@pytest.mark.parametrize(
    ("params", "nearby"),
    [
        ({"temperature": 1.0}, {"temperature": 1.1}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.15}),
        ({"presence_penalty": 0.8}, {"presence_penalty": 0.6}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.65}),
        ({"logit_bias": {2: 1.5}}, {"logit_bias": {2: 1.3}}),
    ],
    ids=lambda params: name(params),
)
def test_small_faults_would_be_noticed(params: dict[str, Any], nearby: dict[str, Any]) -> None:
    counts = draw(LOGITS, PROMPT_IDS, GENERATED, seed=17, **params)
    assert not agrees(counts, exact(LOGITS, PROMPT_IDS, GENERATED, **nearby))


@pytest.mark.slow
@pytest.mark.parametrize(
    "params", [{"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 300, "top_p": 0.8}], ids=name
)
def test_in_a_large_vocabulary(params: dict[str, Any]) -> None:
    logits = (np.random.default_rng(5).standard_normal(2000) * 2).astype(np.float32)
    logits[[7, 900, 901]] = logits.max()  # equals at the top
    assert agrees(draw(logits.tolist(), [0], [], seed=17, **params), exact(logits.tolist(), [0], [], **params))


def test_a_processor_acts_before_everything_else() -> None:
    def double(ids: list[int], logits: np.ndarray) -> np.ndarray:
        return np.asarray(logits * 2 - 1)

    params: dict[str, Any] = {"repetition_penalty": 1.3, "temperature": 1.4, "top_k": 6}
    counts = draw(LOGITS, PROMPT_IDS, GENERATED, seed=17, logits_processors=[double], **params)
    assert agrees(counts, exact([2 * value - 1 for value in LOGITS], PROMPT_IDS, GENERATED, **params))
    assert not agrees(counts, exact(LOGITS, PROMPT_IDS, GENERATED, **params))


def test_draws_do_not_depend_on_the_draw_before() -> None:
    """Pairs of draws that follow each other are as likely as the product says."""
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, top_k=4), 3)
    array = np.asarray(LOGITS, np.float32)
    drawn = [sampler.sample(array, [0], 1) for _ in range(2 * N_DRAWS)]
    one = exact(LOGITS, [0], top_k=4)
    pairs = {a * 100 + b: p * q for a, p in one.items() for b, q in one.items()}
    assert agrees(Counter(a * 100 + b for a, b in zip(drawn[::2], drawn[1::2], strict=True)), pairs)


@pytest.mark.slow
def test_the_texts_of_a_list_are_drawn_independently(path: Path, one_thread: None) -> None:
    """Through the whole library: the first two tokens of many texts, each with a seed of its own."""
    params: dict[str, Any] = {"temperature": 1.3, "top_k": 3, "repetition_penalty": 1.2}
    with Llama(path, seed=4) as llm:
        ids = llm.tokenize(PROMPT)
        texts = llm.generate([ids] * 1500, max_tokens=2, ignore_eos=True, top_p=1.0, **params)
        first = exact(llm.logits(ids)[-1].tolist(), ids, [], **params)
        expected = {}
        for token, p in first.items():
            second = exact(llm.logits([*ids, token])[-1].tolist(), ids, [token], **params)
            expected |= {token * 1000 + other: p * q for other, q in second.items()}
    assert agrees(Counter(text.token_ids[0] * 1000 + text.token_ids[1] for text in texts), expected)
