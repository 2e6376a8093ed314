"""A progress bar on stderr for long work: one line that is drawn again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..convert import Progress

_WIDTH = 30
_INTERVAL_S = 0.1


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """Give a callback progress(done, total, name) that draws a bar; None when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    started = time.monotonic()
    last = -1.0

    def draw(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < _INTERVAL_S:
            return
        last = now
        filled = _WIDTH * done // total
        left = (now - started) * (total - done) / done
        bar = "#" * filled + "-" * (_WIDTH - filled)
        print(f"\r{label} [{bar}] {100 * done // total:3d}%, {left:.0f} s left  ", end="", file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        if last >= 0:
            print(file=sys.stderr)
