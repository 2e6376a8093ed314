"""Streams that a thread of their own generates; log-probabilities of prompts; fingerprints."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, PROMPT, PROMPTS, write_tiny

from pyllama2 import ContextLengthError, Llama, NumericalError, SamplingParams
from pyllama2.generation.background import Background
from pyllama2.generation.chunk import Chunk
from pyllama2.generation.stream import Stream

PARAMS = SamplingParams(max_tokens=40, seed=5, ignore_eos=True)


class News:
    """Waits for updates of a background."""

    def __init__(self, llm: Llama) -> None:
        self._event = threading.Event()
        self.background: Background = llm.background(lambda urgent: self._event.set())

    def forget(self) -> None:
        """Forget the updates so far."""
        self._event.clear()

    def collect(self, *streams: Stream) -> list[str]:
        """The texts of streams up to their ends."""
        texts = [""] * len(streams)
        while not all(stream.job.ended and not stream.job.queue for stream in streams):
            assert self._event.wait(60)
            self._event.clear()
            for i, stream in enumerate(streams):
                texts[i] += "".join(chunk.text for chunk in self.background.take(stream))
        return texts


def no_thread_is_left() -> bool:
    for thread in threading.enumerate():
        if thread.name == "pyllama2-background":
            thread.join(60)
    return all(thread.name != "pyllama2-background" for thread in threading.enumerate())


@pytest.mark.parametrize("ahead", [None, 1, 3])
def test_texts_are_those_of_generate(fresh: Llama, ahead: int | None) -> None:
    news = News(fresh)
    streams = [fresh.streams(fresh.prompt_request(prompt, PARAMS), 1)[0] for prompt in PROMPTS]
    for stream in streams:
        news.background.start(stream, ahead)
    assert news.collect(*streams) == [fresh.generate(prompt, PARAMS).text for prompt in PROMPTS]
    assert streams[0].completion.usage.completion_tokens == 40
    assert no_thread_is_left()


@pytest.mark.slow
def test_beside_other_callers(fresh: Llama) -> None:
    """generate() in this thread and the background's thread take turns as drivers."""
    news = News(fresh)
    streams = fresh.streams(fresh.prompt_request(PROMPT, PARAMS), 4)
    for stream in streams:
        news.background.start(stream, 2)
    found: list[str] = []
    other = threading.Thread(target=lambda: found.extend(news.collect(*streams)))
    other.start()
    texts = [fresh.generate(prompt, PARAMS).text for prompt in PROMPTS]
    other.join(60)
    assert texts == [fresh.generate(prompt, PARAMS).text for prompt in PROMPTS]
    assert found == [fresh.generate(PROMPT, PARAMS, seed=5 + i).text for i in range(4)]


def test_a_paused_stream_waits_without_a_thread(fresh: Llama) -> None:
    news = News(fresh)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, PARAMS), 1)
    news.background.start(stream, 3)
    while not stream.job.paused:
        pass
    assert no_thread_is_left()
    assert 3 <= len(stream.job.queue) <= 3 + 8
    assert news.collect(stream) == [fresh.generate(PROMPT, PARAMS).text]


def test_a_stream_that_pauses_amid_a_take_goes_on(fresh: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    news = News(fresh)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, PARAMS), 1)
    take = stream.take

    def take_late() -> list[Chunk]:
        """The stream is not paused before, but when its chunks are taken, and its thread has gone."""
        news.background.start(stream, 2)
        while not stream.job.paused:
            pass
        assert no_thread_is_left()
        return take()

    monkeypatch.setattr(stream, "take", take_late)
    assert not stream.job.paused
    first = "".join(chunk.text for chunk in news.background.take(stream))
    monkeypatch.setattr(stream, "take", take)
    assert first + news.collect(stream)[0] == fresh.generate(PROMPT, PARAMS).text


def test_a_stream_that_another_caller_ends_amid_a_take_is_told(fresh: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    news = News(fresh)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, replace(PARAMS, max_tokens=12)), 1)
    news.background.start(stream, 3)
    while not stream.job.paused:
        pass
    assert no_thread_is_left()
    take = stream.take

    def take_and_wait() -> list[Chunk]:
        """What is in the queue; then another caller's steps end the stream, which has gone on."""
        chunks = []
        while not stream.job.ended:
            chunks += take()
            fresh.generate([1, 7], max_tokens=2, ignore_eos=True)
        assert stream.job.queue and no_thread_is_left()
        news.forget()
        return chunks

    monkeypatch.setattr(stream, "take", take_and_wait)
    first = "".join(chunk.text for chunk in news.background.take(stream))
    monkeypatch.setattr(stream, "take", take)
    assert first + news.collect(stream)[0] == fresh.generate(PROMPT, replace(PARAMS, max_tokens=12)).text


def test_what_another_caller_computes_before_all_pause_is_told(fresh: Llama) -> None:
    params = replace(PARAMS, max_tokens=12)
    chunks: list[Chunk] = []
    ended = threading.Event()

    def updated(urgent: bool) -> None:
        """Take everything. Before the thread looks again, another caller's steps fill the queue."""
        chunks.extend(background.take(stream))
        fresh.generate([1, 7], max_tokens=4, ignore_eos=True)
        if stream.job.ended and not stream.job.queue:
            ended.set()

    background = fresh.background(updated)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, params), 1)
    background.start(stream, 2)
    assert ended.wait(20)
    assert "".join(chunk.text for chunk in chunks) == fresh.generate(PROMPT, params).text


