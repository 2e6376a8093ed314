"""What each thread did when: PYLLAMA2_TRACE=FILE writes it for chrome://tracing, https://ui.perfetto.dev and others.

The format is the "Trace Event Format" of Chrome: complete events, with times in microseconds. A step of a thread, in
which it computes, is followed by its wait for the others. The first model of a process writes FILE, the next FILE.2.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from ..shown import shown
from .workspace import Workspace

MOST_EVENTS = 200_000  # of a thread: those of some hundred tokens. What comes after them is left out

log = logging.getLogger("pyllama2")
_numbers = itertools.count(1)


class Trace:
    """The trace of one model. It is written when the trace is closed or collected, or when the process ends.

    Args:
        path: of the file.
        workspace: of the model; it records events from now on.
        steps: names of the steps, by their number.

    Raises:
        ValueError: the file cannot be written.
    """

    def __init__(self, path: str, workspace: Workspace, steps: Sequence[str]) -> None:
        number = next(_numbers)
        workspace.record_events(MOST_EVENTS)
        self._passes: list[tuple[float, float, int]] = []
        path = path if number == 1 else f"{path}.{number}"
        try:
            with open(path, "w", encoding="utf-8"):
                pass  # said before the work
        except OSError as error:
            raise ValueError(_cannot_write(path, error)) from None
        self._finish = weakref.finalize(self, _write, path, os.getpid(), workspace, list(steps), self._passes)

    def add_pass(self, started: float, n_tokens: int) -> None:
        """Note a pass of the model that started at a time of time.monotonic(), and ends now."""
        if len(self._passes) < MOST_EVENTS:
            self._passes.append((started, time.monotonic(), n_tokens))

    def close(self) -> None:
        """Write the file."""
        self._finish()


def _write(
    path: str, process: int, workspace: Workspace, steps: list[str], passes: list[tuple[float, float, int]]
) -> None:
    if os.getpid() != process:  # a child of a fork did not run these
        return
    events = list(_events(process, workspace, steps, passes))
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
    except OSError as error:
        log.error("%s", _cannot_write(path, error))


def _cannot_write(path: str, error: OSError) -> str:
    return f"PYLLAMA2_TRACE: cannot write {shown(path)}: {error.strerror}"


def _events(
    process: int, workspace: Workspace, steps: list[str], passes: list[tuple[float, float, int]]
) -> Iterator[dict[str, Any]]:
    for start, end, n_tokens in passes:
        yield _event(process, 0, f"pass of {n_tokens} token{'s'[: n_tokens != 1]}", start, end, {})
    for thread, events in enumerate(workspace.events()):
        for kind, pieces, from_other, redone, start, end in events.tolist():
            counts = {"pieces": pieces, "of other threads": from_other, "done again": redone}
            name = steps[kind] if kind >= 0 else f"wait: {steps[-1 - kind]}"
            yield _event(process, thread + 1, name, start, end, counts if kind >= 0 else {})


def _event(process: int, thread: int, name: str, start: float, end: float, facts: dict[str, int]) -> dict[str, Any]:
    times = {"ts": round(start * 1e6, 3), "dur": round((end - start) * 1e6, 3)}
    return {"name": name, "ph": "X", "pid": process, "tid": thread, **times, "args": facts}
