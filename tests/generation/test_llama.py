"""Llama: what every line of its interface promises; how texts end is in test_generation.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import oracle_logits, random_weights
from helpers.tiny_llama import CHATML, CONFIG, PROMPT, PROMPTS, forced, same, says, write_tiny
from helpers.tiny_tokenizers import bpe_spec
from numpy.typing import NDArray

import pyllama2
from pyllama2 import ContextLengthError, Llama, NumericalError, SamplingParams
from pyllama2.generation import feeding, prefix_cache

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A byte-level BPE model with a ChatML template; its only end-of-text token is </s>."""
    with Llama(write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML)) as llm:
        yield llm


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
        self, llm: Llama, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts = [PROMPT[: 1 + i % 12] * (1 + i % 3) for i in range(11)]
        params = SamplingParams(seed=3, temperature=1.0, max_tokens=9)
        alone = [llm.generate(prompt, params) for prompt in prompts]
        monkeypatch.setattr(prefix_cache, "MAX_ROWS", 3)
        monkeypatch.setattr(prefix_cache, "_KEPT_ROWS", 1)
        monkeypatch.setattr(feeding, "_PROMPT_TOKENS", 4)
        monkeypatch.setattr(feeding, "_PROMPT_TOKENS_BESIDE_OTHERS", 2)
        with Llama(path) as small:
            assert all(map(same, small.generate(prompts, params), alone))
            assert same(small.generate(prompts[8], params), alone[8])

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
        completion = llm.generate(PROMPT, max_tokens=5, ignore_eos=True)
        timings = completion.timings
        n_computed = len(llm.tokenize(PROMPT)) - completion.usage.cached_tokens
        assert timings.prompt_s > 0 and timings.decode_s > 0
        assert timings.prompt_tokens_per_s == pytest.approx(n_computed / timings.prompt_s)
        assert timings.decode_tokens_per_s == pytest.approx(4 / timings.decode_s)
        assert llm.generate(PROMPT, max_tokens=1).timings.decode_tokens_per_s == 0
        assert llm.generate(PROMPT, max_tokens=0).timings == pyllama2.Timings(0, 0, 0, 0)


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

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_out_of_range(self, path: Path, seed: Any) -> None:
        with pytest.raises(ValueError, match="seed"):
            Llama(path, seed=seed)

    def test_threads_do_not_change_a_text(self, path: Path) -> None:
        texts = set()
        for n_threads in (1, 2, 3):
            with Llama(path, n_threads=n_threads) as llm:
                texts.add(llm.generate(PROMPT, seed=5, temperature=1.5).text)
        assert len(texts) == 1


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

    @pytest.mark.parametrize("n_ctx", [0, -1, 65])
    def test_out_of_range(self, path: Path, n_ctx: Any) -> None:
        with pytest.raises(ValueError, match="n_ctx must be between 1 and 64"):
            Llama(path, n_ctx=n_ctx)


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
        for most in (256, 3):
            monkeypatch.setattr("pyllama2.memory._PIECE_TOKENS", most)
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


@pytest.mark.slow
def test_public_names() -> None:
    assert all(hasattr(pyllama2, name) for name in pyllama2.__all__)
    assert math.isfinite(float(pyllama2.__version__.rpartition(".")[0]))
