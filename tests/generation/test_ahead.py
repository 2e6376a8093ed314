"""Steps that the device begins before the texts have their tokens: the same texts, and nothing of what was too much."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.forced_signals import at_each_line
from helpers.going_ahead import GoingAhead
from helpers.scheduling import Watched, alone, in_threads
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, PROMPTS, same, write_tiny

from pyllama2 import ClosedError, Completion, Llama, NumericalError
from pyllama2._cpu import CpuBackend
from pyllama2.backend.base import Batch
from pyllama2.generation import ahead, prefix_cache
from pyllama2.sampling.params import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 3, "ignore_eos": True}
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0, "ignore_eos": True},
    {"temperature": 1.2, "seed": 1},  # some end by themselves
    {"temperature": 0.9, "seed": 2, "top_k": 20, "min_p": 0.01, "top_p": 1.0, "ignore_eos": True},
    {"temperature": 1.0, "seed": 5, "stop": ["e", "th"]},
]


@pytest.fixture
def going_ahead(monkeypatch: pytest.MonkeyPatch) -> GoingAhead:
    """Every CpuBackend samples and goes ahead."""
    found = GoingAhead()
    monkeypatch.setattr(CpuBackend, "goes_ahead", True)
    monkeypatch.setattr(CpuBackend, "sample", lambda *arguments: found.sample(*arguments))
    return found


def plain(path: Path, ask: Callable[[Llama], Any], **more: Any) -> Any:
    """What ask gives where nothing is ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead.StepAhead, "_following", lambda *_: None)
        with Llama(path, **more) as llm:
            return ask(llm)


def both_ways(path: Path, going_ahead: GoingAhead, ask: Callable[[Llama], list[Completion]], **more: Any) -> None:
    """Check that ask gives the same when the device goes ahead. Only what it does then is in going_ahead afterwards."""
    expected = plain(path, ask, **more)
    assert going_ahead.begun == 0
    going_ahead.steps.clear()
    with Llama(path, **more) as llm:
        assert all(map(same, ask(llm), expected))
    assert going_ahead.begun > 0


