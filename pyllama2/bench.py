"""python -m pyllama2.bench: how fast a model runs here, and what share of the memory bandwidth decoding reaches."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import Any

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["bench", *sys.argv[1:]]))

from .analysis.benchmark import run_benchmark
from .backend import asked_device, placed_threads, select_backend
from .checkpoint.title import title_of
from .cli.common import add_model_flags, naming_environment, positive
from .cli.parser import CommandParser
from .cli.running import run_command
from .errors import ContextLengthError
from .loading import load_model
from .memory import with_fitting_cache
from .model_names import find_model
from .progress import progress_bar
from .shown import for_json

_PROMPT_TOKENS, _NEW_TOKENS = 512, 64

_EPILOG = """\
The prompt is processed from an empty cache. Decoding starts at position 0, or after --context tokens whose keys and
values are made up, not computed. Speeds are medians over the repeats, with the lowest and the highest.

"read" is decode tokens/s times the bytes that a token needs: all weights but the embedding's other rows, and the keys
and values of the positions before it. "bandwidth" is what the same threads read from a large buffer, between the
repeats. A model that fits in the processor's cache may exceed it. "logits" is a hash of every logit computed: it
changes with the instruction set and the model, not with the number of threads.

--json prints one object with these figures; speeds are objects of median, min and max, in tokens/s or GB/s (10^9
bytes).
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("bench", "Measure how fast a model runs here.", _EPILOG)
    add = parser.add_argument
    add(
        "--prompt-tokens",
        type=positive,
        metavar="N",
        help=f"tokens of prompt (default: {_PROMPT_TOKENS} if it fits)",
    )
    add("--new-tokens", type=positive, metavar="N", help=f"tokens to decode (default: {_NEW_TOKENS}, if they fit)")
    add("--context", type=_not_negative, default=0, metavar="N", help="position of the first decoded token")
    add("--repeat", type=positive, default=3, metavar="N", help="measurements of each")
    add("--json", action="store_true", help="print one JSON object")
    add_model_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    return run_command(make_parser(), argv, _bench)


def _not_negative(text: str) -> int:
    return 0 if text.strip() == "0" else positive(text)


def _bench(args: argparse.Namespace) -> int:
    cpus, n_threads = placed_threads(args.cpu_affinity, args.threads)
    kv_dtype = None if args.kv_dtype == "auto" else args.kv_dtype
    select_backend(args.device, n_gpu_layers=args.n_gpu_layers)  # before weights are converted, which may take long
    with naming_environment(args.model), progress_bar("convert") as progress:
        path = find_model(args.model)
        model = load_model(
            path,
            quant=args.quant,
            quantized=asked_device(args.device).startswith("cuda"),
            lora=args.lora,
            keep=args.keep,
            tokenizer=args.tokenizer,
            n_ctx=args.ctx,
            kv_dtype=args.kv_dtype,
            n_threads=n_threads,
            progress=progress,
        )
    make_backend, _ = select_backend(args.device, model, kv_dtype, args.n_gpu_layers, cpus)
    n_ctx = args.ctx or model.config.max_seq_len
    n_prompt, n_new = _lengths(args, n_ctx)
    with closing(
        with_fitting_cache(lambda dtype: make_backend(model, n_threads=n_threads, kv_dtype=dtype), args.kv_dtype, n_ctx)
    ) as backend:
        name = title_of(path)
        report = run_benchmark(name, model, backend, n_prompt, n_new, args.context, args.repeat)
    print(for_json(report.to_json()) if args.json else report)
    return 0


def _lengths(args: Any, n_ctx: int) -> tuple[int, int]:
    """Numbers of prompt tokens and new tokens: those asked for, else the defaults or as many as fit.

    Raises:
        ContextLengthError: what was asked for does not fit.
    """
    n_prompt = args.prompt_tokens or min(_PROMPT_TOKENS, n_ctx)
    n_new = args.new_tokens or max(1, min(_NEW_TOKENS, n_ctx - args.context))
    if n_prompt > n_ctx:
        raise ContextLengthError(f"a prompt of {n_prompt} tokens does not fit in a context of {n_ctx}")
    if args.context + n_new > n_ctx:
        raise ContextLengthError(
            f"decoding {n_new} tokens from position {args.context} on needs a context of {args.context + n_new}, "
            f"and it has {n_ctx}"
        )
    return n_prompt, n_new
