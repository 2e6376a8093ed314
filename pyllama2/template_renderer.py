"""Renders chat templates in a process of its own (_template_worker.py), within bounded time and memory.

Used by jinja_chat.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

from . import _template_worker
from ._template_worker import LENGTH, MAX_CHARS
from .errors import CheckpointError, Pyllama2Error
from .shown import shown

TIMEOUT_S = 10.0
# All that the worker gets to know of the environment: where a shared libpython lies, and the time zone.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


class TemplateRenderer:
    """Renders one template any number of times. The process starts with the first render and stays.

    Any thread may call render(); calls take turns. The process ends with close(), with this object,
    and with the interpreter; Ctrl-C in the terminal does not reach it.
    """

    def __init__(self, template: str, timeout_s: float | None = None) -> None:
        self._template = template
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._forget_worker()

    def render(self, variables: dict[str, Any]) -> str:
        """The text. variables must be JSON values.

        Raises ValueError when the template refuses the messages (its raise_exception), and
        CheckpointError when the template fails or needs too much time, memory or text.
        """
        request = json.dumps({"template": self._template, "variables": variables}).encode()
        if os.getpid() != self._owner:  # forked: the worker and the lock are the parent's
            self._forget_worker()
        with self._lock:
            status, text = self._exchange(LENGTH.pack(len(request)) + request)
        if status == b"r":
            raise ValueError(f"the chat template refuses these messages: {shown(text)}")
        if status != b"+":
            raise CheckpointError(f"the chat template {shown(text)}")
        return text

    def close(self) -> None:
        """End the process; a later render() starts another."""
        if os.getpid() == self._owner:
            with self._lock:
                self._stop()

    def _forget_worker(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._end_worker: weakref.finalize[..., Any] | None = None

    def _exchange(self, request: bytes) -> tuple[bytes, str]:
        """Status and text of the worker's answer; the worker does not outlive a failure."""
        if self._worker is not None and self._worker.poll() is not None:  # something killed it since
            self._stop()
        worker = self._worker or self._start()
        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            worker.kill()

        timer = threading.Timer(self._timeout_s, give_up)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            answer = _send_and_receive(worker, request)
        except (OSError, EOFError):
            if timed_out.is_set():
                return b"-", f"did not finish within {self._timeout_s:g} s"
            return b"-", "ended the process that renders it, by its use of memory or otherwise"
        finally:
            timer.cancel()
            timer.join()  # from here on it will not kill
            if answer is None or timed_out.is_set():  # after Ctrl-C too: half a conversation cannot go on
                self._stop()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", _template_worker.__file__, *_folders_of("jinja2", "markupsafe")]
        try:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
        except OSError as error:
            raise Pyllama2Error(f"cannot start {sys.executable!r} to render the chat template: {error}") from error
        self._worker = worker
        self._end_worker = weakref.finalize(self, _end, worker, os.getpid())
        return worker

    def _stop(self) -> None:
        if self._end_worker is not None:
            self._end_worker()
        self._worker = self._end_worker = None


def _send_and_receive(worker: subprocess.Popen[bytes], request: bytes) -> tuple[bytes, str]:
    """Raises OSError or EOFError when the worker dies or does not keep to the protocol."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(request)
    worker.stdin.flush()
    header = worker.stdout.read(1 + LENGTH.size)
    if len(header) < 1 + LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(header[1:])
    if length > 4 * MAX_CHARS:
        raise EOFError
    data = worker.stdout.read(length)
    if len(data) < length:
        raise EOFError
    return header[:1], data.decode("utf-8", "replace")


def _end(worker: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        worker.kill()
        worker.communicate()  # closes the pipes and waits, so that no zombie is left


def _folders_of(*packages: str) -> list[str]:
    """The folders to import packages from."""
    folders = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise Pyllama2Error(f"chat templates need {package}: pip install jinja2")
        folders.append(os.path.dirname(os.path.dirname(os.path.abspath(spec.origin))))
    return folders
