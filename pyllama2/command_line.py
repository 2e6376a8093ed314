"""What the command lines share: flags, exit codes, progress bars, and errors in one sentence.

Exit codes: 0; 1 with one sentence on stderr; 2 for wrong usage; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .errors import Pyllama2Error
from .llama import Llama
from .sampling import SamplingParams


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None, command: Callable[[Any], int]) -> int:
    """Parse argv (None: the process's) and run command on it; returns the exit code."""
    # Text may hold any character, whatever the locale says; a lone surrogate of a file name is escaped.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # --help, or wrong usage
        return end.code if isinstance(end.code, int) else 2
    _configure_log()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return command(args)
    except (Pyllama2Error, ValueError, TypeError, MemoryError) as error:
        return _fail(parser, str(error) or type(error).__name__)
    except BrokenPipeError:  # the reader of our output has gone, which is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(parser, f"{error.filename or ''}: {error.strerror}".removeprefix(": "))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(parser: argparse.ArgumentParser, message: str) -> int:
    print(f"{parser.prog}: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM as an exception, so that temporary files are removed."""
    raise SystemExit(128 + number)


def _configure_log() -> None:
    level = os.environ.get("PYLLAMA2_LOG_LEVEL", "WARNING").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        print(f"PYLLAMA2_LOG_LEVEL={level} is not a level; using WARNING", file=sys.stderr)
        level = "WARNING"
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that make a Llama; see open_model()."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", help="a model file or checkpoint, or smollm2 (default: PYLLAMA2_MODEL, else the demo model)"
    )
    group.add_argument("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    group.add_argument("--quant", choices=("q8", "q4"), help="convert the weights in memory (default: float32)")
    group.add_argument("-c", "--ctx", type=int, metavar="CTX", help="longest sequence in tokens (default: the model's)")
    group.add_argument("-t", "--threads", type=int, help="threads (default: the physical cores)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to compute (default: auto)")
    group.add_argument("--kv-dtype", choices=("float32", "float16", "int8"), help="type of keys and values")
    group.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")


def open_model(args: argparse.Namespace) -> Llama:
    """The Llama that the flags of add_model_flags() ask for."""
    if args.device is not None:
        os.environ["PYLLAMA2_DEVICE"] = args.device  # a flag beats the environment
    llm = Llama(
        args.model,
        n_ctx=args.ctx,
        n_threads=args.threads,
        quant=args.quant,
        kv_dtype=args.kv_dtype,
        tokenizer=args.tokenizer,
        verbose=args.verbose,
    )
    if args.verbose:
        facts = {name: value for name, value in llm.describe().items() if name != "config"}
        print("pyllama2: " + ", ".join(f"{name} {value}" for name, value in facts.items()), file=sys.stderr)
    return llm


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that make SamplingParams; see sampling_params()."""
    defaults = SamplingParams()
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "-n", "--max-tokens", type=int, default=defaults.max_tokens, help="most tokens to generate (%(default)s)"
    )
    group.add_argument("--temperature", type=float, default=defaults.temperature, help="0 is greedy (%(default)s)")
    group.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    group.add_argument(
        "--top-p", type=float, default=defaults.top_p, help="keep the likeliest tokens up to this mass (%(default)s)"
    )
    group.add_argument(
        "--top-k", type=int, default=defaults.top_k, help="keep that many tokens; 0 keeps all (%(default)s)"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=defaults.min_p,
        help="drop tokens below this share of the likeliest (%(default)s)",
    )
    group.add_argument(
        "--repetition-penalty", type=float, default=defaults.repetition_penalty, help="1 is none (%(default)s)"
    )
    group.add_argument("--seed", type=int, help="repeat a text by repeating its seed")
    group.add_argument(
        "--stop", action="append", default=[], metavar="S", help="end the text before this string; may be repeated"
    )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The SamplingParams that the flags of add_sampling_flags() ask for. Raises ValueError."""
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


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress callback that draws a bar on stderr; None when that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    started = time.monotonic()
    drawn = 0.0

    def draw(done: int, total: int, name: str) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn < 0.1 and done < total:
            return
        drawn = now
        filled = 30 * done // total
        rest = (now - started) * (total - done) / done
        bar = "#" * filled + "-" * (30 - filled)
        print(f"\r{label} [{bar}] {100 * done // total:3d}%  {rest:4.0f} s left ", end="", file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        print(file=sys.stderr)
