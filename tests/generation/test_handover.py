"""Logits processors that do what they please: wait for others who use the same model, use it, take their time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.scheduling import Watched, alone, in_threads, wait_until
from helpers.tiny_llama import same
from numpy.typing import NDArray

from pyllama2 import ClosedError, Llama
from pyllama2.backend.base import Batch
from pyllama2.generation import handover, prefix_cache
from pyllama2.generation.stream import Stream

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING: dict[str, Any] = {"seed": 1, "ignore_eos": True, "max_tokens": 6}


def at(length: int, action: Callable[[], Any]) -> Callable[[list[int], NDArray[np.float32]], None]:
    """A logits processor that does something before the token at that place."""

    def process(ids: list[int], logits: NDArray[np.float32]) -> None:
        if len(ids) == length:
            action()

    return process


@pytest.mark.parametrize("kind", ["generate", "list", "stream", "score", "state"])
def test_a_processor_may_wait_for_another_thread(fresh: Llama, long_path: Path, tmp_path: Path, kind: str) -> None:
    """Such a processor waited for ever once: for a thread that waited for the step which it was part of."""
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: fresh.generate([1, 9], **SAMPLING).text,
        "list": lambda: fresh.generate([[1, 9], [1, 8]], **SAMPLING)[0].text,
        "stream": lambda: "".join(chunk.text for chunk in fresh.stream([1, 9], **SAMPLING)),
        "score": lambda: fresh.score([1, 9]).shape,
        "state": lambda: fresh.save_state(tmp_path / "state"),
    }
    found: list[Any] = []
    waits = at(4, lambda: found.extend(in_threads(calls[kind])))
    (outer,) = in_threads(lambda: fresh.generate([1, 5], logits_processors=[waits], **SAMPLING))
    assert same(outer, alone(long_path, [1, 5], **SAMPLING))
    expected = {"score": (1,), "state": None}.get(kind, alone(long_path, [1, 9], **SAMPLING).text)
    assert found == [expected]


def test_a_processor_may_wait_for_what_another_caller_holds(fresh: Llama, long_path: Path) -> None:
    """It runs in the thread that asked for its text, not in that of whoever drives."""
    lock, there = threading.Lock(), threading.Event()

    def holds() -> Any:
        with lock:
            there.wait(30)
            return fresh.generate([1, 9], **SAMPLING)

    def acquires() -> None:
        there.set()
        with lock:
            threads.append(threading.get_ident())

    def asks() -> Any:
        threads.append(threading.get_ident())
        return fresh.generate([1, 5], logits_processors=[at(4, acquires)], **SAMPLING)

    threads: list[int] = []
    held, asked = in_threads(holds, asks)
    assert same(held, alone(long_path, [1, 9], **SAMPLING)) and same(asked, alone(long_path, [1, 5], **SAMPLING))
    assert len(threads) == 2 and len(set(threads)) == 1


def test_a_processor_that_waits_for_its_own_text(fresh: Llama) -> None:
    streams: list[Stream] = []
    streams.append(fresh.stream([1, 5], logits_processors=[at(2, lambda: next(streams[0]))], **SAMPLING))
    with pytest.raises(ValueError, match="cannot wait for the text that it works for"):
        next(streams[0])
    assert list(streams[0]) == []
    fresh.generate([1, 5], **SAMPLING)


def test_two_threads_that_share_a_stream(fresh: Llama, long_path: Path) -> None:
    """One waits while the other is in the processor, and gets the piece after it."""
    inside, leave = threading.Event(), threading.Event()

    def waits() -> None:
        inside.set()
        leave.wait(30)

    def second() -> Any:
        inside.wait(30)
        return next(stream)

    def opens() -> None:
        wait_until(lambda: bool(fresh._scheduler._handovers._waiters))
        leave.set()

    stream = fresh.stream([1, 5], logits_processors=[at(2, waits)], **SAMPLING)
    in_threads(lambda: next(stream), second, opens)
    rest = list(stream)
    assert len(rest) == SAMPLING["max_tokens"] - 2
    assert stream.completion.text == alone(long_path, [1, 5], **SAMPLING).text


def test_closing_while_a_processor_waits(long_path: Path) -> None:
    llm = Llama(long_path)
    asks = lambda: llm.generate([1, 5], ignore_eos=True, logits_processors=[at(4, lambda: in_threads(llm.close))])  # noqa: E731
    (error,) = in_threads(asks)
    assert isinstance(error, ClosedError) and str(error) == "this Llama is closed"


def test_threads_share_steps(fresh: Llama, long_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step waits for the texts that are being sampled, so that threads with processors fill it together."""
    monkeypatch.setattr(handover, "_PATIENCE_S", 60)

    def all_are_there(batch: Batch) -> None:
        if not watched.batches:
            wait_until(lambda: len(fresh._scheduler._waiters) == 3)

    watched = Watched(fresh, all_are_there)
    sampling = {"max_tokens": 20, "ignore_eos": True, "temperature": 1.0}
    calls = [
        lambda i=i: fresh.generate([1, 5 + i], seed=i, logits_processors=[at(0, bool)], **sampling) for i in range(4)
    ]
    found = in_threads(*calls)
    assert all(same(found[i], alone(long_path, [1, 5 + i], seed=i, **sampling)) for i in range(4))
    assert watched.sizes == [2, *[4] * 19, 3]


