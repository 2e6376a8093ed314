"""close() while other threads use the model: each gets one clear error, none waits for ever, nothing crashes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.scheduling import in_threads
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import ClosedError, Llama, perplexity

pytestmark = pytest.mark.usefixtures("one_thread")
MESSAGES = [{"role": "user", "content": "What?"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "m.bin", "bpe", template=CHATML, max_seq_len=1024)


async def consumed(llm: Llama, sampling: dict[str, Any]) -> None:
    async for _ in llm.astream("a", **sampling):
        pass


@pytest.mark.parametrize("n_closers", [1, 3])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
def test_beside_every_kind_of_use(path: Path, tmp_path: Path, delay: float, n_closers: int) -> None:
    llm = Llama(path)
    sampling: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
    state = tmp_path / "state"
    ids = [5] * 500
    calls: list[Callable[[], Any]] = [
        lambda: llm.generate("a", **sampling),
        lambda: llm.generate(["a", "b", "c"], **sampling),
        lambda: list(llm.stream("a", **sampling)),
        lambda: llm.chat(MESSAGES, **sampling),
        lambda: list(llm.stream_chat(MESSAGES, **sampling)),
        lambda: llm.generate("a", logits_processors=[lambda ids, logits: time.sleep(0.001)], **sampling),
        lambda: asyncio.run(consumed(llm, sampling)),
        lambda: llm.score(ids),
        lambda: llm.logits(ids),
        lambda: llm.chat_tokens(MESSAGES),
        lambda: llm.save_state(state),
        lambda: llm.tokenize("a"),
        lambda: llm.describe(),
        lambda: llm.profile(),
        lambda: perplexity(llm, "a fox " * 100),
    ]

    def for_ever(call: Callable[[], Any]) -> Callable[[], Any]:
        def work() -> None:
            while True:
                call()

        return work

    def close() -> None:
        start.wait(30)
        time.sleep(delay)
        llm.close()

    start = threading.Event()
    threading.Timer(0.01, start.set).start()
    found = in_threads(*map(for_ever, calls), *[close] * n_closers)
    for error in found[: len(calls)]:
        assert isinstance(error, ClosedError) and str(error) == "this Llama is closed", repr(error)
    assert found[len(calls) :] == [None] * n_closers
    assert llm._scheduler._rows.cache is None


def test_a_template_that_is_rendered_meanwhile_leaves_no_process(path: Path) -> None:
    llm = Llama(path)
    llm.chat_tokens(MESSAGES)
    renderers = [chat_format._renderer for chat_format in llm._requests._chat_formats.values()]  # type: ignore[attr-defined]
    assert len(renderers) == 1
    llm.close()
    with pytest.raises(ClosedError, match="this Llama is closed"):
        llm.chat_tokens(MESSAGES)
    assert not llm._requests._chat_formats
