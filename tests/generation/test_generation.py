"""How texts end, streams, and log-probabilities of tokens."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llama import CHATML, PROMPT, PROMPTS, forced, same, says, write_tiny
from numpy.typing import NDArray

import pyllama2
from pyllama2 import Chunk, Llama

pytestmark = pytest.mark.usefixtures("one_thread")


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


class TestRollingContext:
    def test_sees_the_first_tokens_and_the_newest_half(self, path: Path) -> None:
        with Llama(path, n_ctx=30, context="roll") as llm:
            ids = llm.tokenize(PROMPT)
            context, expected = list(ids), []
            for _ in range(80):
                token = int(llm.logits(context)[-1].argmax())
                expected.append(token)
                context.append(token)
                if len(context) > 30:
                    context = context[:4] + context[-15:]
            found = llm.generate(PROMPT, temperature=0, max_tokens=80, ignore_eos=True)
            assert found.token_ids == expected and found.finish_reason == "length"
            assert found.usage.completion_tokens == 80

    def test_is_the_same_beside_others(self, path: Path) -> None:
        sampling: dict[str, Any] = {"seed": 1, "temperature": 1.0, "max_tokens": 100, "ignore_eos": True}
        with Llama(path, n_ctx=30, context="roll") as llm:
            alone = [llm.generate(prompt, **sampling) for prompt in PROMPTS]
            assert all(map(same, llm.generate(PROMPTS, **sampling), alone))
            streams = [llm.stream(prompt, **sampling) for prompt in PROMPTS]
            for _ in zip(*streams, strict=True):
                pass
            assert all(same(stream.completion, c) for stream, c in zip(streams, alone, strict=True))

    def test_ends_of_its_own(self, path: Path) -> None:
        with Llama(path, n_ctx=16, context="roll") as llm:
            completion = llm.generate([1] * 16, max_tokens=None, temperature=1.5, seed=3)
            assert completion.finish_reason == "stop" and completion.usage.completion_tokens > 1
            with pytest.raises(pyllama2.ContextLengthError):
                llm.generate([1] * 17)
        with Llama(path, n_ctx=1, context="roll") as llm:
            assert len(llm.generate([1], max_tokens=5, ignore_eos=True).token_ids) == 5

    def test_only_when_asked_for(self, path: Path) -> None:
        with pytest.raises(ValueError, match="context must be stop or roll"):
            Llama(path, context="rolling")


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


def test_chats_from_several_threads(tmp_path: Path) -> None:
    with Llama(write_tiny(tmp_path / "chat.bin", template=CHATML)) as llm:
        questions = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        expected = [llm.chat_tokens(messages) for messages in questions]
        found: dict[int, list[int]] = {}

        def work(i: int) -> None:
            for _ in range(10):
                found[i] = llm.chat_tokens(questions[i])
                assert found[i] == expected[i]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found.get(i) for i in range(len(questions))] == expected


class TestAsync:
    def test_is_the_stream(self, llm: Llama) -> None:
        async def texts() -> list[str]:
            async def one(prompt: str) -> str:
                return "".join([chunk.text async for chunk in llm.astream(prompt, seed=1, max_tokens=20)])

            return await asyncio.gather(*map(one, PROMPTS))

        expected = [llm.generate(prompt, seed=1, max_tokens=20).text for prompt in PROMPTS]
        assert asyncio.run(texts()) == expected

    def test_chat(self, llm: Llama) -> None:
        messages = [{"role": "user", "content": "hello"}]

        async def answer() -> str:
            chunks = llm.astream_chat(messages, template="chatml", seed=1, max_tokens=5)
            return "".join([chunk.text async for chunk in chunks])

        assert asyncio.run(answer()) == llm.chat(messages, template="chatml", seed=1, max_tokens=5).text

    def test_arguments_are_checked_at_once(self, llm: Llama) -> None:
        with pytest.raises(ValueError, match="top_p"):
            llm.astream(PROMPT, top_p=0)

    def test_a_cancelled_task_ends_its_text(self, llm: Llama) -> None:
        begun = threading.Event()
        release = threading.Event()

        def processor(ids: list[int], logits: NDArray[np.float32]) -> None:
            begun.set()
            release.wait(30)

        async def consume() -> None:
            async for _ in llm.astream(PROMPT, ignore_eos=True, logits_processors=[processor]):
                pass

        async def main() -> None:
            task = asyncio.create_task(consume())
            await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            release.set()

        asyncio.run(main())
        jobs = llm._scheduler._jobs
        assert llm.generate(PROMPT, max_tokens=1).usage.completion_tokens == 1
        assert all(job.ended for job in jobs) and not llm._scheduler._jobs

    def test_errors_reach_the_task(self, llm: Llama) -> None:
        def broken(ids: list[int], logits: NDArray[np.float32]) -> None:
            raise KeyError("mine")

        async def consume() -> None:
            async for _ in llm.astream(PROMPT, logits_processors=[broken]):
                pass

        with pytest.raises(KeyError, match="mine"):
            asyncio.run(consume())


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
