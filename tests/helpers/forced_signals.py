"""Signals that come at a moment of a test's choice: before any line of some files, at any call of a module, or amid a
step of a model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType, ModuleType
from typing import Any

from pyllama2 import Llama


def at_each_line(
    work: Callable[[], Any], files: Collection[str | None], step: int = 1
) -> Iterator[BaseException | None]:
    """Run work again and again, SIGINT coming one line of files later each time; gives what it raises, until it is
    through without having been interrupted."""
    for moment in range(1, 100_000, step):
        lines = 0

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                lines += 1
                if lines == moment:  # noqa: B023 (it is gone before the next round)
                    signal.raise_signal(signal.SIGINT)
            return trace

        raised = None
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        except BaseException as error:
            raised = error
        finally:
            sys.settrace(before)
        if lines < moment:
            assert raised is None and moment > 1
            return
        yield raised


class SignalsAtCalls:
    """A module before and after whose calls signals come: those that plan has for the how many-th moment that is."""

    def __init__(self, module: ModuleType, moments: Moments) -> None:
        self._module = module
        self._moments = moments

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found) or isinstance(found, type):
            return found

        def called(*arguments: Any) -> Any:
            self._moments.pass_by()
            result = found(*arguments)
            self._moments.pass_by()
            return result

        return called


class Moments:
    """Counts the moments that pass, and sends the signals that are planned for them."""

    def __init__(self, plan: Mapping[int, Collection[int]]) -> None:
        self.passed = 0
        self.sent: list[int] = []
        self._plan = plan

    def pass_by(self) -> None:
        """One more moment."""
        self.passed += 1
        for number in self._plan.get(self.passed, ()):
            self.sent.append(number)
            signal.raise_signal(number)


class AmidSteps:
    """The compiled Forward of a model, in whose every run something is done first, as a signal's handler would."""

    def __init__(self, llm: Llama, act: Callable[[], object]) -> None:
        self._forward = llm._backend._forward  # type: ignore[union-attr]
        self._act = act
        llm._backend._forward = self  # type: ignore[union-attr]

    def run(self, *arguments: Any) -> Any:
        self._act()
        return self._forward.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._forward, name)
