"""Renders chat templates in a separate process (template_worker.py), within bounded time and memory.

An answer must belong to its question, even after Ctrl-C twice, a MemoryError or a fork. Therefore:

    a process is taken out of use before a question is sent, and put back only after the whole answer was read
    an answer carries the number of its question
    a forked child closes its copies of the pipes
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import weakref
from typing import IO, Any

from ..errors import CheckpointError, Pyllama2Error
from ..process.confined import command, folder_of, options, program
from ..process.forking import renew_after_fork
from ..process.interrupts import Interrupts
from ..process.locks import Lock
from ..shown import shown
from .stand_ins import StandIns
from .template_worker import ANSWER, MAX_CHARS, QUESTION, READY

TIMEOUT_S = 10.0  # for a render
START_TIMEOUT_S = 60.0  # for the start of the process, which is no fault of the template's: a busy machine takes long
_START = program("chat_formats", "template_worker")


class TemplateRenderer:
    """Renders one template any number of times.

    The process starts with the first render and stays. It ends with close(), with this object, and with the
    interpreter. Ctrl-C in the terminal does not reach it. Any thread may call render(); calls take turns.

    Attributes:
        stand_ins: the stand-ins that rendered text contains.
    """

    def __init__(self, template: str, timeout_s: float | None = None, stand_ins: StandIns | None = None) -> None:
        """Prepare a template; nothing is started yet.

        Args:
            template: Jinja source.
            timeout_s: seconds that a render may take, without the start of the process; None: TIMEOUT_S.
            stand_ins: what replaces names in the template's own text (template_environment.py); None: nothing.
        """
        self.stand_ins = stand_ins or StandIns()
        self._template = json.dumps({"template": template, "stand_ins": self.stand_ins.by_name}).encode()
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._lock = Lock()
        self._worker: _Worker | None = None
        renew_after_fork(self, TemplateRenderer._forget_parent)

    def render(self, variables: dict[str, Any]) -> str:
        """Render the template.

        Args:
            variables: the template's variables; JSON values.

        Returns:
            The text, with stand-ins in it.

        Raises:
            ValueError: the template refuses the messages, with its raise_exception().
            CheckpointError: the template fails, takes too much time or memory, or writes too much text.
            Pyllama2Error: the process cannot be started.
        """
        data = json.dumps(variables).encode()
        with self._lock, Interrupts() as interrupts:
            worker, self._worker = self._worker, None
            if worker is None or not worker.is_running():  # something may have killed it
                worker = _Worker()
            status, text = worker.ask(self._template, data, self._timeout_s, interrupts)
            self._worker = worker
        if status == b"+":
            return text
        text = "".join(self.stand_ins.split(text))  # an error message shows names, not stand-ins
        if status == b"r":
            raise ValueError(f"the chat template refuses these messages: {shown(text)}")
        raise CheckpointError(f"the chat template {shown(text)}")

    def close(self) -> None:
        """End the process. A later render() starts another."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            with Interrupts():
                worker.end()

    def _forget_parent(self) -> None:
        """In a forked child: leave the process to the parent."""
        self._worker = None


class _Worker:
    """A process that renders templates. It ends with this object."""

    def __init__(self) -> None:
        start = command(_START, _folder_of("jinja2"), _folder_of("markupsafe"))
        try:
            self._process = subprocess.Popen(
                start, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options()
            )
        except OSError as error:
            raise Pyllama2Error(f"cannot start {sys.executable!r} to render the chat template: {error}") from error
        self.end = weakref.finalize(self, _end, self._process)
        self.pid = self._process.pid
        self._is_ready = False
        self._numbers = itertools.count(READY + 1)
        renew_after_fork(self, _Worker._forget_parent)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, template: bytes, variables: bytes, timeout_s: float, interrupts: Interrupts) -> tuple[bytes, str]:
        """Send a question and return the status and text of the answer. The caller holds signals back.

        After an exception, this object must not be used again. Raises Pyllama2Error if the process does not start, and
        CheckpointError if it dies, which it does timeout_s after it has the question at the latest.
        """
        if not self._is_ready:
            try:
                self._exchange(b"", READY, START_TIMEOUT_S, interrupts)
            except (TimeoutError, EOFError) as error:
                raise Pyllama2Error(f"the process that renders the chat template did not start: {error}") from None
            self._is_ready = True
        number = next(self._numbers)
        question = QUESTION.pack(number, len(template), len(variables)) + template + variables
        try:
            return self._exchange(question, number, timeout_s, interrupts)
        except TimeoutError:
            raise CheckpointError(f"the chat template did not finish within {timeout_s:g} s") from None
        except EOFError:
            raise CheckpointError(
                "the chat template ended the process that renders it, by its use of memory or otherwise"
            ) from None

    def _exchange(self, question: bytes, number: int, timeout_s: float, interrupts: Interrupts) -> tuple[bytes, str]:
        """Send a question and return the status and text of the answer of that number.

        An exception ends the process: here, since what a signal's handler raises while this object is destroyed would
        be lost. Raises TimeoutError if the answer takes longer than timeout_s, and EOFError if
        the process dies or answers something else.
        """
        process = self._process
        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            with interrupts.allowed():
                _write(process.stdin, question)
                answer = _read_answer(process.stdout, number)
        except (OSError, EOFError):
            pass
        finally:
            timer.cancel()
            if answer is None:
                self.end()
            timer.join()  # from here on it cannot kill the process
        if timed_out.is_set():
            self.end()
            raise TimeoutError(f"it took longer than {timeout_s:g} s")
        if answer is None:
            raise EOFError("it ended")
        return answer

    def _forget_parent(self) -> None:
        """In a forked child: leave the process to the parent, and close the copies of its pipes."""
        self.end.detach()
        _close_pipes(self._process)
        self._process.poll()  # notes that it is not a child of this process


def _write(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read(pipe: IO[bytes] | None, n_bytes: int) -> bytes:
    assert pipe is not None
    data = bytearray()
    while len(data) < n_bytes:
        more = pipe.read(n_bytes - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def _read_answer(pipe: IO[bytes] | None, number: int) -> tuple[bytes, str]:
    """Read the status and text of an answer. Raises EOFError if the worker dies or violates the protocol."""
    status, answered, length = ANSWER.unpack(_read(pipe, ANSWER.size))
    if answered != number or length > 4 * MAX_CHARS:
        raise EOFError
    try:
        return status, _read(pipe, length).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise EOFError from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    _close_pipes(process)
    process.wait()  # leave no zombie


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _folder_of(package: str) -> str:
    """The folder that a package is imported from."""
    folder = folder_of(package)
    if folder is None:
        raise Pyllama2Error(f"chat templates need {package}: pip install jinja2")
    return folder
