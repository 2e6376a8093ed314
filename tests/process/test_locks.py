"""A lock that its holder may enter again, and that is free in a forked child if another thread held it."""

from __future__ import annotations

import os
import threading

import pytest

from pyllama2.process.locks import Lock


def held_elsewhere(lock: Lock) -> bool:
    """Whether another thread has to wait for it, which this one then lets in."""
    entered = threading.Event()

    def enter() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    held = not entered.wait(0.05)
    if not held:
        thread.join()
    return held


def test_keeps_others_out_until_it_was_left_as_often_as_entered() -> None:
    lock = Lock()
    assert not lock.held_here
    with lock:
        with lock:
            assert lock.held_here
        assert lock.held_here and held_elsewhere(lock)
    assert not lock.held_here and not held_elsewhere(lock)


def test_an_exception_leaves_it() -> None:
    lock = Lock()
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    assert not held_elsewhere(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("by_the_child", [True, False])
def test_fork(by_the_child: bool) -> None:
    """Held by the thread that forks it stays held; by another thread, which the child does not have, it is free."""
    lock, held, leave = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            leave.wait(30)

    def fork() -> int:
        child = os.fork()
        if child == 0:
            os._exit(lock.held_here * 2 + held_elsewhere(lock))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    if by_the_child:
        with lock:
            assert fork() == 3
        return
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    assert fork() == 0 and held_elsewhere(lock)
    leave.set()
    holder.join(30)
