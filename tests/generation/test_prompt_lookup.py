"""Prompt lookup: the same texts in fewer passes of the model, and few passes lost when its guesses are wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.scheduling import Watched
from helpers.tiny_llama import PROMPTS, same, says, write_tiny
from numpy.typing import NDArray

from pyllama2 import Completion, Llama
from pyllama2.generation.prompt_lookup import PromptLookup

pytestmark = pytest.mark.usefixtures("one_thread")
# What the model says only in circles is guessed after a round; 3 .. 12 here, and a token that breaks the circle.
CIRCLE = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("lookup") / "tiny.bin", max_seq_len=400)


def tokens_of(completion: Completion) -> tuple[list[int], str, str, Any, Any]:
    c = completion
    return c.token_ids, c.text, c.finish_reason, c.stop_reason, c.logprobs


def both_ways(path: Path, ask: Callable[[Llama], Any]) -> tuple[Any, list[int]]:
    """What ask gives, the same with prompt lookup and without, and the sizes of the batches with it."""
    with Llama(path, prompt_lookup=False) as llm:
        plain = ask(llm)
    with Llama(path) as llm:
        watched = Watched(llm)
        guessed = ask(llm)
    if isinstance(plain, Completion):
        assert same(guessed, plain)
    else:
        assert guessed == plain
    return guessed, watched.sizes


class TestGuesses:
    def test_what_followed_the_last_time(self) -> None:
        ids = [1, 5, 6, 7, 8, 9, 10, 2, 5, 6, 7, 20, 21, 3, 5, 6, 7]
        lookup = PromptLookup(ids)
        assert lookup.guess(2) == [20, 21]
        assert lookup.guess(1) == [20]
        assert lookup.guess(0) == []

    def test_nothing_for_what_has_not_appeared(self) -> None:
        ids = [1, 5, 6, 7, 8, 5, 6]
        lookup = PromptLookup(ids)
        assert lookup.guess(5) == []
        ids.append(7)
        assert lookup.guess(5)[0] == 8

    def test_texts_of_a_few_tokens(self) -> None:
        for n in range(4):
            assert PromptLookup([5] * n).guess(5) == []
        assert PromptLookup([5] * 5).guess(5) == [5]

    def test_more_at_a_time_while_they_come_true(self) -> None:
        ids = [*range(10, 200), *range(10, 20)]
        lookup = PromptLookup(ids)
        lengths = []
        for _ in range(4):
            guesses = lookup.guess(100)
            assert guesses == list(range(ids[-1] + 1, ids[-1] + 1 + len(guesses)))
            lengths.append(len(guesses))
            ids.extend([*guesses, guesses[-1] + 1])
            lookup.learn(len(guesses), len(guesses))
        assert lengths == [3, 6, 11, 11]

    def test_wrong_ones_are_rationed(self) -> None:
        """A text in circles that never goes on as it did: less than 3% of 256 passes may be lost, at 0.3 a guess."""
        draw = random.Random(1)
        ids = [draw.randrange(3) for _ in range(50)]
        lookup = PromptLookup(ids)
        wasted = 0
        for _ in range(256):
            guesses = lookup.guess(11)
            wasted += len(guesses)
            lookup.learn(len(guesses), 0)
            ids.append(draw.randrange(3))
        assert 0 < wasted * 0.3 < 0.02 * 256

    def test_true_ones_earn_more_wrong_ones(self) -> None:
        lookup = PromptLookup([5] * 10)
        while lookup.guess(3):
            lookup.learn(3, 0)
        lookup.learn(3, 3)
        assert lookup.guess(3) == [5, 5, 5][: len(lookup.guess(3))] != []


class TestTexts:
    def test_one_that_goes_in_circles_takes_few_passes(self, path: Path) -> None:
        ids = CIRCLE * 12
        text, sizes = both_ways(
            path, lambda llm: llm.generate([1, 2], max_tokens=120, ignore_eos=True, logits_processors=[says(ids, 2)])
        )
        assert text.token_ids == ids
        assert len(sizes) < 35

    @pytest.mark.slow
    @pytest.mark.parametrize("temperature", [0, 0.5, 1.5])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_same_when_sampled(self, path: Path, temperature: float, seed: int) -> None:
        """A bias keeps the model to few tokens, so that guesses come true by chance and fail by chance."""
        sampling = {"temperature": temperature, "seed": seed, "ignore_eos": True, "max_tokens": 200, "logprobs": 2}
        bias = dict.fromkeys(CIRCLE[:3], 9.0)
        tokens, sizes = both_ways(path, lambda llm: tokens_of(llm.generate([1, *CIRCLE], logit_bias=bias, **sampling)))
        assert len(tokens[0]) == 200 and max(sizes[1:]) > 1

    def test_the_same_with_penalties(self, path: Path) -> None:
        sampling = {"temperature": 0.9, "seed": 3, "ignore_eos": True, "max_tokens": 150, "repetition_penalty": 1.05}
        bias = dict.fromkeys(CIRCLE[:3], 9.0)
        both_ways(
            path,
            lambda llm: tokens_of(
                llm.generate([1, 2], logit_bias=bias, frequency_penalty=0.01, presence_penalty=0.5, **sampling)
            ),
        )

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 33, 34, 35, 36])
    def test_a_limit_ends_it_anywhere(self, path: Path, n: int) -> None:
        ids = CIRCLE * 4
        text, _ = both_ways(
            path, lambda llm: llm.generate([1, 2], max_tokens=n, logits_processors=[says(ids, 2)], ignore_eos=True)
        )
        assert text.token_ids == ids[:n] and text.usage.completion_tokens == n

    def test_the_end_of_the_context_ends_it(self, path: Path) -> None:
        text, _ = both_ways(
            path,
            lambda llm: llm.generate(
                [1, 2], max_tokens=None, logits_processors=[says(CIRCLE * 40, 2)], ignore_eos=True
            ),
        )
        assert text.finish_reason == "length" and len(text.token_ids) == 398

    def test_a_stop_id_among_true_guesses_ends_it(self, path: Path) -> None:
        ids = CIRCLE * 3
        text, _ = both_ways(
            path,
            lambda llm: llm.generate(
                [1, *CIRCLE, 13], max_tokens=30, logits_processors=[says(ids, 12)], stop_token_ids=[9], ignore_eos=True
            ),
        )
        assert text.token_ids == CIRCLE[:6] and text.stop_reason == 9 and text.usage.completion_tokens == 7

    def test_a_processor_sees_each_token_once(self, path: Path) -> None:
        ids = CIRCLE * 6
        seen: list[int] = []

        def see(token_ids: list[int], logits: NDArray[Any]) -> None:
            seen.append(len(token_ids))

        with Llama(path) as llm:
            watched = Watched(llm)
            llm.generate([1, 2], max_tokens=60, logits_processors=[see, says(ids, 2)], ignore_eos=True)
        assert seen == list(range(2, 62))
        assert len(watched.batches) < 40

    def test_a_processor_that_raises_amid_true_guesses(self, path: Path) -> None:
        def fail(token_ids: list[int], logits: NDArray[Any]) -> None:
            if len(token_ids) == 40:
                raise KeyError("at 40")

        with Llama(path) as llm:
            stream = llm.stream([1, 2], max_tokens=60, logits_processors=[says(CIRCLE * 6, 2), fail], ignore_eos=True)
            with pytest.raises(KeyError):
                for _ in stream:
                    pass
            assert stream.completion.token_ids == (CIRCLE * 4)[:38]
            again = llm.generate([1, 2], max_tokens=60, logits_processors=[says(CIRCLE * 6, 2)], ignore_eos=True)
            assert again.token_ids == CIRCLE * 6

    def test_what_follows_in_the_cache_is_right(self, path: Path) -> None:
        """After wrong guesses the next request goes on from the cache, and says what it says from an empty one."""

        def ask(llm: Llama) -> list[Any]:
            bias = dict.fromkeys(CIRCLE[:3], 9.0)
            sampling = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 60, "logit_bias": bias}
            first = llm.generate([1, *CIRCLE], seed=1, **sampling)
            longer = [1, *CIRCLE, *first.token_ids]
            second = llm.generate(longer, seed=2, **sampling)
            assert second.usage.cached_tokens >= len(longer) - 2
            return [first.token_ids, second.token_ids]

        both_ways(path, ask)

    def test_rolling_contexts(self, path: Path) -> None:
        def ask(prompt_lookup: bool) -> tuple[Any, list[int]]:
            with Llama(path, n_ctx=40, context="roll", prompt_lookup=prompt_lookup) as llm:
                watched = Watched(llm)
                bias = dict.fromkeys(CIRCLE[:2], 9.0)
                text = llm.generate(
                    [1, 2, 3], seed=1, temperature=1.0, ignore_eos=True, max_tokens=150, logit_bias=bias
                )
                return tokens_of(text), watched.sizes

        (plain, _), (guessed, sizes) = ask(False), ask(True)
        assert guessed == plain and any(1 < size < 10 for size in sizes)

    def test_together_with_others(self, path: Path) -> None:
        def ask(llm: Llama) -> list[Any]:
            bias = dict.fromkeys(CIRCLE[:3], 7.0)
            return [
                tokens_of(completion)
                for completion in llm.generate(
                    PROMPTS, seed=4, temperature=1.0, ignore_eos=True, max_tokens=80, logit_bias=bias
                )
            ]

        _, sizes = both_ways(path, ask)
        decoding = sizes[4:]
        assert max(decoding) > len(PROMPTS) and max(decoding) <= 12

    def test_none_among_many(self, path: Path) -> None:
        """From a dozen texts on, each pass has enough to do."""
        with Llama(path) as llm:
            watched = Watched(llm)
            prompts = [[1, 2 + i] for i in range(12)]
            llm.generate(prompts, max_tokens=40, temperature=0, ignore_eos=True, logit_bias={5: 100.0})
        assert set(watched.sizes[1:]) == {12}