def test_a_stream_has_ended_when_its_last_chunk_can_be_taken(fresh: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: who looked then would take all but the last chunk, and not look again."""
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, replace(PARAMS, max_tokens=5)), 1)
    text = stream.job.text
    advance, seen = text.advance, []

    def watched(result: Any) -> Any:
        update = advance(result)
        seen.append((text.finish_reason, stream.job.ended))
        return update

    monkeypatch.setattr(text, "advance", watched)
    News(fresh).background.start(stream, None)
    assert no_thread_is_left()
    assert seen == [(None, False)] * 4 + [("length", False)]
    assert stream.job.ended and len(stream.job.queue) == 5


def test_closing_frees_the_row(fresh: Llama) -> None:
    news = News(fresh)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, replace(PARAMS, max_tokens=None)), 1)
    news.background.start(stream, 2)
    while not stream.job.paused:
        pass
    stream.close()
    news.background.wake()
    assert no_thread_is_left()
    assert not any(row.in_use for row in fresh._rows.rows)
    assert news.background.take(stream) == []


def test_an_error_comes_after_the_last_chunk(one_thread: None, tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    weights["output.weight"][:] = np.nan
    with Llama(write_tiny(tmp_path / "nan.bin", weights=weights)) as llm:
        news = News(llm)
        [stream] = llm.streams(llm.prompt_request(PROMPT, PARAMS), 1)
        news.background.start(stream, None)
        with pytest.raises(NumericalError):
            news.collect(stream)
        assert no_thread_is_left()


def test_a_closed_llama_ends_its_streams(one_thread: None, long_path: Path) -> None:
    llm = Llama(long_path)
    news = News(llm)
    [stream] = llm.streams(llm.prompt_request(PROMPT, replace(PARAMS, max_tokens=900)), 1)
    news.background.start(stream, None)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        news.collect(stream)
        news.background.take(stream)
    assert no_thread_is_left()


def test_a_text_that_may_not_be_longer_ends_at_once(fresh: Llama) -> None:
    news = News(fresh)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, replace(PARAMS, max_tokens=0)), 1)
    news.background.start(stream, 2)
    assert [chunk.finish_reason for chunk in news.background.take(stream)] == ["length"]


def test_processors_run_in_the_background(fresh: Llama) -> None:
    seen = set()

    def process(ids: list[int], logits: Any) -> None:
        seen.add(threading.current_thread().name)

    news = News(fresh)
    params = replace(PARAMS, logits_processors=[process])
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, params), 1)
    news.background.start(stream, 2)
    assert news.collect(stream) == [fresh.generate(PROMPT, PARAMS).text]
    assert seen == {"pyllama2-background"}


def _child(llm: Llama, news: News, stream: Stream, results: Any) -> None:
    again = llm.streams(llm.prompt_request(PROMPT, PARAMS), 1)[0]
    news.background.start(again, 2)
    results.put((stream.job.cancelled, news.collect(again)))


def test_a_forked_child_ends_the_parents_streams(fresh: Llama) -> None:
    news = News(fresh)
    [stream] = fresh.streams(fresh.prompt_request(PROMPT, PARAMS), 1)
    news.background.start(stream, 2)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_child, args=(fresh, news, stream, results))
    child.start()
    expected = fresh.generate(PROMPT, PARAMS).text
    assert results.get() == (True, [expected])
    child.join(60)
    assert news.collect(stream) == [expected]


def test_log_probabilities_of_prompts(fresh: Llama) -> None:
    ids = fresh.tokenize(PROMPT)
    entries = [entry for piece in fresh.prompt_logprobs(PROMPT, 3) for entry in piece]
    assert [entry.token_id for entry in entries] == ids[1:]
    assert np.allclose([entry.logprob for entry in entries], fresh.score(ids), atol=1e-5)
    for entry, logits in zip(entries, fresh.logits(ids), strict=False):
        assert [token for token, _, _ in entry.top] == np.argsort(-logits, kind="stable")[:3].tolist()
    assert [entry.top for piece in fresh.prompt_logprobs(ids) for entry in piece] == [()] * len(entries)
    with pytest.raises(ValueError, match="top"):
        fresh.prompt_logprobs(PROMPT, -1)
    with pytest.raises(ContextLengthError):
        fresh.prompt_logprobs([5] * 2000)


def test_fingerprints(one_thread: None, tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    paths = [write_tiny(tmp_path / f"{i}.bin", weights=weights) for i in range(2)]
    weights["layers.1.attention.wq.weight"][-1, -1] += 1
    paths += [write_tiny(tmp_path / "2.bin", weights=weights), write_tiny(tmp_path / "3.bin", template="x")]
    found = []
    for path in paths:
        with Llama(path) as llm:
            found.append(llm.fingerprint())
            assert llm.fingerprint("1") != llm.fingerprint("2")
    assert found[0] == found[1] and len({*found}) == 3
    with Llama(paths[0], kv_dtype="int8") as llm:
        assert llm.fingerprint() != found[0]