def test_a_slow_processor_delays_others_once(fresh: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on without it, and it is not waited for again before it has come back."""
    monkeypatch.setattr(handover, "_PATIENCE_S", 0.2)
    done = threading.Event()
    sizes: list[int] = []

    def slow() -> None:
        watched.batches.clear()
        in_threads(lambda: fresh.generate([1, 9], max_tokens=50, ignore_eos=True))
        sizes.extend(watched.sizes)
        done.set()

    watched = Watched(fresh)
    fresh.generate([1, 5], logits_processors=[at(4, slow)], **SAMPLING)
    assert done.is_set() and len(sizes) == 50 and set(sizes[1:]) == {1}


@pytest.mark.parametrize("n_rows", [1, 2])
def test_the_row_of_a_text_that_is_being_sampled(long_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    """Where rows are short, a text that a processor asks for takes the one of the processor's own text."""
    monkeypatch.setattr(prefix_cache, "MAX_ROWS", n_rows)
    inner: list[Any] = []
    with Llama(long_path) as llm:
        asks = at(5, lambda: inner.append(llm.generate([1, 9], **SAMPLING)))
        prompts = [[1, 5 + i] for i in range(5)]
        found = llm.generate(prompts, logits_processors=[asks], **SAMPLING)
    assert all(same(c, alone(long_path, p, **SAMPLING)) for c, p in zip(found, prompts, strict=True))
    assert len(inner) == 5 and all(same(c, alone(long_path, [1, 9], **SAMPLING)) for c in inner)


def test_guesses_and_rolling_contexts(long_path: Path) -> None:
    """What was fed in vain is out of the row again, and a text that has rolled is computed anew."""
    circle = [1, *[*range(3, 13)] * 3]
    with Llama(long_path) as llm:
        for sampling in ({"temperature": 0}, {"temperature": 0.9, "seed": 3}):
            plain = llm.generate(circle, max_tokens=60, ignore_eos=True, **sampling)
            processed = llm.generate(
                circle, max_tokens=60, ignore_eos=True, logits_processors=[at(0, bool)], **sampling
            )
            assert processed.token_ids == plain.token_ids
    for n_ctx in (1, 2, 5, 16):
        with Llama(long_path, n_ctx=n_ctx, context="roll") as llm:
            plain = llm.generate([1], max_tokens=40, ignore_eos=True, temperature=0)
            processed = llm.generate(
                [1], max_tokens=40, ignore_eos=True, temperature=0, logits_processors=[at(0, bool)]
            )
            assert processed.token_ids == plain.token_ids
