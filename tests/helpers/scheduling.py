"""What tests of the scheduler share: batches that are watched, callers in threads, texts to compare with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2 import Completion, Llama
from pyllama2.backend.base import Batch
from pyllama2.backend.kv_cache import KVCache

LONG = [1, *range(3, 203)]


class Watched:
    """The batches that a Llama's backend gets, and something to do before each."""

    def __init__(self, llm: Llama, before: Callable[[Batch], None] = lambda batch: None) -> None:
        self.batches: list[Batch] = []
        backend = llm._scheduler._backend
        forward = backend.forward

        def watched(batch: Batch, cache: KVCache) -> NDArray[np.float32]:
            before(batch)
            self.batches.append(batch)
            return forward(batch, cache)

        backend.forward = watched  # type: ignore[method-assign]

    @property
    def sizes(self) -> list[int]:
        return [len(batch.tokens) for batch in self.batches]


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give or raise, each in a thread of its own."""
    found: list[Any] = [None] * len(calls)

    def work(i: int) -> None:
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "callers wait forever"
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Give other threads time until a condition holds; fails after a minute."""
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to that")


def alone(path: Path, prompt: Any, **sampling: Any) -> Completion:
    """A completion by a Llama that has done nothing else."""
    with Llama(path) as llm:
        return llm.generate(prompt, **sampling)
