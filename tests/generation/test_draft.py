"""Drafts: the same texts, in fewer steps of the model, and few lost when the draft is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.scheduling import Watched
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, PROMPTS, same, write_tiny

from pyllama2 import Completion, Llama, Pyllama2Error
from pyllama2.generation import draft
from pyllama2.generation.draft import DraftModel, StepTimes
from pyllama2.generation.prefix_cache import MAX_ROWS

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLED = {"temperature": 0.9, "seed": 3, "ignore_eos": True}


@pytest.fixture(autouse=True)
def fixed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the model take a second, those of the draft a twentieth, so that tests do not depend on the machine."""
    monkeypatch.setattr(StepTimes, "of_model", lambda self, n_tokens: 1.0 + 0.02 * n_tokens)
    monkeypatch.setattr(StepTimes, "of_draft", lambda self, n_texts: 0.05)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("draft") / "tiny.bin", max_seq_len=200)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same vocabulary that says other things."""
    weights = random_weights(CONFIG, seed=1)
    return write_tiny(tmp_path_factory.mktemp("draft") / "other.bin", weights=weights, max_seq_len=64)


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path, draft="self", prompt_lookup=False) as llm:
        yield llm


def both_ways(path: Path, draft: Any, ask: Callable[[Llama], Any], **more: Any) -> tuple[Any, list[int]]:
    """What ask gives, the same with a draft and without, and the sizes of the batches with it."""
    with Llama(path, **more) as llm:
        plain = ask(llm)
    with Llama(path, draft=draft, **more) as llm:
        watched = Watched(llm)
        drafted = ask(llm)
        assert isinstance(llm._scheduler._draft, DraftModel)
        assert not any(row.in_use for row in llm._scheduler._draft._rows.rows)
    for one, two in zip(
        *([found] if isinstance(found, Completion) else found for found in (plain, drafted)), strict=True
    ):
        assert same(one, two)
    return drafted, watched.sizes


class TestTexts:
    @pytest.mark.parametrize("sampling", [{"temperature": 0}, SAMPLED, SAMPLED | {"top_k": 5, "min_p": 0.1}], ids=str)
    @pytest.mark.parametrize("lookup", [False, True])
    def test_one_text(self, path: Path, sampling: dict[str, Any], lookup: bool) -> None:
        found, sizes = both_ways(
            path, "self", lambda llm: llm.generate(PROMPTS[0], max_tokens=80, **sampling), prompt_lookup=lookup
        )
        assert found.timings.guesses_true > 10 and len(sizes) < 75

    def test_a_batch(self, path: Path) -> None:
        found, _ = both_ways(path, "self", lambda llm: llm.generate(PROMPTS, max_tokens=40, **SAMPLED))
        assert sum(text.timings.guesses_true for text in found) > 10

    def test_a_batch_of_all_kinds(self, path: Path) -> None:
        """Texts that the draft cannot sample for, beside others."""
        kinds: list[dict[str, Any]] = [
            {"temperature": 0}, SAMPLED, SAMPLED | {"repetition_penalty": 1.3}, SAMPLED | {"logprobs": 2},
            SAMPLED | {"logits_processors": (lambda ids, logits: None,)}, {"temperature": 0, "stop": "e"},
        ]  # fmt: skip

        def ask(llm: Llama) -> list[Completion]:
            streams = [llm.stream(PROMPTS[0], max_tokens=30, **kind) for kind in kinds]
            while sum(next(stream, None) is not None for stream in streams):
                pass
            return [stream.completion for stream in streams]

        found, _ = both_ways(path, "self", ask)
        assert found[1].timings.guesses > 0 and found[2].timings.guesses == 0

    def test_another_model(self, path: Path, other: Path) -> None:
        """It is never right, and soon is not asked any more; its context is shorter, too."""
        found, sizes = both_ways(
            path, other, lambda llm: llm.generate(PROMPTS[0], max_tokens=150, **SAMPLED), prompt_lookup=False
        )
        assert found.timings.guesses < 60 and len(sizes) >= 140

    def test_a_context_that_rolls(self, path: Path) -> None:
        found, _ = both_ways(
            path, "self", lambda llm: llm.generate(PROMPTS[0], max_tokens=150, **SAMPLED), context="roll", n_ctx=40
        )
        assert found.timings.guesses_true > 10

    def test_the_end_of_the_context(self, path: Path) -> None:
        found, _ = both_ways(path, "self", lambda llm: llm.generate(PROMPTS[0], max_tokens=None, **SAMPLED), n_ctx=50)
        assert found.finish_reason == "length"

    def test_a_long_prompt_and_its_cache(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The draft reads the prompt in pieces, one for each step, and what it has read stays in its cache."""
        monkeypatch.setattr(draft, "_PIECE", 32)
        prompt = [1, *(5 + i % 300 for i in range(120))]

        def ask(llm: Llama) -> list[Completion]:
            return [llm.generate(prompt + more, max_tokens=40, **SAMPLED) for more in ([], [7], [7, 8])]

        found, sizes = both_ways(path, "self", ask, prompt_lookup=False)
        assert sizes[1:4] == [1, 1, 1] and all(text.timings.guesses_true > 5 for text in found)

    def test_the_end_of_text(self, path: Path) -> None:
        found, _ = both_ways(
            path, "self", lambda llm: llm.generate(PROMPTS * 2, max_tokens=60, temperature=1.5, seed=1)
        )
        assert any(text.finish_reason == "stop" for text in found)

    @pytest.mark.parametrize("quant", ["float16", "q8"])
    def test_other_types(self, path: Path, quant: str) -> None:
        both_ways(path, "self", lambda llm: llm.generate(PROMPTS[0], max_tokens=40, **SAMPLED), quant=quant)


