"""A signal ends a command wherever it arrives: where Python drops what its handler raises, and in an event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyllama2.process.event_loop import run_async
from pyllama2.process.signals import EndedBySignal, dropped_signals_return

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: EndedBySignal, signal.SIGHUP: EndedBySignal}


def end(number: int, frame: object) -> None:
    raise EndedBySignal(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    installed = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: end, signal.SIGHUP: end}
    before = [(number, signal.signal(number, handler)) for number, handler in installed.items()]
    yield
    found = {number: signal.signal(number, handler) for number, handler in before}
    assert found == installed, "the handlers were not put back"


class Finalized:
    """Sends signals from __del__."""

    def __init__(self, number: int, more: list[Finalized]) -> None:
        self._number = number
        self._more = more

    def __del__(self) -> None:
        if self._more:
            self._more.pop()
        signal.raise_signal(self._number)


def in_finalizer(number: int) -> None:
    Finalized(number, [])


def in_two_finalizers(number: int) -> None:
    Finalized(number, [Finalized(number, [])])


def in_weak_reference(number: int) -> None:
    thing = threading.Event()
    kept = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert kept() is None


def in_garbage_collection(number: int) -> None:
    thing = Finalized(number, [])
    thing.itself = thing  # type: ignore[attr-defined]
    del thing
    gc.collect()


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
@pytest.mark.parametrize("send", [in_finalizer, in_two_finalizers, in_weak_reference, in_garbage_collection])
def test_no_signal_is_dropped(send: Callable[[int], None], number: signal.Signals) -> None:
    with pytest.raises(RAISED[number]) as raised, dropped_signals_return():
        send(number)
        time.sleep(10)
    if isinstance(raised.value, EndedBySignal):
        assert (raised.value.number, raised.value.code) == (number, 128 + number)


def test_other_exceptions_are_printed_as_always(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise SystemExit(3) from ValueError("seven")

    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    hook = sys.unraisablehook
    with dropped_signals_return():
        Failing()
    assert sys.unraisablehook is hook
    assert [type(one.exc_value) for one in ignored] == [SystemExit]


class Work:
    """A main function with tasks. Notes what happens."""

    def __init__(self, send: Callable[[], object]) -> None:
        self.send = send
        self.notes: list[str] = []

    async def task(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.notes.append("task cancelled")
            raise

    async def main(self) -> str:
        tasks = [asyncio.create_task(self.task()) for _ in range(2)]
        await asyncio.sleep(0)
        try:
            self.send()
            await asyncio.wait(tasks)
            return "never"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.notes.append("main cleaned up")


def test_what_main_returns_and_raises() -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    async def failing() -> int:
        await asyncio.sleep(0)
        raise ValueError("seven")

    assert run_async(main()) == 7
    with pytest.raises(ValueError, match="seven"):
        run_async(failing())


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
@pytest.mark.parametrize("place", ["in a task", "in a callback", "in a finalizer", "from a thread"])
def test_a_signal_cancels_main_and_its_handler_runs_then(place: str, number: signal.Signals) -> None:
    def send() -> None:
        if place == "in a task":
            signal.raise_signal(number)
        elif place == "in a callback":
            asyncio.get_running_loop().call_later(0.01, signal.raise_signal, number)
        elif place == "in a finalizer":
            in_finalizer(number)
        else:
            threading.Timer(0.01, os.kill, [os.getpid(), number]).start()

    work = Work(send)
    with pytest.raises(RAISED[number]):
        run_async(work.main())
    assert work.notes == ["task cancelled"] * 2 + ["main cleaned up"]


def test_a_signal_before_the_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_late(main: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return run(main)

    work, run = Work(lambda: None), asyncio.run
    monkeypatch.setattr(asyncio, "run", run_late)
    with pytest.raises(EndedBySignal):
        run_async(work.main())
    assert "never" not in work.notes


def test_a_signal_after_main_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        return 7

    def run_early(main: Any) -> Any:
        result = run(main)
        signal.raise_signal(signal.SIGTERM)
        return result

    run = asyncio.run
    monkeypatch.setattr(asyncio, "run", run_early)
    with pytest.raises(EndedBySignal):
        run_async(main())


def test_a_second_signal_does_not_wait() -> None:
    cleaned_up = []

    async def main() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(60)
        finally:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
            cleaned_up.append(1)

    with pytest.raises((KeyboardInterrupt, EndedBySignal)):
        run_async(main())
    assert not cleaned_up


def test_a_handler_that_does_not_raise() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: came.append(number))
    try:
        with pytest.raises(asyncio.CancelledError):
            run_async(Work(lambda: signal.raise_signal(signal.SIGHUP)).main())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert came == [signal.SIGHUP]


def test_signals_without_a_python_handler_are_left_alone() -> None:
    async def main() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)]

    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_DFL)]
    try:
        assert run_async(main()) == [signal.SIG_IGN, signal.SIG_DFL]
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_in_another_thread() -> None:
    results = []

    async def main() -> int:
        return 7

    thread = threading.Thread(target=lambda: results.append(run_async(main())))
    thread.start()
    thread.join()
    assert results == [7]
