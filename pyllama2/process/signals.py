"""Signals whose handlers raise where Python drops what they raise: in finalizers and callbacks of weak references."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PAUSE_S = 0.01


class EndedBySignal(SystemExit):
    """What handlers raise to end a command.

    Attributes:
        number: of the signal. The exit code is 128 more.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def dropped_signals_return() -> Iterator[None]:
    """Send a signal again where Python has dropped the KeyboardInterrupt or EndedBySignal of its handler."""
    before = sys.unraisablehook
    waiting: set[int] = set()

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        raised = unraisable.exc_value
        if isinstance(raised, (KeyboardInterrupt, EndedBySignal)):
            number = raised.number if isinstance(raised, EndedBySignal) else signal.SIGINT
            if number not in waiting:
                waiting.add(number)
                # The threads of threading need locks, which the main thread may hold here.
                _thread.start_new_thread(send, (number,))
        else:
            before(unraisable)

    def send(number: int) -> None:
        time.sleep(_PAUSE_S)  # the finalizer has most probably ended then
        waiting.discard(number)
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, number)  # also ends what it waits for
        else:
            signal.raise_signal(number)

    main = threading.main_thread().ident or 0
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
