"""Counts work instead of time, which differs from machine to machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TooMuchWorkError(AssertionError):
    """More lines were run than a test allows."""


@contextmanager
def at_most(lines: int) -> Iterator[None]:
    """Raise TooMuchWorkError as soon as more lines of Python have been run; each turn of a loop counts anew."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count > lines:
                sys.settrace(before)
                raise TooMuchWorkError(f"more than {lines} lines were run, the last in {frame.f_code.co_name}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
