"""python -m pyllama2.export: turn any checkpoint into one of our files."""

from __future__ import annotations

import argparse
import sys

from .cli.common import CommandParser, positive, run_command
from .cli.progress import progress_bar
from .convert import export


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = CommandParser("export", "Turn a checkpoint into a model file.")
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="Meta's or Hugging Face's directory, .gguf, llama2.c .bin, model file")
    add("-o", "--output", required=True, metavar="OUT", help="the file to write")
    add("--dtype", choices=("float32", "float16"), default="float32", help="type of the matrices (%(default)s)")
    add("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    add("--max-seq-len", type=positive, metavar="N", help="longest sequence in tokens, instead of the checkpoint's")
    add("--norm-eps", type=float, metavar="X", help="epsilon of RMSNorm, instead of the checkpoint's")
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


if __name__ == "__main__":
    sys.exit(main())

# pyllama2.export is the function. Importing this file would put the module in its place.
export.main = main  # type: ignore[attr-defined]
sys.modules[__name__] = export  # type: ignore[assignment]
