"""An event loop that a signal ends in good order.

A handler that raises amid the loop's own code may leave a task that nobody wakes, and then the loop never ends.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run main as asyncio.run() does. A signal cancels it, and its Python handler is called when the loop is closed.

    A second signal is handled at once.

    Args:
        main: ends soon when it is cancelled.

    Returns:
        What main returns. If a signal came and its handler does not raise, asyncio.CancelledError is raised.
    """
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    arrived: list[int] = []
    cancel: list[Callable[[], object]] = []  # empty before main runs, and after it

    def handle(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            handlers[number](number, frame)
        elif cancel:
            cancel[0]()

    async def work() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if arrived:
            task.cancel()
        try:
            return await main
        finally:
            cancel.clear()

    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, handle)
    try:
        return asyncio.run(work())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            handlers[arrived[0]](arrived[0], None)