class TestTexts:
    @pytest.mark.parametrize("sampling", SETTINGS, ids=str)
    @pytest.mark.parametrize("n", [1, 2, 5, 8])
    def test_together(self, long_path: Path, going_ahead: GoingAhead, n: int, sampling: dict[str, Any]) -> None:
        prompts = [PROMPTS[i % 4] + " a" * (i // 4) for i in range(n)]

        def ask(llm: Llama) -> list[Completion]:
            first = llm.generate(prompts, max_tokens=40, **sampling)
            again = [llm.generate([1, 7, 8, *text.token_ids, 9], max_tokens=5, **sampling) for text in first[:2]]
            return [*first, *again]

        both_ways(long_path, going_ahead, ask)

    def test_each_step_but_the_first_is_there(self, long_path: Path, going_ahead: GoingAhead) -> None:
        """And none is begun for a token that the text may not have."""
        with Llama(long_path, prompt_lookup=False) as llm:
            llm.generate([[1, 5 + i] for i in range(3)], max_tokens=20, **SAMPLED)
            assert going_ahead.steps == [6, 3, *[-3] * 18]
            assert (going_ahead.begun, going_ahead.lost) == (18, 0)
            assert not llm._scheduler._ahead._begun
        with Llama(long_path, n_ctx=12, prompt_lookup=False) as llm:
            going_ahead.steps.clear()
            assert llm.generate([1, 5], max_tokens=None, **SAMPLED).finish_reason == "length"
            assert going_ahead.steps == [2, 1, *[-1] * 8] and going_ahead.lost == 0

    def test_of_texts_of_several_lengths_the_rest_is_taken(self, long_path: Path, going_ahead: GoingAhead) -> None:
        def ask(llm: Llama) -> list[Completion]:
            streams = [llm.stream([1, 5 + i], stop=[stop], **SAMPLED) for i, stop in enumerate("abcde")]
            while sum(next(stream, None) is not None for stream in streams):
                pass
            return [stream.completion for stream in streams]

        both_ways(long_path, going_ahead, ask, prompt_lookup=False)
        assert 0 < going_ahead.lost <= 5 + 4 * 4  # one of each text that ends, and of those that pause

    def test_texts_that_roll(self, long_path: Path, going_ahead: GoingAhead) -> None:
        def ask(llm: Llama) -> list[Completion]:
            return [llm.generate(PROMPTS[0], max_tokens=150, **SAMPLED)]

        both_ways(long_path, going_ahead, ask, context="roll", n_ctx=40)

    def test_guesses_are_made_all_the_same(self, long_path: Path, going_ahead: GoingAhead) -> None:
        def ask(llm: Llama) -> list[Completion]:
            return [llm.generate([1, 5], max_tokens=300, temperature=0, ignore_eos=True)]

        both_ways(long_path, going_ahead, ask)
        with Llama(long_path) as llm:
            assert ask(llm)[0].timings.guesses_true > 10

    def test_what_is_in_the_rows(self, long_path: Path, going_ahead: GoingAhead) -> None:
        """The prompt and the tokens that were fed: no more, whatever the device has computed."""
        with Llama(long_path, prompt_lookup=False) as llm:
            found = llm.generate([1, 5, 6], stop=["e"], max_tokens=200, **SAMPLED)
            assert found.finish_reason == "stop" and going_ahead.lost == 0
            (row,) = (row for row in llm._scheduler._rows.rows if row.ids)
            assert row.ids == [1, 5, 6, *found.token_ids][: len(row.ids)]
            assert len(row.ids) == 2 + found.usage.completion_tokens
            more = llm.generate([*row.ids, 9], max_tokens=10, **SAMPLED)
            assert going_ahead.lost == 1 and more.usage.cached_tokens == len(row.ids) - 10
        assert same(more, alone(long_path, [*[1, 5, 6, *found.token_ids][: 2 + found.usage.completion_tokens], 9],
                                max_tokens=10, **SAMPLED))  # fmt: skip


class TestWhenItIsNot:
    @pytest.mark.parametrize(
        "more", [{"logprobs": 1}, {"repetition_penalty": 1.1}, {"logit_bias": {3: 1}}, {"regex": "[a-z ]+"},
                 {"logits_processors": [lambda ids, logits: None]}],
    )  # fmt: skip
    def test_texts_that_need_logits(self, long_path: Path, going_ahead: GoingAhead, more: dict[str, Any]) -> None:
        if "regex" in more:
            pytest.importorskip("llguidance")
        with Llama(long_path) as llm:
            other = llm.stream([1, 5], **SAMPLED)
            list(zip(llm.stream([1, 6], max_tokens=10, **SAMPLED | more), other, strict=False))
        assert going_ahead.begun <= 1 and going_ahead.lost <= 1

    def test_with_a_draft(self, long_path: Path, going_ahead: GoingAhead) -> None:
        with Llama(long_path, draft="self") as llm:
            assert llm.generate([1, 5], max_tokens=30, **SAMPLED).timings.guesses > 0
        assert going_ahead.begun == 0

    def test_more_texts_than_it_samples(self, long_path: Path, going_ahead: GoingAhead) -> None:
        with Llama(long_path) as llm:
            llm.generate([[1, 5 + i] for i in range(9)], max_tokens=10, **SAMPLED)
        assert going_ahead.begun == 0

    def test_a_backend_that_cannot(self, fresh: Llama) -> None:
        watched = Watched(fresh)
        fresh.generate([1, 5], max_tokens=10, **SAMPLED)
        assert not fresh._scheduler._ahead._wanted and len(watched.batches) <= 10


class TestOthers:
    """Texts that come, wait, pause and go."""

    def test_one_that_comes_waits_for_the_step_that_was_begun(self, long_path: Path, going_ahead: GoingAhead) -> None:
        with Llama(long_path, prompt_lookup=False) as llm:
            first = llm.stream([1, 5], max_tokens=30, **SAMPLED)
            for _ in range(3):
                next(first)
            second = llm.generate([1, 6, 7, 8], max_tokens=3, **SAMPLED)
            assert going_ahead.steps == [2, 1, -1, -1, 5, 2, -2]
            assert going_ahead.lost == 0
            for _ in first:
                pass
        assert same(first.completion, alone(long_path, [1, 5], max_tokens=30, **SAMPLED))
        assert same(second, alone(long_path, [1, 6, 7, 8], max_tokens=3, **SAMPLED))

    def test_a_text_that_pauses_does_not_hold_the_others_back(self, long_path: Path, going_ahead: GoingAhead) -> None:
        with Llama(long_path, prompt_lookup=False) as llm:
            idle = llm.stream([1, 5], max_tokens=40, **SAMPLED)
            next(idle)
            busy = llm.generate([1, 6], max_tokens=40, **SAMPLED)
            assert going_ahead.steps[-30:] == [-1] * 30
            for _ in idle:
                pass
        assert same(idle.completion, alone(long_path, [1, 5], max_tokens=40, **SAMPLED))
        assert same(busy, alone(long_path, [1, 6], max_tokens=40, **SAMPLED))

    def test_texts_that_wait_in_vain(
        self, long_path: Path, going_ahead: GoingAhead, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There are two rows. What waits for one has it as soon as a text ends, and until then steps are begun."""
        monkeypatch.setattr(prefix_cache, "MAX_ROWS", 2)
        monkeypatch.setattr(prefix_cache, "_KEPT_ROWS", 1)
        prompts = [[1, 5 + i, 9] for i in range(4)]
        params = [SamplingParams(**SAMPLED, max_tokens=n) for n in (12, 5, 9, 4)]
        with Llama(long_path, prompt_lookup=False) as llm:
            found = llm.generate(prompts, params)
            steps = list(going_ahead.steps)
        # prompts of three tokens, two at first, then one beside the token of the text that goes on
        assert steps == [6, 2, *[-2] * 3, 4, 2, *[-2] * 5, 4, 2, 1, -1] and going_ahead.lost == 0
        for prompt, one, text in zip(prompts, params, found, strict=True):
            with Llama(long_path) as llm:
                assert same(text, llm.generate(prompt, one))

    def test_a_text_that_is_closed(self, long_path: Path, going_ahead: GoingAhead) -> None:
        with Llama(long_path, prompt_lookup=False) as llm:
            closed, stays = (llm.stream([1, 5 + i], max_tokens=30, **SAMPLED) for i in range(2))
            for _ in range(5):
                next(closed), next(stays)
            closed.close()
            for _ in stays:
                pass
            assert going_ahead.lost == 1
            again = llm.generate([1, 5], max_tokens=30, **SAMPLED)
        assert same(stays.completion, alone(long_path, [1, 6], max_tokens=30, **SAMPLED))
        assert same(again, alone(long_path, [1, 5], max_tokens=30, **SAMPLED))
        assert closed.completion.token_ids == again.token_ids[:5]

    def test_threads(self, long_path: Path, going_ahead: GoingAhead) -> None:
        sampling = [SAMPLED | {"seed": i, "max_tokens": 10 + 7 * i} for i in range(6)]
        with Llama(long_path) as llm:
            found = in_threads(*(lambda i=i: llm.generate([1, 5 + i], **sampling[i]) for i in range(6)))
        assert all(same(found[i], alone(long_path, [1, 5 + i], **sampling[i])) for i in range(6))


class TestFaults:
    def test_numbers_that_are_not_finite(self, tmp_path: Path, going_ahead: GoingAhead) -> None:
        """They end the one text whose token makes them."""
        weights = random_weights(CONFIG)
        path = write_tiny(tmp_path / "good.bin", weights=weights)
        good = alone(path, [1, 5], max_tokens=30, **SAMPLED)
        token = next(t for t in good.token_ids[5:] if t not in good.token_ids[:5])
        weights["tok_embeddings.weight"][token] = np.nan
        with Llama(write_tiny(tmp_path / "nan.bin", weights=weights), prompt_lookup=False) as llm:
            stream = llm.stream([1, 5], max_tokens=30, **SAMPLED)
            with pytest.raises(NumericalError):
                list(stream)
        taken = stream.completion.token_ids
        assert taken == good.token_ids[: good.token_ids.index(token) + 1] and going_ahead.taken > 0

    @pytest.mark.parametrize("error", [MemoryError("no more"), KeyboardInterrupt(), RuntimeError("lost")])
    def test_a_step_that_fails(self, long_path: Path, going_ahead: GoingAhead, error: BaseException) -> None:
        armed = False

        def fail(batch: Batch) -> None:
            if armed:
                raise error

        with Llama(long_path, prompt_lookup=False) as llm:
            other, begun = (llm.stream([1, 5 + i], max_tokens=20, **SAMPLED) for i in range(2))
            next(other), next(begun)
            next(begun)
            Watched(llm, fail)
            armed = True
            with pytest.raises(type(error)):
                list(begun)
            armed = False
            for _ in other:
                pass
        assert same(other.completion, alone(long_path, [1, 5], max_tokens=20, **SAMPLED))

    def test_closing(self, long_path: Path, going_ahead: GoingAhead) -> None:
        llm = Llama(long_path)
        stream = llm.stream([1, 5], **SAMPLED)
        for _ in range(5):
            next(stream)
        llm.close()
        with pytest.raises(ClosedError, match="this Llama is closed"):
            next(stream)
        assert not llm._scheduler._ahead._begun

    @pytest.mark.slow
    def test_ctrl_c_at_any_moment(self, long_path: Path, going_ahead: GoingAhead) -> None:
        expected = alone(long_path, [1, 5], max_tokens=8, **SAMPLED)
        with Llama(long_path, prompt_lookup=False) as llm:

            def ask() -> None:
                nonlocal other
                other = llm.stream([1, 5], max_tokens=8, **SAMPLED)
                next(other)
                llm.generate([1, 6], max_tokens=4, **SAMPLED)

            other = llm.stream([1, 5], max_tokens=8, **SAMPLED)
            for raised in at_each_line(ask, {ahead.__file__}, step=3):
                assert raised is None or isinstance(raised, KeyboardInterrupt)
                if other.completion.usage.completion_tokens:
                    for _ in other:
                        pass
                    assert same(other.completion, expected) or isinstance(raised, KeyboardInterrupt)
            assert same(llm.generate([1, 5], max_tokens=8, **SAMPLED), expected)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