class TestOwnBits:
    @pytest.mark.parametrize(
        ("quant", "draft", "kind"),
        [("float32", "self", "q8"), ("float16", "self", "q8"), ("q8", "self", "q4"), ("float32", "q4", "q4"),
         ("float16", "q8", "q8"), ("q8", "q4", "q4")],
    )  # fmt: skip
    def test_which_are_taken(self, path: Path, quant: str, draft: str, kind: str) -> None:
        with Llama(path, quant=quant, draft=draft) as llm:
            assert llm._draft is not None and llm._draft.quantization.type == kind

    def test_a_large_model_takes_4(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyllama2.loading.draft.weight_bytes", lambda *args: (1 << 30) + 1)
        with Llama(path, draft="self") as llm:
            assert llm._draft is not None and llm._draft.quantization.type == "q4"

    @pytest.mark.parametrize(("quant", "draft"), [("q4", "self"), ("q4", "q4"), ("q4", "q8"), ("q8", "q8")])
    def test_no_fewer_bits(self, path: Path, quant: str, draft: str, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("WARNING"), Llama(path, quant=quant, draft=draft) as llm:
            assert llm._draft is None
        assert f"the model is {quant} already, so it cannot be its own draft" in caplog.text


class TestFaults:
    def test_numbers_that_are_not_finite(self, path: Path, tmp_path: Path) -> None:
        weights = random_weights(CONFIG)
        weights["output.weight"][:] = np.inf
        draft = write_tiny(tmp_path / "inf.bin", weights=weights)
        found, _ = both_ways(path, draft, lambda llm: llm.generate(PROMPTS[0], max_tokens=20, **SAMPLED))
        assert found.timings.guesses_true == 0

    def test_no_memory(self, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is given up with its cache, and said once."""

        def provide_row(*sizes: int) -> bool:
            raise Pyllama2Error("there is not enough memory")

        def ask(llm: Llama) -> Completion:
            if isinstance(llm._scheduler._draft, DraftModel):
                monkeypatch.setattr(llm._scheduler._draft._rows, "provide_row", provide_row)
            return llm.generate(PROMPTS[0], max_tokens=20, **SAMPLED)

        found, _ = both_ways(path, "self", ask)
        assert found.timings.guesses == 0
        assert len([r.message for r in caplog.records if "draft is left out" in r.message]) == 1

    def test_texts_that_pause_give_up_their_rows(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """More streams are read halfway than the draft has rows for; those that go on have guesses again."""
        with Llama(path, draft="self", prompt_lookup=False) as llm:
            draft = llm._scheduler._draft
            assert isinstance(draft, DraftModel)
            streams = [llm.stream(PROMPTS[0], max_tokens=60, **SAMPLED) for _ in range(MAX_ROWS + 4)]
            for stream in streams:
                for _ in range(5):
                    next(stream)
            for stream in streams:
                stream.close()
            assert not draft._broken
            draft._true_share, draft._ration = 0.9, 8.0  # which the texts above have used up
            assert llm.generate(PROMPTS[0], max_tokens=60, **SAMPLED).timings.guesses_true > 5
            assert not any(row.in_use for row in draft._rows.rows)
        assert "left out" not in caplog.text

    def test_it_is_tried_again_after_bad_texts(self, path: Path, other: Path) -> None:
        """Guesses cost 0.07 steps each. That is no more than what came true, 3 steps, and a hundredth of all steps."""
        with Llama(path, draft=other, prompt_lookup=False) as llm:
            texts = [llm.generate(PROMPTS[0], max_tokens=30, **SAMPLED).timings for _ in range(30)]
        assert max(text.guesses for text in texts[15:]) > 0
        cost, gain = 0.07 * sum(text.guesses for text in texts), sum(text.guesses_true for text in texts)
        assert cost < 3 + 0.01 * 30 * 30 + 1.01 * gain

    def test_a_row_that_no_text_gives_up(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The text has no guesses then, and the others keep theirs."""
        with Llama(path, draft="self", prompt_lookup=False) as llm:
            draft = llm._scheduler._draft
            assert isinstance(draft, DraftModel)
            monkeypatch.setattr(draft._rows, "provide_row", lambda *sizes: False)
            assert llm.generate(PROMPTS[0], max_tokens=20, **SAMPLED).timings.guesses == 0
            monkeypatch.undo()

    def test_another_vocabulary(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="vocabular"):
            Llama(path, draft=write_tiny(tmp_path / "bpe.bin", "bpe"))
        with pytest.raises(ValueError, match="vocabulary, of 350 tokens instead of 340"):
            Llama(path, draft=write_tiny(tmp_path / "large.bin", None, vocab_size=350))

    def test_four_bits_are_no_draft_of_themselves(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING), Llama(path, quant="q4", draft="self") as llm:
            assert not isinstance(llm._scheduler._draft, DraftModel)
        assert "cannot be its own draft" in caplog.text

    def test_wrong_arguments(self, path: Path) -> None:
        for value in (1, True, b"self", ["self"]):
            with pytest.raises(TypeError, match="draft"):
                Llama(path, draft=value)  # type: ignore[arg-type]


class TestTimes:
    @pytest.fixture(autouse=True)
    def fixed_times(self) -> None:
        """The real ones."""

    def test_between_and_beyond_what_was_measured(self) -> None:
        times = StepTimes()
        assert times.of_model(1) == 0
        times.add_model(1, 2.0)
        assert times.of_model(1) == 2 and 2 < times.of_model(2) < times.of_model(4) < 4
        times.add_model(5, 4.0)
        assert times.of_model(3) == 3
        assert times.of_draft(1) == pytest.approx(2 / 3)
        times.add_draft(1, 0.5)
        assert times.of_draft(4) == 0.5

    def test_all_grow_with_the_context(self) -> None:
        times = StepTimes()
        times.add_model(1, 1.0)
        times.add_model(4, 1.5)
        for _ in range(200):
            times.add_model(4, 3.0)
        assert times.of_model(4) == pytest.approx(3, rel=0.01) and times.of_model(1) > 1.3
        times.add_model(4, 1000.0)
        assert times.of_model(4) < 4
