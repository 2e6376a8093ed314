"""What the commands share: flags of the model and of sampling, and what they do with them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .._cpu.threads import n_processors
from ..backend import asked_device
from ..backend.kv_cache import KV_DTYPES
from ..errors import CheckpointError
from ..generation.completion import Completion
from ..llama import Llama
from ..sampling.params import SamplingParams
from ..shown import for_terminal
from .sampling_flags import add_constraint_flags, add_penalty_flags, with_escapes


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


def thread_count(text: str) -> int:
    """Parse a number of threads, at most the processors that this process may use. For argparse's type=."""
    wanted, most = positive(text), n_processors()
    if wanted > most:
        warnings.warn(f"{wanted} threads are more than the {most} processors here: {most} are used", stacklevel=2)
    return min(wanted, most)


class Devices:
    """The values of --device, for argparse's choices=: those that help and completion show, and numbered GPUs."""

    def __iter__(self) -> Iterator[str]:
        return iter(("auto", "cpu", "cuda"))

    def __contains__(self, text: str) -> bool:
        try:
            return bool(asked_device(text))
        except ValueError as error:  # it says more than argparse, which names the three alone
            raise argparse.ArgumentError(None, str(error)) from None


def layer_count(text: str) -> int:
    """Parse a number of layers, or -1 for all. For argparse's type=; raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        value = -2
    if value < -1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of layers, or -1 for all")
    return value


@contextmanager
def naming_environment(model: str | None) -> Iterator[None]:
    """Say in an error about a model that the environment named it, if no flag did.

    Args:
        model: what -m says; None: nothing.
    """
    try:
        yield
    except CheckpointError as error:
        if model is not None or not os.environ.get("PYLLAMA2_MODEL"):
            raise
        raise CheckpointError(f"{error} (the environment variable PYLLAMA2_MODEL names this model)") from error


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


DEVICE_HELP = "where to compute, also cuda:1, or cuda:0,cuda:1 for both (default: PYLLAMA2_DEVICE, else auto)"
_QUANTS = ("auto", "float32", "float16", "q8", "q4")


def add_model_flags(
    parser: argparse.ArgumentParser,
    *,
    ctx_help: str = "longest sequence in tokens (default: the model's)",
    threads: Callable[[str], int] = thread_count,
) -> None:
    """Add the flags that open_model() reads."""
    add = parser.add_argument_group("model").add_argument
    add(
        "-m",
        "--model",
        help="a model file, a checkpoint, or a name such as smollm2 or ORG/NAME (default: PYLLAMA2_MODEL, else demo)",
    )
    add("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    add("--quant", choices=_QUANTS, default="auto", help="convert the weights in memory (default: as memory allows)")
    add("--lora", action="append", default=[], metavar="PATH[:SCALE]", help="a LoRA adapter; may be repeated")
    add("--keep", action="store_true", help="keep a converted model for the next start, in ~/.cache/pyllama2")
    add("-c", "--ctx", type=positive, metavar="CTX", help=ctx_help)
    add("-t", "--threads", type=threads, help="threads (default: PYLLAMA2_NUM_THREADS, else the physical cores)")
    add("--cpu-affinity", metavar="CPUS", help='bind threads to CPUs, such as 0-3,8, or "cores": one of each core')
    add("--device", choices=Devices(), help=DEVICE_HELP)
    add("--n-gpu-layers", type=layer_count, metavar="N", help="layers on the GPU, -1 for all (default: as many as fit)")
    add(
        "--kv-dtype",
        choices=("auto", *KV_DTYPES),
        help="type of keys and values; auto: int8 if the context fits only so (default: the device's)",
    )
    add("--no-prompt-lookup", action="store_true", help="do not guess tokens from what the text has said before")
    add("--draft", metavar="MODEL", help='guess tokens by a smaller model, or by "self", the model in fewer bits')
    add("-v", "--verbose", action="store_true", help="say more on stderr: device, model, GB/s, time by step")


def open_model(args: argparse.Namespace) -> Llama:
    """Open the model that the flags of add_model_flags() name.

    Raises:
        Pyllama2Error, ValueError: as Llama() does.
    """
    with naming_environment(args.model):
        llm = Llama(
            args.model,
            device=args.device,
            n_gpu_layers=args.n_gpu_layers,
            n_ctx=args.ctx,
            n_threads=args.threads,
            cpu_affinity=args.cpu_affinity,
            quant=args.quant,
            lora=args.lora,
            keep=args.keep,
            kv_dtype=args.kv_dtype,
            tokenizer=args.tokenizer,
            prompt_lookup=not args.no_prompt_lookup,
            draft=args.draft,
            context=getattr(args, "context_mode", "stop"),
            progress=False if getattr(args, "quiet", False) else None,
        )
    facts = ", ".join(f"{name} {value}" for name, value in llm.describe().items() if name != "config")
    logging.getLogger("pyllama2").info("%s", facts)
    return llm


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that sampling_params() reads."""
    default = SamplingParams()
    add = parser.add_argument_group("sampling").add_argument
    add(
        "-n",
        "--max-tokens",
        type=int,
        default=default.max_tokens,
        help="most tokens to generate",
    )
    add("--temperature", type=float, default=default.temperature, help="0 is greedy")
    add("--greedy", action="store_true", help="the same as --temperature 0")
    add(
        "--top-p",
        type=float,
        default=default.top_p,
        help="the likeliest tokens up to this mass; 1 is off",
    )
    add("--top-k", type=int, default=default.top_k, help="the likeliest so many tokens; 0 is off")
    add(
        "--min-p",
        type=float,
        default=default.min_p,
        help="no token below this share of the likeliest",
    )
    add("--repetition-penalty", type=float, default=default.repetition_penalty, help="1 is off")
    add_penalty_flags(add, default)
    add("--seed", type=int, help="the same seed gives the same text (default: another each time)")
    stop_help = r"end the text before this string, where \n is a line break; may be repeated"
    add("--stop", action="append", type=with_escapes, default=[], metavar="S", help=stop_help)
    roll_help = "what a full context does to the text: it ends, or goes on with the beginning and the newest half"
    add("--context", dest="context_mode", choices=("stop", "roll"), default="stop", help=roll_help)
    add("--ignore-eos", action="store_true", help="go on after the model's own end of the text")
    add_constraint_flags(parser)


def sampling_params(parser: argparse.ArgumentParser, args: argparse.Namespace) -> SamplingParams:
    """Make SamplingParams from the flags of add_sampling_flags(). Values out of range are wrong usage (exit code 2).

    Raises:
        OSError: a file of --json-schema or --grammar cannot be read.
        ValueError: it is not UTF-8.
    """
    schema = None if args.json_schema is None else read_text(args.json_schema, "the JSON schema")
    grammar = None if args.grammar is None else read_text(args.grammar, "the grammar")
    try:
        return SamplingParams(
            temperature=0.0 if args.greedy else args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            repetition_window=args.repetition_window,
            presence_penalty=args.presence_penalty,
            frequency_penalty=args.frequency_penalty,
            logit_bias=dict(args.logit_bias) or None,
            ignore_eos=args.ignore_eos,
            max_tokens=args.max_tokens,
            stop=args.stop,
            seed=args.seed,
            json_schema=schema,
            regex=args.regex,
            grammar=grammar,
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
        if timings.guesses:
            line += f"; {timings.guesses_true} of {timings.guesses} guesses came true"
        line += f", {timings.decode_tokens_per_s * llm.describe()['bytes_per_token'] / 1e9:.2f} GB/s"
    return line
