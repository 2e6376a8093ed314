"""Signals are held back where they would do harm, and none is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations_with_replacement, product
from pathlib import Path

import pytest
from helpers.forced_signals import Moments, SignalsAtCalls, at_each_line
from helpers.tiny_llama import PROMPTS, same, write_tiny

from pyllama2 import Llama, llama
from pyllama2.generation import generation, job, prefix_cache, scheduler, stream
from pyllama2.process import interrupts
from pyllama2.process.interrupts import Interrupts


class Alarm(Exception):
    """What the handler of SIGALRM raises."""


def alarm(number: int, frame: object) -> None:
    raise Alarm


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.signal(number, handler)) for number, handler in HANDLERS]
    yield
    found = [(number, signal.signal(number, handler)) for number, handler in before]
    assert found == HANDLERS, "the handlers were not put back"


NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
HANDLERS = [(signal.SIGINT, signal.default_int_handler), (signal.SIGALRM, alarm), (signal.SIGHUP, signal.SIG_IGN)]


def test_held_back_until_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2"])
def test_every_signal_that_programs_handle(name: str) -> None:
    before, done = signal.signal(getattr(signal, name), alarm), False
    try:
        with pytest.raises(Alarm), Interrupts():
            signal.raise_signal(getattr(signal, name))
            done = True
    finally:
        signal.signal(getattr(signal, name), before)
    assert done


def test_raises_where_it_may() -> None:
    before = inside = False
    with pytest.raises(Alarm), Interrupts() as interrupts, interrupts.allowed():
        before = True
        signal.raise_signal(signal.SIGALRM)
        inside = True
    assert before and not inside


def test_one_that_came_before_raises_first() -> None:
    inside = False
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with interrupts.allowed():
            inside = True
    assert not inside


def test_held_back_again_after_an_allowed_block() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        with interrupts.allowed():
            pass
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


def test_ignored_signals_stay_ignored() -> None:
    with Interrupts() as interrupts:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # no handler that would call something later
        assert signal.getsignal(signal.SIGINT) is interrupts
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_one_inside_another() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as outer:
        with outer.allowed(), Interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]


def test_a_handler_that_was_set_inside_stays() -> None:
    with Interrupts():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
    signal.signal(signal.SIGALRM, alarm)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_other_threads_do_not_touch_handlers() -> None:
    found: list[object] = []

    def work() -> None:
        with Interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


class Came(Exception):
    """What a handler raises: the number of its signal."""


class TestForcedTiming:
    """A signal may come at any moment: before and after each call that the module makes, and inside the block."""

    def block(self, plan: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch) -> Moments:
        """The moments that a block has. All signals that came then were handed on, once, and all handlers are back."""
        called: list[int] = []
        held = raised = False

        def handle(number: int, frame: object) -> None:
            called.append(number)
            assert not held, "a handler was called where none may be"
            raise Came(number)

        moments = Moments(plan)
        before = [signal.signal(number, handle) for number in NUMBERS]
        with monkeypatch.context() as patch:
            patch.setattr(interrupts, "signal", SignalsAtCalls(signal, moments))
            patch.setattr(interrupts, "threading", SignalsAtCalls(threading, moments))
            try:
                with Interrupts() as block:
                    held = True
                    moments.pass_by()
                    held = False
                    with block.allowed():
                        moments.pass_by()
                    held = True
                    moments.pass_by()
                    held = False
            except Came:
                raised, held = True, False
        after = [signal.signal(number, handler) for number, handler in zip(NUMBERS, before, strict=True)]
        assert after == [handle] * len(NUMBERS), f"a handler was left behind: {plan}"
        assert sorted(called) == sorted(moments.sent) and raised == bool(called), plan
        return moments

    def test_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        n_moments = self.block({}, monkeypatch).passed
        assert n_moments > 4 * len(NUMBERS)
        for moment, number in product(range(1, n_moments + 1), NUMBERS):
            assert self.block({moment: [number]}, monkeypatch).sent == [number]

    @pytest.mark.slow
    def test_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        n_moments = self.block({}, monkeypatch).passed
        for first, second in combinations_with_replacement(range(1, n_moments + 1), 2):
            for a, b in product(NUMBERS[:2], repeat=2):
                self.block({first: [a, b]} if first == second else {first: [a], second: [b]}, monkeypatch)

    def test_an_exit_is_not_hidden_by_ctrl_c(self) -> None:
        def end(number: int, frame: object) -> None:
            raise SystemExit(143)

        signal.signal(signal.SIGHUP, end)
        for order in ([signal.SIGINT, signal.SIGHUP], [signal.SIGHUP, signal.SIGINT]):
            with pytest.raises(SystemExit), Interrupts():
                for number in order:
                    signal.raise_signal(number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def test_a_handler_that_someone_kept_goes_on_to_work(self) -> None:
        with Interrupts():
            kept = signal.getsignal(signal.SIGALRM)
        assert callable(kept)
        with pytest.raises(Alarm):
            kept(signal.SIGALRM, None)

    @pytest.mark.slow
    def test_real_signals(self) -> None:
        """Another thread sends them, at moments of its own."""
        n, called, inside = 100, 0, False
        got_it = threading.Semaphore(0)

        def handle(number: int, frame: object) -> None:
            nonlocal called
            called += 1
            got_it.release()
            if inside:
                raise Alarm

        def send() -> None:
            for i in range(n):
                for _ in range(i * 7 % 50):
                    pass
                os.kill(os.getpid(), signal.SIGALRM)
                if not got_it.acquire(timeout=10):
                    return

        signal.signal(signal.SIGALRM, handle)
        thread = threading.Thread(target=send)
        thread.start()
        while thread.is_alive():
            with suppress(Alarm), Interrupts() as block, block.allowed():
                inside = True
                inside = False
            inside = False
            assert signal.getsignal(signal.SIGALRM) is handle
        signal.signal(signal.SIGALRM, alarm)
        assert called == n


@pytest.mark.slow
def test_at_each_line_of_a_generation(tmp_path: Path, one_thread: None) -> None:
    """Ctrl-C ends the text of who is interrupted, and neither others' nor the next one."""
    files = {module.__file__ for module in (llama, scheduler, job, generation, prefix_cache, stream, contextlib)}
    with Llama(write_tiny(tmp_path / "model")) as llm:
        expected = llm.generate(PROMPTS, seed=1, max_tokens=3, ignore_eos=True)
        others = llm.generate([1, 9], seed=1, ignore_eos=True)
        other = llm.stream([1, 9], seed=1, ignore_eos=True)
        for raised in at_each_line(
            lambda: llm.generate(PROMPTS, seed=1, max_tokens=3, ignore_eos=True), files, step=29
        ):
            assert type(raised) is KeyboardInterrupt
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert llm._scheduler._driver is None
            if next(other, None) is None:
                assert same(other.completion, others)
                other = llm.stream([1, 9], seed=1, ignore_eos=True)
            assert sum(not job.ended for job in llm._scheduler._jobs) <= 1
        assert all(map(same, llm.generate(PROMPTS, seed=1, max_tokens=3, ignore_eos=True), expected))
