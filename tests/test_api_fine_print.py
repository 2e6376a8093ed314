"""Promises of the interface that are kept between its parts; those of one part are tested with it."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llama import CHATML, PROMPT, PROMPTS, forced, says, write_tiny
from helpers.tiny_tokenizers import bpe_spec
from numpy.typing import NDArray

import pyllama2
from pyllama2 import Completion, ContextLengthError, Llama, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")
MESSAGES = [{"role": "user", "content": "What?"}]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A byte-level BPE model with a ChatML template."""
    with Llama(write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML)) as llm:
        yield llm


def calls(llm: Llama) -> dict[str, Callable[..., Any]]:
    """The four ways to have a text generated, and lists; each runs to its end."""
    return {
        "generate": lambda **sampling: llm.generate(PROMPT, **sampling),
        "list": lambda **sampling: llm.generate([PROMPT, "a"], **sampling),
        "stream": lambda **sampling: list(llm.stream(PROMPT, **sampling)),
        "chat": lambda **sampling: llm.chat(MESSAGES, **sampling),
        "stream_chat": lambda **sampling: list(llm.stream_chat(MESSAGES, **sampling)),
    }


def same_text(a: Completion, b: Completion) -> bool:
    """Whether two completions differ at most in their timings and in how much of the prompt was computed again."""
    return (a.text, a.token_ids, a.finish_reason, a.stop_reason) == (
        b.text,
        b.token_ids,
        b.finish_reason,
        b.stop_reason,
    )


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", -0.1), ("temperature", math.nan), ("top_p", 0), ("top_p", 1.1), ("top_p", math.nan),
            ("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan), ("top_k", -1), ("max_tokens", -1),
            ("repetition_penalty", 0), ("repetition_penalty", math.nan), ("presence_penalty", math.nan),
            ("frequency_penalty", math.nan), ("logit_bias", {1: math.nan}), ("logit_bias", {10_000: 1.0}),
            ("stop_token_ids", [10_000]), ("seed", -1), ("seed", 2**64),
        ],
    )  # fmt: skip
    def test_out_of_range_are_named_by_every_call(self, chatml: Llama, name: str, value: Any) -> None:
        for call in calls(chatml).values():
            with pytest.raises(ValueError, match=name):
                call(**{name: value})

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [("max_new_tokens", "max_tokens"), ("repeat_penalty", "repetition_penalty"), ("temp", "temperature")],
    )
    def test_unknown_names_are_answered_by_every_call(self, chatml: Llama, wrong: str, right: str) -> None:
        for call in calls(chatml).values():
            with pytest.raises(TypeError, match=f"'{wrong}'; did you mean '{right}'"):
                call(**{wrong: 1})

    def test_a_list_of_one_prompt_gives_a_list(self, llm: Llama) -> None:
        one = llm.generate(PROMPT, seed=1)
        for prompts in ([PROMPT], (PROMPT,), [llm.tokenize(PROMPT)]):
            several = llm.generate(prompts, seed=1)  # type: ignore[call-overload]
            assert isinstance(several, list) and len(several) == 1 and same_text(several[0], one)

    def test_seeds_of_numpy(self, llm: Llama) -> None:
        for seed in (np.int64(5), np.uint64(2**64 - 1)):
            assert same_text(llm.generate(PROMPT, seed=seed), llm.generate(PROMPT, seed=int(seed)))

    def test_the_empty_text_of_a_model_without_bos(self, tmp_path: Path) -> None:
        with Llama(write_tiny(tmp_path / "m.bin", spec=bpe_spec(bos_id=None))) as llm:
            for call in (llm.generate, llm.stream, llm.score):
                with pytest.raises(ValueError, match="no BOS"):
                    call("")
            assert llm.generate([]) == [] and llm.tokenize("") == []

    def test_the_empty_text_of_one_with_bos(self, llm: Llama) -> None:
        expected = llm.generate([1], seed=2).text
        assert "".join(chunk.text for chunk in llm.stream("", seed=2)) == expected
        assert [completion.text for completion in llm.generate(["", ""], seed=2)] == [expected] * 2

    def test_errors_have_one_base(self) -> None:
        names = ("CheckpointError", "ContextLengthError", "BackendUnavailableError", "NumericalError")
        assert all(issubclass(getattr(pyllama2, name), pyllama2.Pyllama2Error) for name in names)
        assert not issubclass(pyllama2.Pyllama2Error, (ValueError, TypeError))


class TestSeedsOfLists:
    def test_a_seed_holds_for_each_as_if_it_came_alone(self, llm: Llama) -> None:
        params = SamplingParams(seed=11, temperature=1.5, max_tokens=12, top_k=20, repetition_penalty=1.2, logprobs=1)
        together = llm.generate([*PROMPTS, *PROMPTS[::-1]], params)
        assert all(map(same_text, together, [llm.generate(prompt, params) for prompt in [*PROMPTS, *PROMPTS[::-1]]]))


