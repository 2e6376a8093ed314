"""python -m pyllama2.export: any checkpoint to one of our files. The work is done in convert.py."""

from __future__ import annotations

import argparse
import sys

from .callable_module import make_callable
from .command_line import progress_bar, run_command
from .convert import export


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pyllama2.export", description="Turn a checkpoint into a model file.")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a directory of Meta's or of Hugging Face, a .gguf, a llama2.c .bin, or a model file",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="type of the weights (%(default)s)"
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    parser.add_argument("--max-seq-len", type=int, metavar="N", help="context length instead of the checkpoint's")
    parser.add_argument("--norm-eps", type=float, metavar="X", help="RMSNorm's epsilon instead of the checkpoint's")
    return run_command(parser, argv, _export)


def _export(args: argparse.Namespace) -> int:
    with progress_bar("export") as progress:
        export(
            args.checkpoint,
            args.output,
            dtype=args.dtype,
            tokenizer=args.tokenizer,
            max_seq_len=args.max_seq_len,
            norm_eps=args.norm_eps,
            progress=progress,
        )
    return 0


make_callable(__name__, export)

if __name__ == "__main__":
    sys.exit(main())
