"""What the commands share: flags, exit codes, signals, and errors in one sentence.

Exit codes: 0 for success, 1 for an error (one sentence on stderr), 2 for wrong usage, 130 after Ctrl-C,
143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from ..backend.kv_cache import KV_DTYPES
from ..errors import Pyllama2Error
from ..generation.completion import Completion
from ..llama import Llama
from ..sampling.params import SamplingParams
from ..shown import for_terminal, one_line, shown, shown_value
from .progress import progress_bar

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors quote arguments on one line, without control characters.

    Args:
        command: the name of the command.
        description: what it does, in one sentence.
        epilog: what its help says after the list of flags; printed as it is.
    """

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"pyllama2 {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end with exit code 2."""
        super().error(one_line(message))

    def print_help(self, file: Any = None) -> None:
        """Write the help. Errors of the file are raised; argparse's own method ignores them.

        Args:
            file: where to write; None: stdout.

        Raises:
            OSError: the file cannot be written.
        """
        (sys.stdout if file is None else file).write(self.format_help())


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None, command: Callable[[Any], int]) -> int:
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
            args = parser.parse_args(argv)
            _set_up_log(verbose=getattr(args, "verbose", False))
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
        return _fail(prog, f"{shown(error.filename)}: {error.strerror}" if error.filename else str(error.strerror))
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
    """Turn SIGTERM and SIGHUP into SystemExit, so that temporary files are removed, as after Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

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


class _OneLine(logging.Formatter):
    """A formatter that writes each record on one line, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        return one_line(super().format(record))


def _set_up_log(verbose: bool) -> None:
    name = os.environ.get("PYLLAMA2_LOG_LEVEL", "").upper() or "WARNING"
    if name not in _LEVELS:
        raise ValueError(f"PYLLAMA2_LOG_LEVEL must be {', '.join(_LEVELS).lower()}, not {shown_value(name.lower())}")
    if verbose and name != "DEBUG":
        name = "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pyllama2").setLevel(name)


def write_text(text: str) -> None:
    """Write part of a text to stdout and flush it. Control characters are escaped only if stdout is a terminal."""
    print(for_terminal(text), end="", flush=True)


def positive(text: str) -> int:
    """Parse an integer above 0. For argparse's type=; raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def read_text(path: str, what: str) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file; "-" is standard input.
        what: the text's name in the error message, such as "the prompt".

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    if path == "-":
        data = sys.stdin.buffer.read()
    else:
        with open(path, "rb") as file:
            data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from None


def add_model_flags(
    parser: argparse.ArgumentParser, *, ctx_help: str = "longest sequence in tokens (default: the model's)"
) -> None:
    """Add the flags that open_model() reads."""
    add = parser.add_argument_group("model").add_argument
    add("-m", "--model", help="a model file or checkpoint, or smollm2 (default: PYLLAMA2_MODEL, else the demo model)")
    add("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    add("--quant", choices=("q8", "q4"), help="convert the weights in memory (default: a checkpoint's as float32)")
    add("-c", "--ctx", type=positive, metavar="CTX", help=ctx_help)
    add("-t", "--threads", type=positive, help="threads (default: PYLLAMA2_NUM_THREADS, else the physical cores)")
    add("--device", choices=("auto", "cpu", "cuda"), help="where to compute (default: PYLLAMA2_DEVICE, else auto)")
    add("--kv-dtype", choices=KV_DTYPES, help="type of keys and values (default: the device's)")
    add("--no-prompt-lookup", action="store_true", help="do not guess tokens from what the text has said before")
    add("-v", "--verbose", action="store_true", help="say more on stderr: device, model, GB/s, time by step")


def open_model(args: argparse.Namespace) -> Llama:
    """Open the model that the flags of add_model_flags() name.

    Raises:
        Pyllama2Error, ValueError: as Llama() does.
    """
    with progress_bar("convert") as progress:
        llm = Llama(
            args.model,
            device=args.device,
            n_ctx=args.ctx,
            n_threads=args.threads,
            quant=args.quant,
            kv_dtype=args.kv_dtype,
            tokenizer=args.tokenizer,
            prompt_lookup=not args.no_prompt_lookup,
            progress=progress,
        )
    facts = ", ".join(f"{name} {value}" for name, value in llm.describe().items() if name != "config")
    logging.getLogger("pyllama2").info("%s", facts)
    return llm


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that sampling_params() reads."""
    default = SamplingParams()
    add = parser.add_argument_group("sampling").add_argument
    add("-n", "--max-tokens", type=int, default=default.max_tokens, help="most tokens to generate (%(default)s)")
    add("--temperature", type=float, default=default.temperature, help="0 is greedy (%(default)s)")
    add("--greedy", action="store_true", help="the same as --temperature 0")
    add(
        "--top-p",
        type=float,
        default=default.top_p,
        help="the likeliest tokens up to this mass; 1 is off (%(default)s)",
    )
    add("--top-k", type=int, default=default.top_k, help="the likeliest so many tokens; 0 is off (%(default)s)")
    add("--min-p", type=float, default=default.min_p, help="no token below this share of the likeliest (%(default)s)")
    add("--repetition-penalty", type=float, default=default.repetition_penalty, help="1 is off (%(default)s)")
    add("--seed", type=int, help="the same seed gives the same text (default: another each time)")
    add("--stop", action="append", default=[], metavar="S", help="end the text before this string; may be repeated")


def sampling_params(parser: argparse.ArgumentParser, args: argparse.Namespace) -> SamplingParams:
    """Make SamplingParams from the flags of add_sampling_flags(). Values out of range are wrong usage (exit code 2)."""
    try:
        return SamplingParams(
            temperature=0.0 if args.greedy else args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            max_tokens=args.max_tokens,
            stop=args.stop,
            seed=args.seed,
        )
    except ValueError as error:
        parser.error(str(error))


def timings_line(llm: Llama, completion: Completion, verbose: bool) -> str:
    """Describe the speed of a completion, in tokens/s.

    Args:
        llm: the model that made it.
        completion: the completion.
        verbose: also give the weights that decoding read, in GB/s (10^9 bytes).
    """
    timings = completion.timings
    line = (
        f"prompt: {completion.usage.prompt_tokens} tokens, {timings.prompt_tokens_per_s:.1f} tokens/s; "
        f"decode: {completion.usage.completion_tokens} tokens, {timings.decode_tokens_per_s:.1f} tokens/s"
    )
    if verbose:
        line += f", {timings.decode_tokens_per_s * llm.describe()['bytes_per_token'] / 1e9:.2f} GB/s"
    return line