class TestProcessors:
    def test_raw_logits_once_per_token_in_order_also_when_greedy(self, llm: Llama) -> None:
        ids = llm.tokenize(PROMPT)
        for temperature in (0, 1.0):
            seen: list[tuple[str, list[int], NDArray[np.float32]]] = []

            def first(token_ids: list[int], logits: NDArray[np.float32], seen: list[Any] = seen) -> None:
                seen.append(("first", list(token_ids), logits.copy()))

            def second(token_ids: list[int], logits: NDArray[np.float32], seen: list[Any] = seen) -> None:
                seen.append(("second", list(token_ids), logits.copy()))

            completion = llm.generate(
                PROMPT, temperature=temperature, top_k=3, repetition_penalty=1.5, presence_penalty=1, max_tokens=4,
                ignore_eos=True, logit_bias={7: 3.0}, logits_processors=[first, second], seed=1,
            )  # fmt: skip
            assert [name for name, _, _ in seen] == ["first", "second"] * 4
            assert [len(token_ids) for _, token_ids, _ in seen[::2]] == list(range(len(ids), len(ids) + 4))
            raw = llm.logits([*ids, *completion.token_ids])[len(ids) - 1 : -1]
            for (_, _, a), (_, _, b), expected in zip(seen[::2], seen[1::2], raw, strict=True):
                assert np.array_equal(a, b) and np.allclose(a, expected, atol=1e-4)

    def test_each_text_of_a_list_shows_its_own_tokens(self, llm: Llama) -> None:
        prompts = [llm.tokenize(prompt) for prompt in PROMPTS]
        seen: list[list[int]] = []
        llm.generate(prompts, max_tokens=1, logits_processors=[lambda ids, logits: seen.append(list(ids))])
        assert sorted(seen) == sorted(prompts)

    def test_an_exception_in_a_list_reaches_the_caller_and_leaves_the_model_usable(self, llm: Llama) -> None:
        expected = llm.generate(PROMPTS, seed=1)
        lengths = [len(llm.tokenize(prompt)) for prompt in PROMPTS]

        def broken(ids: list[int], logits: NDArray[np.float32]) -> None:
            if len(ids) > max(lengths) + 2:
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            llm.generate(PROMPTS, seed=1, ignore_eos=True, logits_processors=[broken])
        assert all(map(same_text, llm.generate(PROMPTS, seed=1), expected))


class TestEndings:
    def test_a_stop_id_is_left_out_and_counted(self, llm: Llama) -> None:
        ids = llm.tokenizer.encode("the fox")
        completion = forced(llm, [*ids, 77, 5], stop_token_ids=[77], logprobs=1, ignore_eos=True)
        assert (completion.text, completion.token_ids) == (" the fox", ids)
        assert (completion.finish_reason, completion.stop_reason) == ("stop", 77)
        assert completion.usage.completion_tokens == len(ids) + 1
        assert completion.logprobs is not None and [entry.token_id for entry in completion.logprobs] == ids

    def test_a_stream_leaves_them_out_too(self, llm: Llama) -> None:
        ids = [*llm.tokenizer.encode("the fox"), 2]
        force = says(ids, len(llm.tokenize(PROMPT)))
        stream = llm.stream(PROMPT, logits_processors=[force])
        assert [token_id for chunk in stream for token_id in chunk.token_ids] == ids[:-1]
        assert stream.completion.usage.completion_tokens == len(ids) and stream.completion.stop_reason == 2

    def test_stop_strings_across_tokens_in_every_call(self, chatml: Llama) -> None:
        ids = chatml.tokenizer.encode("lived in the forest")
        for stop in ("in the for", ["zzz", "in the for"]):
            n_prompt = len(chatml.chat_tokens(MESSAGES))
            completion = chatml.chat(MESSAGES, stop=stop, logits_processors=[says(ids, n_prompt)], max_tokens=len(ids))
            assert completion.text == "lived " and completion.stop_reason == "in the for"
            streamed = chatml.stream_chat(
                MESSAGES, stop=stop, logits_processors=[says(ids, n_prompt)], max_tokens=len(ids)
            )
            assert "".join(chunk.text for chunk in streamed) == "lived "

    def test_a_stop_string_that_the_prompt_begins(self, llm: Llama) -> None:
        completion = forced(llm, "b c", prompt="a a", stop=["a b", "a  b"])
        assert completion.finish_reason == "length" and completion.text == " b c"

    @pytest.mark.parametrize("prompt", ["", " ", "a", "a fox ", "  two", "\u72d0", "line\n", "\U0001f98a tail"])
    def test_echo_is_prompt_and_text(self, llm: Llama, chatml: Llama, prompt: str) -> None:
        for model in (llm, chatml):
            plain = model.generate(prompt, seed=3, max_tokens=9, temperature=1.5)
            echoed = model.generate(prompt, seed=3, max_tokens=9, temperature=1.5, echo=True, logprobs=0)
            assert echoed.text == prompt + plain.text and echoed.token_ids == plain.token_ids
            assert echoed.logprobs is not None and len(echoed.logprobs) == len(plain.token_ids)
            listed = model.generate([prompt, "b"], seed=3, max_tokens=9, temperature=1.5, echo=True)[0]
            streamed = model.stream(prompt, seed=3, max_tokens=9, temperature=1.5, echo=True)
            assert listed.text == "".join(chunk.text for chunk in streamed) == echoed.text


