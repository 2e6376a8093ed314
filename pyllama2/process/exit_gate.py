"""Calls into C++ and Rust libraries that release the GIL, and the end of the interpreter.

When a daemon thread asks for the GIL while the interpreter ends, CPython before 3.14 unwinds its stack. C++ that may
not throw, and Rust, then abort the process. So such calls are made inside GATE. At exit it waits for running calls, and
stops other threads for good before their next call.
"""

from __future__ import annotations

import atexit
import threading
import time

from .forking import renew_after_fork

_LONGEST_WAIT_S = 10.0  # the longest text takes a tokenizer less


class _Gate:
    """A context manager for the calls. It may be nested."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}  # thread -> nesting; each thread changes only its own
        self._last: int | None = None  # the thread that ends the interpreter; None before the end

    def __enter__(self) -> None:
        here = threading.get_ident()
        self._depths[here] = self._depths.get(here, 0) + 1
        if self._last not in (None, here) and self._depths[here] == 1:
            del self._depths[here]
            _wait_for_ever()

    def __exit__(self, *raised: object) -> None:
        here = threading.get_ident()
        self._depths[here] -= 1
        if not self._depths[here]:
            del self._depths[here]

    def close(self) -> None:
        """Let no other thread in, and wait until those inside have left."""
        self._last = threading.get_ident()
        end = time.monotonic() + _LONGEST_WAIT_S
        while self._depths.keys() - {self._last} and time.monotonic() < end:
            time.sleep(0.001)

    def renew_in_child(self) -> None:
        """Forget the threads that the child does not have."""
        here = threading.get_ident()
        self._depths = {here: self._depths[here]} if here in self._depths else {}


def _wait_for_ever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


GATE = _Gate()
atexit.register(GATE.close)
renew_after_fork(GATE, _Gate.renew_in_child)
