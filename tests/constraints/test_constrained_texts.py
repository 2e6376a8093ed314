"""Constrained texts among others: alone or together, with guesses or without, cancelled, saved, rolled, in chats."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.scheduling import Watched
from helpers.schemas import SCHEMAS, check
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Completion, ConstraintError, Llama, SamplingParams
from pyllama2.constraints.matcher import LIMITS

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ["sentencepiece", "bpe"]
LIST = 'start: ITEM (", " ITEM)*\nITEM: /[a-z]{1,5}/'
PERSON = SCHEMAS["person"]


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("constrained")
    return write_tiny(folder / "tiny.bin", request.param, template=CHATML, max_seq_len=400)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path) as llm:
        yield llm


def brief(completion: Completion) -> tuple[Any, ...]:
    return completion.token_ids, completion.text, completion.finish_reason, completion.logprobs


class TestKinds:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(6))
    def test_a_regex(self, llm: Llama, seed: int) -> None:
        for regex in ("(yes|no)", "[A-Z][a-z]{2,8} \\d{4}", " ?\u00fc\u2603{2,4}", "a|ab|abc", "^x+$"):
            text = llm.generate("Well: ", regex=regex, seed=seed, temperature=1.5, top_p=1, max_tokens=100)
            assert text.finish_reason == "stop" and re.fullmatch(regex, text.text), text

    @pytest.mark.parametrize("seed", range(3))
    def test_a_grammar(self, llm: Llama, seed: int) -> None:
        gbnf = 'root ::= "(" digit+ ")" | "[" root "]"\ndigit ::= [0-9]'
        for grammar, regex in ((LIST, "[a-z]{1,5}(, [a-z]{1,5})*"), (gbnf, "\\[*\\(\\d+\\)\\]*")):
            text = llm.generate("Well: ", grammar=grammar, seed=seed, max_tokens=300, logit_bias={2: 4.0})
            assert text.finish_reason == "stop" and re.fullmatch(regex, text.text), text
            assert text.text.count("[") == text.text.count("]")

    @pytest.mark.slow
    def test_a_chats_answer_is_the_whole_text(self, llm: Llama) -> None:
        """SentencePiece's tokens begin an answer with a space that is not part of it, and a space that is."""
        for regex in ("(yes|no)", " (yes|no)", "  x"):
            answers = [llm.chat([{"role": "user", "content": "Hello"}], regex=regex, seed=seed) for seed in range(4)]
            assert all(re.fullmatch(regex, answer.text) for answer in answers), answers
            if llm.tokenizer.prepends_space:
                assert all(llm.tokenizer.token_bytes(answer.token_ids[0])[:1] == b" " for answer in answers)
        answer = llm.chat([{"role": "user", "content": "Hello"}], json_schema=PERSON, max_tokens=300)
        check(answer.text, PERSON)
        chunks = llm.stream_chat([{"role": "user", "content": "Hello"}], grammar=LIST, seed=1, max_tokens=30)
        assert re.fullmatch("[a-z, ]*", "".join(chunk.text for chunk in chunks))

    def test_echo_is_not_part_of_it(self, llm: Llama) -> None:
        assert llm.generate("Once ", regex="x{3}", echo=True).text == "Once xxx"


class TestEnds:
    def test_where_nothing_can_follow(self, llm: Llama) -> None:
        """Without a token for the end, so also with ignore_eos."""
        for ignore_eos in (False, True):
            text = llm.generate("a", regex="(?:ab){3}", ignore_eos=ignore_eos)
            assert (text.text, text.finish_reason, text.stop_reason) == ("ababab", "stop", None)
            assert text.usage.completion_tokens == len(text.token_ids)

    def test_at_the_models_own_token_where_the_text_may_end(self, llm: Llama) -> None:
        end = llm.tokenizer.eos_ids[0]
        text = llm.generate("a", regex="a{3,}", logit_bias={end: 50.0}, max_tokens=50)
        assert re.fullmatch("a{3,}", text.text) and (text.finish_reason, text.stop_reason) == ("stop", end)
        assert llm.generate(
            "a", regex="a{3,}", logit_bias={end: 50.0}, ignore_eos=True, max_tokens=9
        ).finish_reason == ("length")

    def test_an_empty_text(self, llm: Llama) -> None:
        text = llm.generate("a", regex="")
        assert (text.text, text.finish_reason, text.usage.completion_tokens) == ("", "stop", 0)
        assert llm.generate(["a", "b"], regex="")[1].finish_reason == "stop"

    def test_max_tokens_and_the_context_may_cut(self, llm: Llama) -> None:
        cut = llm.generate("a", json_schema=PERSON, max_tokens=3)
        assert cut.finish_reason == "length" and cut.text.startswith("{")
        assert llm.generate([5] * 390, regex="a{500}", max_tokens=None).usage.completion_tokens == 10

    def test_stop_strings_cut_too(self, llm: Llama) -> None:
        text = llm.generate("a", regex="aaxbb", stop="xb")
        assert (text.text, text.finish_reason, text.stop_reason) == ("aa", "stop", "xb")

    def test_an_ordinary_stop_token_keeps_its_place_in_the_grammar(self, llm: Llama) -> None:
        newest = max(i for i in range(340) if llm.tokenizer.token_bytes(i) == b"x")
        text = llm.generate("a", regex="(aa|bb)x", stop_token_ids=[newest])
        assert text.text in ("aa", "bb") and text.stop_reason == newest

    def test_a_context_that_rolls(self, path: Path) -> None:
        with Llama(path, context="roll", n_ctx=64) as llm:
            text = llm.generate("Once", regex="(?:[a-z]{3} ){80}", max_tokens=None, temperature=1, seed=1)
        assert text.finish_reason == "stop" and re.fullmatch("(?:[a-z]{3} ){80}", text.text)


