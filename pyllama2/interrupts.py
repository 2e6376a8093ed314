"""Signals that wait for their moment: what several callers share is never left half changed by Ctrl-C.

    with Interrupts() as interrupts:
        ...                            # handlers are held back
        with interrupts.allowed():
            ...                        # and called here, as always; they may raise
                                       # or at the end
Python runs signal handlers in the main thread only, between any two instructions; in other threads all of this does
nothing. Used by scheduler.py.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# Those whose handlers raise, by habit: KeyboardInterrupt, an exit that tidies up, a time that has run out.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]


class _Window:
    """The block of allowed(); a generator would cost more, for each token."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.open = False
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self.open = True
        try:
            self._interrupts.call_pending()
        except BaseException:
            self.open = False
            raise

    def __exit__(self, *raised: object) -> None:
        self.open = False


class Interrupts:
    """Stands in for the signals' Python handlers, and calls them when they may be called."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._window = _Window(self)
        self._pending: list[int] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:  # else someone installed another meanwhile
                signal.signal(number, handler)
        self.call_pending()

    def allowed(self) -> _Window:
        """A block inside which handlers run, also those of signals that came before it."""
        return self._window

    def call_pending(self) -> None:
        """Call the handlers of signals that came by now."""
        while self._pending:
            number = self._pending.pop(0)
            self._handlers[number](number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._window.open:
            self._window.open = False  # and it stays so if the handler raises
            self._handlers[number](number, frame)
            self._window.open = True
        else:
            self._pending.append(number)
