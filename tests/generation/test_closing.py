"""close() while other threads use the model: each gets one clear error, none waits for ever, nothing crashes."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.forced_signals import AmidSteps
from helpers.scheduling import in_threads
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import ClosedError, Llama, perplexity
from pyllama2.chat_formats import renderer

pytestmark = pytest.mark.usefixtures("one_thread")
MESSAGES = [{"role": "user", "content": "What?"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "m.bin", "bpe", template=CHATML, max_seq_len=1024)


async def consumed(llm: Llama, sampling: dict[str, Any]) -> None:
    async for _ in llm.astream("a", **sampling):
        pass


@pytest.mark.subprocess
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


class TestInASignalHandler:
    """It runs in the thread that it interrupts, which must not wait for itself."""

    @pytest.mark.parametrize(
        "use", [lambda llm: llm.generate("a"), lambda llm: next(llm.stream("a")), lambda llm: llm.score([5] * 1000)]
    )
    def test_close_amid_a_step(self, path: Path, use: Callable[[Llama], Any]) -> None:
        """The step needs its weights up to its end; then they go. Nothing that takes more steps goes on."""
        alive = []

        def close() -> None:
            llm.close()
            alive.append(all(weight() is not None for weight in weights))

        llm = Llama(path)
        weights = [weakref.ref(weight) for weight in llm._model.weights.values()]
        AmidSteps(llm, close)
        with pytest.raises(ClosedError, match="this Llama is closed"):
            use(llm)
        assert alive == [True]
        assert all(weight() is None for weight in weights) and llm._scheduler._rows.cache is None

    def test_another_step_amid_a_step(self, path: Path) -> None:
        def score() -> None:
            with pytest.raises(ValueError, match="a signal's handler cannot wait for the step"):
                llm.score([5, 6, 7])
            refused.append(1)

        refused: list[int] = []
        with Llama(path) as llm:
            expected = llm.generate("a", seed=1, max_tokens=3).text
            AmidSteps(llm, score)
            assert llm.generate("a", seed=1, max_tokens=3).text == expected
        assert refused

    def test_close_and_render_while_a_template_is_rendered(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each rendering has a process of its own, and close() leaves none."""

        def ask(worker: Any, *arguments: Any) -> Any:
            workers.append(worker)
            if len(workers) == 1:
                assert llm.chat_tokens(MESSAGES) == expected
                llm.close()
            return own_ask(worker, *arguments)

        workers: list[Any] = []
        own_ask = renderer._Worker.ask
        llm = Llama(path)
        expected = llm.chat_tokens(MESSAGES)
        monkeypatch.setattr(renderer._Worker, "ask", ask)
        assert llm.chat_tokens(MESSAGES) == expected
        assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
