"""Signals are held back where they would do harm, and none is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from pyllama2.interrupts import Interrupts


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


HANDLERS = [(signal.SIGINT, signal.default_int_handler), (signal.SIGALRM, alarm), (signal.SIGHUP, signal.SIG_IGN)]


def test_held_back_until_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
        done = True
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
    with Interrupts() as interrupts, interrupts.allowed():
        signal.raise_signal(signal.SIGHUP)


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
