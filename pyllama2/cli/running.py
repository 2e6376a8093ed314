"""How a command runs: streams, signals, the log, exit codes, and errors in one sentence.

Exit codes: 0 for success, 1 for an error (one sentence on stderr), 2 for wrong usage, 130 after Ctrl-C,
143 after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..errors import Pyllama2Error
from ..process.signals import EndedBySignal, dropped_signals_return
from ..shown import one_line, shown
from .parser import CommandParser


def run_command(parser: CommandParser, argv: list[str] | None, command: Callable[[Any], int]) -> int:
    """Parse the arguments and run a command on them.

    Args:
        parser: knows the flags of the command.
        argv: the arguments; None: those of the process.
        command: takes the parsed arguments and returns an exit code. It calls parser.error() for wrong usage, and
            lets errors of files and models pass.

    Returns:
        The exit code of the process.
    """

    def work() -> int:
        with _signals_as_exceptions(), _warnings_as_sentences(parser.prog):
            args = parser.parse(sys.argv[1:] if argv is None else argv)
            from .log import log_on_stderr  # its import takes as long as all others here

            with log_on_stderr(verbose=getattr(args, "verbose", False), quiet=getattr(args, "quiet", False)):
                return command(args)

    return run_guarded(parser.prog, work)


def run_guarded(prog: str, work: Callable[[], int]) -> int:
    """Run work, and print an error in one sentence on stderr.

    Args:
        prog: the name of the command, which begins the sentence.
        work: returns an exit code.

    Returns:
        The exit code of work, or that of the exception that it raised. A closed pipe is no error: 0.
    """
    _use_streams()
    try:
        try:
            with dropped_signals_return():
                code = work()
        except SystemExit as end:  # --help, wrong usage, or a signal
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()  # while an error can still be reported
        sys.stderr.flush()
        return code
    except KeyboardInterrupt:
        _say("")
        return 130
    except BrokenPipeError:  # the reader of our output has ended
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()  # otherwise writing the rest fails again when the interpreter ends
        reason = str(error.strerror or error)  # some libraries give a message alone
        return _fail(prog, f"{shown(error.filename)}: {reason}" if error.filename else reason)
    except MemoryError as error:
        return _fail(prog, f"not enough memory: {error}".removesuffix(": "))
    except (Pyllama2Error, ValueError) as error:
        return _fail(prog, str(error))


def _fail(prog: str, message: str) -> int:
    _say(f"{prog}: {message}")
    return 1


def _say(message: str) -> None:
    """Print one line on stderr, if it can be written to."""
    with suppress(OSError):
        print(one_line(message), file=sys.stderr, flush=True)


def _use_streams() -> None:
    """Set up the standard streams.

    All of them use UTF-8, whatever the locale says. Input bytes that are not UTF-8 become lone surrogates, as Python
    has them in file names: a line of a chat may hold the name of a file. On output they are escaped.

    A stream that was closed when the process began is replaced by the null device. This also takes its file
    descriptor. Otherwise a model file could get that descriptor, and printed text would be written into the file.
    """
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"), ("stdout", "w", "backslashreplace"), ("stderr", "w", "backslashreplace")
    ):  # fmt: skip
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors=errors))  # noqa: SIM115 (stays open)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _discard_output() -> None:
    """Send stdout and stderr to the null device where they cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # the stream has no file descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into EndedBySignal, so that temporary files are removed, as after Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        raise EndedBySignal(number)

    caught = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    previous = [signal.signal(number, end) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, previous, strict=True):
            signal.signal(number, handler)


@contextmanager
def _warnings_as_sentences(prog: str) -> Iterator[None]:
    """Print warnings without their file and line, which tell a user nothing."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        _say(f"{prog}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
