"""python -m pyllama2.quantize: turn a model file into one of 8 or 4 bits per weight."""

from __future__ import annotations

import argparse
import sys

from .cli.common import CommandParser, run_command
from .cli.progress import progress_bar
from .convert import quantize
from .storage.weights import GROUP_SIZES


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = CommandParser("quantize", "Make a model file smaller.")
    add = parser.add_argument
    add("source", metavar="IN", help="a model file, or any checkpoint that export reads")
    add("-o", "--output", required=True, metavar="OUT", help="the file to write")
    add("--type", choices=("q8", "q4"), required=True, help="8 or 4 bits per weight")
    add("--group-size", type=int, choices=GROUP_SIZES, default=64, help="weights that share a scale (%(default)s)")
    add("--output-type", choices=("q8", "q4"), help="type of the output matrix (default: q8)")
    return run_command(parser, argv, _quantize)


def _quantize(args: argparse.Namespace) -> int:
    with progress_bar("quantize") as progress:
        quantize(
            args.source,
            args.output,
            args.type,
            group_size=args.group_size,
            output_type=args.output_type,
            progress=progress,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

# pyllama2.quantize is the function. Importing this file would put the module in its place.
quantize.main = main  # type: ignore[attr-defined]
sys.modules[__name__] = quantize  # type: ignore[assignment]