class TestAmongOthers:
    @pytest.mark.parametrize("temperature", [0.0, 1.2])
    def test_each_text_is_what_it_is_alone(self, llm: Llama, temperature: float) -> None:
        """Constrained by different things and not at all, in threads at the same time."""
        params: list[SamplingParams] = []
        for i, constraint in enumerate(
            ({}, {"json_schema": PERSON}, {"regex": "[a-z ]{40}"}, {}, {"grammar": LIST}, {"json_schema": PERSON})
        ):
            base: dict[str, Any] = {"max_tokens": 60, "seed": i, "temperature": temperature}
            params.append(SamplingParams(**base, **constraint, logprobs=1 if i % 2 else None))
        alone = [brief(llm.generate(f"Text {i}: ", each)) for i, each in enumerate(params)]
        together: list[Any] = [None] * len(params)

        def run(i: int) -> None:
            together[i] = brief(llm.generate(f"Text {i}: ", params[i]))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(params))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone

    def test_a_list_of_prompts(self, llm: Llama) -> None:
        prompts = [f"Number {i} " for i in range(9)]
        together = llm.generate(prompts, json_schema=PERSON, seed=3, max_tokens=200)
        assert [brief(text) for text in together] == [
            brief(llm.generate(prompt, json_schema=PERSON, seed=3, max_tokens=200)) for prompt in prompts
        ]
        for text in together:
            check(text.text, PERSON)

    def test_after_others_were_cancelled(self, llm: Llama) -> None:
        expected = brief(llm.generate("One: ", json_schema=PERSON, seed=1, max_tokens=200))
        for n in (1, 2, 7):
            stream = llm.stream("One: ", json_schema=PERSON, seed=1, max_tokens=200)
            for _ in range(n):
                next(stream)
            stream.close()
            assert brief(llm.generate("One: ", json_schema=PERSON, seed=1, max_tokens=200)) == expected

    def test_streams_that_take_turns(self, llm: Llama) -> None:
        expected = [llm.generate("One: ", json_schema=PERSON, seed=seed, max_tokens=200).text for seed in range(3)]
        streams = [llm.stream("One: ", json_schema=PERSON, seed=seed, max_tokens=200) for seed in range(3)]
        texts = ["", "", ""]
        live = {0, 1, 2}
        while live:
            for i in sorted(live):
                chunk = next(streams[i], None)
                if chunk is None:
                    live.remove(i)
                else:
                    texts[i] += chunk.text
        assert texts == expected

    def test_in_a_forked_process(self, path: Path) -> None:
        """Parent and child both go on with the text."""
        with Llama(path) as llm:
            expected = llm.generate("One: ", json_schema=PERSON, seed=1, max_tokens=200).text
            stream = llm.stream("One: ", json_schema=PERSON, seed=1, max_tokens=200)
            begun = next(stream).text + next(stream).text
            child = os.fork()
            if child == 0:
                same = False
                try:
                    same = begun + "".join(chunk.text for chunk in stream) == expected
                finally:
                    os._exit(0 if same else 1)
            assert begun + "".join(chunk.text for chunk in stream) == expected
            assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.slow
    def test_with_a_saved_state(self, path: Path, tmp_path: Path) -> None:
        with Llama(path) as llm:
            expected = brief(llm.generate("Once upon a time", json_schema=PERSON, seed=1, max_tokens=200))
            llm.save_state(tmp_path / "state")
        with Llama(path) as llm:
            llm.load_state(tmp_path / "state")
            text = llm.generate("Once upon a time", json_schema=PERSON, seed=1, max_tokens=200)
        assert text.usage.cached_tokens > 0 and brief(text) == expected

    def test_processors_and_penalties_come_first(self, llm: Llama) -> None:
        def shout(ids: list[int], logits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
            logits[:] = np.where(np.arange(logits.size) % 2, 5.0, 0.0)

        text = llm.generate(
            "a", regex="[a-z]{12}", logits_processors=[shout], repetition_penalty=1.5, presence_penalty=1.0, seed=1
        )
        assert re.fullmatch("[a-z]{12}", text.text) and text.finish_reason == "stop"

    def test_async_streams(self, llm: Llama) -> None:
        async def one(seed: int) -> str:
            chunks = llm.astream("One: ", json_schema=PERSON, seed=seed, max_tokens=200)
            return "".join([chunk.text async for chunk in chunks])

        async def both() -> list[str]:
            return await asyncio.gather(one(1), one(2))

        for text in asyncio.run(both()):
            check(text, PERSON)


class TestGuesses:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["person", "nested", "oneOf", "formats"])
    def test_the_output_is_unchanged(self, path: Path, name: str) -> None:
        def ask(llm: Llama) -> list[Any]:
            options: dict[str, Any] = {"json_schema": SCHEMAS[name], "max_tokens": 150, "logprobs": 2}
            return [brief(llm.generate("Text: ", seed=seed, temperature=0.4 * seed, **options)) for seed in range(3)]

        with Llama(path, prompt_lookup=False) as llm:
            plain = ask(llm)
        with Llama(path) as llm:
            assert ask(llm) == plain

    @pytest.mark.slow
    def test_a_draft_changes_nothing(self, path: Path) -> None:
        options: dict[str, Any] = {"json_schema": SCHEMAS["oneOf"], "max_tokens": 100, "seed": 2}
        with Llama(path) as llm:
            plain = brief(llm.generate("Text: ", **options))
        for lookup in (False, True):
            with Llama(path, draft=str(path), prompt_lookup=lookup) as llm:
                assert brief(llm.generate("Text: ", **options)) == plain

    @pytest.mark.slow
    def test_what_the_grammar_forces_takes_few_passes(self, path: Path) -> None:
        word = "abcdefghijklmnopqrstuvwxyz"
        passes = []
        for lookup in (False, True):
            with Llama(path, prompt_lookup=lookup) as llm:
                watched = Watched(llm)
                # The only choice is how the text is cut into tokens. A bias makes it the longest ones.
                ids = {i: 3.0 * len(llm.tokenizer.token_bytes(i)) for i in range(3, 340)}
                text = llm.generate("Say: ", regex=word, logit_bias=ids, temperature=0, max_tokens=100)
                assert text.text == word
                passes.append(len(watched.sizes))
        assert passes[1] < 0.4 * passes[0]

    def test_guesses_of_the_lookup_that_the_grammar_forbids_are_not_fed(self, path: Path) -> None:
        with Llama(path) as llm:
            prompt = llm.tokenize("abc1 abc2 abc3 abc4 ")
            text = llm.generate(prompt, regex="(?:abc[5-9] ){4}", max_tokens=60)
        assert re.fullmatch("(?:abc[5-9] ){4}", text.text)


