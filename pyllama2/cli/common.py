"""What the command lines share: flags, exit codes, signals, and errors in one sentence.

Exit codes: 0; 1 with one sentence on stderr; 2 for wrong usage; 130 after Ctrl-C; 143 after SIGTERM.
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

from ..errors import Pyllama2Error
from ..generation.completion import Completion
from ..llama import Llama
from ..sampling.sampler import SamplingParams
from ..shown import for_terminal, one_line, shown
from .progress import progress_bar

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors quote arguments on one line, without control characters."""

    def error(self, message: str) -> NoReturn:
        """End with the usage, the message and exit code 2."""
        super().error(one_line(message))

    def print_help(self, file: Any = None) -> None:
        """Write the help to file, stdout unless given. Raises OSError, which argparse's own swallows."""
        (sys.stdout if file is None else file).write(self.format_help())


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None, command: Callable[[Any], int]) -> int:
    """Parse argv (None: the process's) and run command on the result; returns the exit code.

    command returns an exit code, calls parser.error() for wrong usage, and raises what comes of files and models.
    """

    def work() -> int:
        with _signals_as_exceptions(), _warnings_as_sentences(parser.prog):
            args = parser.parse_args(argv)
            _set_up_log(verbose=getattr(args, "verbose", False))
            return command(args)

    return run_guarded(parser.prog, work)


def run_guarded(prog: str, work: Callable[[], int]) -> int:
    """The exit code of work, whatever it raises; errors are said in one sentence on stderr."""
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
    except BrokenPipeError:  # whoever read our output has seen enough
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()  # else its unwritten rest fails again when the interpreter ends
        return _fail(prog, f"{shown(error.filename)}: {error.strerror}" if error.filename else str(error.strerror))
    except MemoryError as error:
        return _fail(prog, f"not enough memory: {error}".removesuffix(": "))
    except (Pyllama2Error, ValueError) as error:
        return _fail(prog, str(error))


def _fail(prog: str, message: str) -> int:
    _say(f"{prog}: {message}")
    return 1


def _say(message: str) -> None:
    """A line on stderr, if that can be written to."""
    with suppress(OSError):
        print(one_line(message), file=sys.stderr, flush=True)


def _use_streams() -> None:
    """The standard streams as they are used here.

    Text may hold any character, whatever the locale says. Bytes that are not UTF-8 come in as Python has them in file
    names, as lone surrogates, and go out escaped: a line of a chat may name a file, and is no message then. Those
    that were closed when the process began read as empty, and take everything; and their place in the table of files
    is taken, so that no model file gets it and what is printed.
    """
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"), ("stdout", "w", "backslashreplace"), ("stderr", "w", "backslashreplace")
    ):  # fmt: skip
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors=errors))  # noqa: SIM115 (to stay)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _discard_output() -> None:
    """Let what is still to be written to stdout and stderr vanish where it cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # when there is no file behind it
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command by an exception, so that temporary files are removed, as Ctrl-C does."""

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
    """Warnings without the file and line they come from, which tell a user nothing."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        _say(f"{prog}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _OneLine(logging.Formatter):
    """Records of one line each, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return one_line(super().format(record))


def _set_up_log(verbose: bool) -> None:
    name = os.environ.get("PYLLAMA2_LOG_LEVEL", "").upper() or "WARNING"
    if name not in _LEVELS:
        raise ValueError(f"PYLLAMA2_LOG_LEVEL must be {', '.join(_LEVELS).lower()}, not {name.lower()!r}")
    if verbose and name != "DEBUG":
        name = "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pyllama2").setLevel(name)


def write_text(text: str) -> None:
    """Put a part of a text on stdout at once: as it is, but a terminal gets no control characters."""
    print(for_terminal(text), end="", flush=True)


def positive(text: str) -> int:
    """An integer above 0, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def read_text(path: str, what: str) -> str:
    """The text of a UTF-8 file, "-" for standard input. Raises ValueError, in which what names it, for other bytes."""
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
    """The flags that make a Llama; see open_model()."""
    add = parser.add_argument_group("model").add_argument
    add("-m", "--model", help="a model file or checkpoint, or smollm2 (default: PYLLAMA2_MODEL, else the demo model)")
    add("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    add("--quant", choices=("q8", "q4"), help="convert the weights in memory (default: a checkpoint's as float32)")
    add("-c", "--ctx", type=positive, metavar="CTX", help=ctx_help)
    add("-t", "--threads", type=positive, help="threads (default: PYLLAMA2_NUM_THREADS, else the physical cores)")
    add("--device", choices=("auto", "cpu", "cuda"), help="where to compute (default: PYLLAMA2_DEVICE, else auto)")
    add("--kv-dtype", choices=("float32", "float16", "int8"), help="type of keys and values (default: the device's)")
    add("--no-prompt-lookup", action="store_true", help="do not guess tokens from what the text has said before")
    add("-v", "--verbose", action="store_true", help="say more on stderr: device, model, GB/s, time by step")


def open_model(args: argparse.Namespace) -> Llama:
    """The Llama that the flags of add_model_flags() ask for."""
    if args.device is not None:
        os.environ["PYLLAMA2_DEVICE"] = args.device  # so that a flag "auto" beats the environment, too
    with progress_bar("convert") as progress:
        llm = Llama(
            args.model,
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
    """The flags that make SamplingParams; see sampling_params()."""
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
    """The SamplingParams that the flags of add_sampling_flags() ask for; values out of range are wrong usage."""
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
    """Tokens per second; with verbose also the bytes of weights that decoding read per second."""
    timings = completion.timings
    line = (
        f"prompt: {completion.usage.prompt_tokens} tokens, {timings.prompt_tokens_per_s:.1f} tokens/s; "
        f"decode: {completion.usage.completion_tokens} tokens, {timings.decode_tokens_per_s:.1f} tokens/s"
    )
    if verbose:
        line += f", {timings.decode_tokens_per_s * llm.describe()['bytes_per_token'] / 1e9:.2f} GB/s"
    return line
