"""python -m pyllama2.inspect: show what is in a model, and what it needs to run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["inspect", *sys.argv[1:]]))

from .analysis.inspection import Inspection, inspect_model, tokenize_text
from .cli.common import naming_environment, positive, read_text, thread_count
from .cli.inspection_text import report, tokens_report
from .cli.parser import CommandParser
from .cli.running import run_command
from .model_names import find_model
from .progress import progress_bar
from .shown import for_json
from .tokenizer.base import Tokenizer

_EPILOG = """\
Tensors have the names of model.py. Layers are shown together, N x a tensor with the bytes of all of them, unless
--layers asks for each. Statistics are of the numbers that quantized weights stand for; of a tensor with more than
262,144 of them a sample is read, 8 rows here and there, and its least and largest numbers are marked with ~.
--exact reads all.

Memory is that of the weights, of keys and values for the whole context, and 0.2 GiB to work in. Speed is what the
machine allows at most: the bytes that a token needs over the rate at which as many bytes were read just now, and the
time of a step that has next to none. pyllama2 bench measures what is reached.

--json prints one object with the fields
  path, kind, source, files        what was read; files with their sizes
  config, quantization             quantization is null for checkpoints of others
  calibration                      how the weights were chosen: method, text, n_tokens, window, sha256, starts,
                                   n_held_out, kl_divergence, kl_standard_error, top_1_agreement, perplexity_ratio;
                                   null without a text
  tokenizer, chat_template         null where there is none
  n_parameters, parameters         all, and by part of the model
  tensors                          name, shape, type, nbytes, statistics (n_read, not_finite, min, max, mean, std)
  context, kv_bytes                tokens, and bytes of their keys and values by type
  available_bytes, cpu_cache_bytes free memory, and the processor's last cache
  n_threads, needs                 for each way to run it: quant, as_stored, weight_bytes, bytes_per_token, bandwidth
                                   (GB/s), total_bytes and speed (tokens/s at_start and at_end of the context) by type
                                   of keys and values
or, with --tokens, text, n_tokens, n_bytes and tokens: id, text, bytes (hexadecimal), special.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("inspect", "Say what is in a model, and what it needs.", _EPILOG)
    add = parser.add_argument
    model_help = (
        "a model file, a checkpoint, or a name such as smollm2 or ORG/NAME (default: PYLLAMA2_MODEL, else demo)"
    )
    add("path", nargs="?", metavar="MODEL", help=model_help)
    add("-m", "--model", help="the same")
    add("--tokens", metavar="TEXT", help='show how a text is tokenized; "-" reads standard input')
    add("--layers", action="store_true", help="show the tensors of each layer")
    add("--exact", action="store_true", help="statistics of all numbers, not of a sample; reads the whole file")
    add("--json", action="store_true", help="print one JSON object")
    add("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    add("-c", "--ctx", type=positive, metavar="CTX", help="tokens to have memory for (default: the model's context)")
    add("-t", "--threads", type=thread_count, help="threads (default: PYLLAMA2_NUM_THREADS, else the physical cores)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, lambda args: _inspect(parser, args))


def _inspect(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.path is not None and args.model is not None:
        parser.error("give either MODEL or -m, not both")
    model = args.path if args.path is not None else args.model
    with naming_environment(model):
        return _inspect_model(find_model(model), args)


def _inspect_model(path: str, args: argparse.Namespace) -> int:
    if args.tokens is not None:
        text = read_text("-", "the text") if args.tokens == "-" else args.tokens
        ids, tokenizer = tokenize_text(path, text, tokenizer=args.tokenizer)
        print(_tokens_json(text, ids, tokenizer) if args.json else tokens_report(text, ids, tokenizer, _colour()))
        return 0
    with progress_bar("inspect") as progress:
        inspection = inspect_model(
            path,
            tokenizer=args.tokenizer,
            n_ctx=args.ctx,
            n_threads=args.threads,
            exact=args.exact,
            progress=progress,
        )
    print(_json(inspection) if args.json else report(inspection, _colour(), layers=args.layers))
    return 0


def _colour() -> bool:
    """Whether to use colours: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _json(inspection: Inspection) -> str:
    return for_json(json.dumps(asdict(inspection), ensure_ascii=False, allow_nan=False))


def _tokens_json(text: str, ids: list[int], tokenizer: Tokenizer) -> str:
    special = set(tokenizer.special_tokens.values())
    tokens = [
        {
            "id": token_id,
            "text": tokenizer.piece(token_id),
            "bytes": tokenizer.token_bytes(token_id).hex(),
            "special": token_id in special,
        }
        for token_id in ids
    ]
    counts = {"n_tokens": len(ids), "n_bytes": len(text.encode())}
    return for_json(json.dumps({"text": text, **counts, "tokens": tokens}, ensure_ascii=False))