class TestFullContext:
    def test_ends_with_length_in_every_call(self, chatml: Llama) -> None:
        n_ctx = chatml.n_ctx

        def full(completion: Completion) -> bool:
            used = completion.usage.prompt_tokens + completion.usage.completion_tokens
            return (completion.finish_reason, used) == ("length", n_ctx)

        sampling: dict[str, Any] = {"max_tokens": None, "ignore_eos": True, "temperature": 0}
        assert all(map(full, chatml.generate([PROMPT, "a", [5] * (n_ctx - 1), [5] * n_ctx], **sampling)))
        assert full(chatml.chat(MESSAGES, **sampling))
        for stream in (chatml.stream(PROMPT, **sampling), chatml.stream_chat(MESSAGES, **sampling)):
            *others, last = stream
            assert last.finish_reason == "length" and full(stream.completion)
            assert all(chunk.finish_reason is None for chunk in others)

    def test_beyond_it_both_numbers_are_named(self, chatml: Llama) -> None:
        long = "fox " * 100
        n_prompt, n_chat = (
            len(chatml.tokenize(long)), len(chatml.chat_tokens([{"role": "user", "content": long}]))
        )  # fmt: skip
        for call in (chatml.generate, chatml.stream, chatml.score):
            with pytest.raises(ContextLengthError, match=f"{n_prompt} .*{chatml.n_ctx}"):
                call(long)
        with pytest.raises(ContextLengthError, match=f"prompt 1: {n_prompt} .*{chatml.n_ctx}"):
            chatml.generate(["a", long, "b"])
        for chat in (chatml.chat, chatml.stream_chat):
            with pytest.raises(ContextLengthError, match=f"{n_chat} .*{chatml.n_ctx}"):
                chat([{"role": "user", "content": long}])

    def test_the_whole_context_can_be_scored(self, llm: Llama) -> None:
        ids = [1, *range(3, llm.n_ctx + 2)]
        assert len(ids) == llm.n_ctx
        assert llm.score(ids).shape == (llm.n_ctx - 1,) and llm.logits(ids).shape == (llm.n_ctx, 340)


class TestInterruption:
    def test_ctrl_c_raises_from_generate_and_leaves_the_model_usable(self, llm: Llama) -> None:
        """A real signal, at every step that a text has: in the midst of a prompt's list, too."""
        expected = llm.generate(PROMPTS, seed=1, max_tokens=6, ignore_eos=True)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            for step in range(8):
                count = [0]

                def interrupt(
                    ids: list[int], logits: NDArray[np.float32], step: int = step, count: list[int] = count
                ) -> None:
                    count[0] += 1
                    if count[0] == 3 * step + 1:
                        signal.raise_signal(signal.SIGINT)

                with pytest.raises(KeyboardInterrupt):
                    llm.generate(PROMPTS, seed=1, max_tokens=6, ignore_eos=True, logits_processors=[interrupt])
                assert all(map(same_text, llm.generate(PROMPTS, seed=1, max_tokens=6, ignore_eos=True), expected))
        finally:
            signal.signal(signal.SIGINT, handler)


class TestSpecialTokens:
    @pytest.mark.parametrize("text", ["<s>", "</s>", "a</s>b", "<|im_start|>user", "x<|im_end|>", "<s></s><|im_end|>"])
    def test_never_come_from_a_prompt(self, chatml: Llama, text: str) -> None:
        special = set(chatml.tokenizer.special_tokens.values())
        seen: list[list[int]] = []
        watch = [lambda ids, logits: seen.append(list(ids))]
        chatml.generate(text, max_tokens=1, logits_processors=watch)
        chatml.generate([text, text], max_tokens=1, logits_processors=watch)
        list(chatml.stream(text, max_tokens=1, logits_processors=watch))
        assert len(seen) == 4 and not any(special & set(ids) for ids in seen)
        assert chatml.detokenize(seen[0]) == text
        plain = chatml.chat_tokens(MESSAGES)
        spelled = chatml.chat_tokens([{"role": "user", "content": text}])
        assert sorted(special & set(spelled)) == sorted(special & set(plain))
        assert [spelled.count(token_id) for token_id in special] == [plain.count(token_id) for token_id in special]


class TestFiles:
    @pytest.mark.slow
    def test_an_interrupted_quantize_leaves_the_file_that_was_there(self, path: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.bin"
        pyllama2.quantize(path, out, "q8")
        before = out.read_bytes()

        def interrupt(done: int, total: int, name: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pyllama2.quantize(path, out, "q4", progress=interrupt)
        assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]
