"""python -m pyllama2.export: turn any checkpoint into one of our files."""

from __future__ import annotations

import argparse
import sys

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["export", *sys.argv[1:]]))

from .cli.common import positive
from .cli.parser import CommandParser
from .cli.running import run_command
from .convert import export
from .progress import progress_bar


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("export", "Turn a checkpoint into a model file.")
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a directory of Meta or Hugging Face, .gguf, .bin, or a model's name")
    add("-o", "--output", required=True, metavar="OUT", help="the file to write")
    add("--dtype", choices=("float32", "float16", "q8"), default="float32", help="type of the matrices; q8 in GGUF")
    add("--format", choices=("pyllama2", "gguf", "huggingface"), default="pyllama2", help="format of OUT")
    add("--lora", action="append", default=[], metavar="PATH[:SCALE]", help="a LoRA adapter to merge; may be repeated")
    add("--tokenizer", metavar="PATH", help="a tokenizer file, for checkpoints without one")
    add("--max-seq-len", type=positive, metavar="N", help="longest sequence in tokens, instead of the checkpoint's")
    add("--norm-eps", type=float, metavar="X", help="epsilon of RMSNorm, instead of the checkpoint's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    return run_command(make_parser(), argv, _export)


def _export(args: argparse.Namespace) -> int:
    with progress_bar("export") as progress:
        export(
            args.checkpoint,
            args.output,
            dtype=args.dtype,
            format=args.format,
            lora=args.lora,
            tokenizer=args.tokenizer,
            max_seq_len=args.max_seq_len,
            norm_eps=args.norm_eps,
            progress=progress,
        )
    return 0


# pyllama2.export is the function. Importing this file would put the module in its place.
export.main = main  # type: ignore[attr-defined]
export.make_parser = make_parser  # type: ignore[attr-defined]
sys.modules[__name__] = export  # type: ignore[assignment]
