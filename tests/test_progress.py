"""Progress bars: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tiny_llama import write_tiny

from pyllama2 import Llama, progress
from pyllama2.progress import in_notebook, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Terminal]]:
    """A function that makes stderr a terminal; pytest sets it anew when a test begins."""

    def make() -> Terminal:
        monkeypatch.setattr(sys, "stderr", stream := Terminal())
        return stream

    yield make


def work(delay_s: float = 0.0) -> None:
    with progress_bar("work", delay_s=delay_s) as draw:
        assert draw is not None
        for done in range(1, 5):
            draw(done, 4, "x")


def test_a_terminal_has_a_bar(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    work()
    last = shown.getvalue().split("\r")[-1]
    assert last.startswith("work [####") and "100%" in last and last.endswith("\n")


def test_short_work_has_none(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    work(delay_s=60)
    assert shown.getvalue().strip() == ""


def test_work_that_does_not_begin_has_none(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    with progress_bar("work"):
        pass
    assert shown.getvalue() == ""


def test_a_pipe_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("work") as draw:
        assert draw is None


def test_a_notebook_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook()
    work()
    assert "100%" in stream.getvalue()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()


def test_a_model_that_is_converted_is_not_silent(
    terminal: Callable[[], Terminal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = terminal()
    path = write_tiny(tmp_path / "m.bin")
    monkeypatch.setattr("pyllama2.llama.progress_bar", lambda label, delay_s: progress.progress_bar(label))
    Llama(path, quant="q8").close()
    assert "convert [" in shown.getvalue() and "100%" in shown.getvalue()
    before, calls = shown.getvalue(), []
    Llama(path, quant="q8", progress=False).close()
    Llama(path, quant="q8", progress=lambda *call: calls.append(call)).close()
    assert shown.getvalue() == before and calls