class TestErrors:
    @pytest.mark.parametrize("make", [lambda llm: llm.generate, lambda llm: llm.stream], ids=["generate", "stream"])
    def test_come_before_anything_is_generated(self, llm: Llama, make: Callable[[Llama], Any]) -> None:
        with pytest.raises(ConstraintError, match=r"^regex cannot be used: unclosed group$"):
            make(llm)("a", regex="((")

    def test_no_token_is_left(self, llm: Llama) -> None:
        letters = {i: -float("inf") for i in range(340) if b"x" in llm.tokenizer.token_bytes(i)}
        with pytest.raises(ConstraintError, match="logit_bias forbid all that regex allows"):
            llm.generate("a", regex="x", logit_bias=letters)
        assert llm.generate("a", regex="y").text == "y"

    @pytest.mark.slow
    def test_a_text_that_becomes_too_complex_ends_alone(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(LIMITS, "max_lexer_states", 1000)
        regex = "(?s:.*)a(?s:.){200}b(?s:.*)c(?s:.){200}d"
        other = llm.stream("Once", max_tokens=300, temperature=1, seed=1, ignore_eos=True)
        next(other)
        with pytest.raises(ConstraintError, match="it is too complex"):
            llm.generate("a", regex=regex, temperature=5, top_p=1, seed=1, max_tokens=390)
        alone = llm.generate("Once", max_tokens=300, temperature=1, seed=1, ignore_eos=True)
        assert list(other) and other.completion.text == alone.text
