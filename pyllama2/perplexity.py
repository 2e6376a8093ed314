"""python -m pyllama2.perplexity: measure how well a model predicts a text."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["perplexity", *sys.argv[1:]]))

from .analysis.evaluation import Perplexity, perplexity
from .cli.common import add_model_flags, open_model, positive, read_text
from .cli.parser import CommandParser
from .cli.running import run_command
from .progress import progress_bar
from .shown import shown

_EPILOG = """\
Perplexity is exp(-mean(log p(token | the tokens before it))). The text is cut into windows of at most -c tokens,
each begun with BOS where the model has one. The first window scores all of its tokens; every later one moves on
by --stride tokens and scores these alone, with the rest of the window as their context. The first token of the
text is not counted. Bits per byte, of UTF-8, compare models whose vocabularies differ.

--against gives KL(against || model) in nats: its mean over tokens, the standard error of that mean over windows, and
its 99th percentile. It also gives how often both find the same next token likeliest, and perplexity over that of the
model compared with. Several texts get a line each, and the same figures for all together. The model compared with is
taken as it is: --quant and --kv-dtype are for -m alone.

--json prints one object with the fields
  perplexity         exp of the mean negative log-probability per token
  bits_per_byte      the same in bits, per byte of UTF-8
  n_tokens, n_bytes  what was scored
  window, stride     in tokens, as they were used
  kl_divergence, kl_standard_error, kl_divergence_p99, top_1_agreement,
  perplexity_ratio   null without --against
  documents          a list of such objects, one for each of several texts; else null
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    description = "Say how well a model predicts a text, and how close it is to another model."
    parser = CommandParser("perplexity", description, _EPILOG)
    parser.add_argument(
        "-f", "--file", required=True, nargs="+", metavar="TEXT", help='texts, UTF-8; "-" is standard input'
    )
    parser.add_argument("--against", metavar="MODEL", help="a model to compare with, of the same vocabulary")
    parser.add_argument("--stride", type=positive, metavar="N", help="tokens a window scores (default: half of it)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_model_flags(parser, ctx_help="tokens of a window (default: the model's context, but at most 1024)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, lambda args: _perplexity(parser, args))


def _perplexity(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.ctx is not None and args.stride is not None and args.stride >= args.ctx:
        parser.error(f"--stride {args.stride} must be below -c {args.ctx}")
    texts = [read_text(path, "the text") for path in args.file]
    text = texts[0] if len(texts) == 1 else texts
    with ExitStack() as stack:
        llm = stack.enter_context(open_model(args))
        against = None
        if args.against is not None:
            changed = {**vars(args), "model": args.against, "quant": None, "kv_dtype": None, "keep": False, "lora": []}
            against = stack.enter_context(open_model(argparse.Namespace(**changed)))
        with progress_bar("perplexity") as progress:
            result = perplexity(llm, text, against=against, window=args.ctx, stride=args.stride, progress=progress)
    print(json.dumps(asdict(result)) if args.json else _lines(result, args.file))
    return 0


def _lines(result: Perplexity, paths: list[str]) -> str:
    lines = _document_lines(result.documents, paths) if result.documents is not None else []
    lines += [
        f"perplexity: {result.perplexity:.4f} ({result.n_tokens} tokens in windows of {result.window}, "
        f"stride {result.stride})",
        f"bits per byte: {result.bits_per_byte:.4f} ({result.n_bytes} bytes)",
    ]
    if result.kl_divergence is not None:
        lines += [
            f"KL divergence: {result.kl_divergence:.6f} nats{_error(result)}, "
            f"99th percentile {result.kl_divergence_p99:.6f}",
            f"top-1 agreement: {100 * (result.top_1_agreement or 0):.2f}%",
            f"perplexity ratio: {result.perplexity_ratio:.4f}",
        ]
    return "\n".join(lines)


def _error(result: Perplexity) -> str:
    return "" if result.kl_standard_error is None else f" (standard error {result.kl_standard_error:.6f})"


def _document_lines(documents: tuple[Perplexity, ...], paths: list[str]) -> list[str]:
    """One line for each text."""
    lines = []
    for path, one in zip(paths, documents, strict=True):
        line = f"{shown(path)}: perplexity {one.perplexity:.4f}, {one.n_tokens} tokens"
        if one.kl_divergence is not None:
            line += (
                f", KL {one.kl_divergence:.6f}{_error(one)}, top-1 {100 * (one.top_1_agreement or 0):.2f}%, "
                f"perplexity ratio {one.perplexity_ratio:.4f}"
            )
        lines.append(line)
    return lines


# pyllama2.perplexity is the function. Importing this file would put the module in its place.
perplexity.main = main  # type: ignore[attr-defined]
perplexity.make_parser = make_parser  # type: ignore[attr-defined]
sys.modules[__name__] = perplexity  # type: ignore[assignment]
