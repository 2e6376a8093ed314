"""python -m pyllama2.quantize: turn a model file into one of 8 or 4 bits per weight."""

from __future__ import annotations

import argparse
import sys

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["quantize", *sys.argv[1:]]))

from .calibration import quantize
from .cli.parser import CommandParser
from .cli.running import run_command
from .progress import progress_bar
from .shown import one_line
from .storage.weights import GROUP_SIZES

_EPILOG = """\
A q4 file is calibrated unless --no-calibrate is given: its weights are chosen so that the outputs of each matrix change
least on a text. A broad text of 16,384 tokens or more in the model's languages is best (--calibrate a.txt b.txt); the
default is a text that the model writes itself. Some windows of the text are held out, and at the end what the model
lost on them is printed. Never measure a file on the text that it was calibrated on.

An interrupted calibration leaves its finished layers in the folder OUT.partial; the same command goes on from there.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("quantize", "Make a model file smaller.", _EPILOG)
    add = parser.add_argument
    add("source", metavar="IN", help="a model file, or any checkpoint or name that export takes")
    add("-o", "--output", required=True, metavar="OUT", help="the file to write")
    add("--type", choices=("q8", "q4"), help="8 or 4 bits per weight")
    add("--bits", type=float, metavar="B", help="bits per weight, such as 4.5 or 5, spent where the model gains most")
    add(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        default=64,
        help="weights that share a scale",
    )
    add("--output-type", choices=("q8", "q4"), help="type of the output matrix (default: q8)")
    add(
        "--calibrate",
        nargs="+",
        metavar="TEXT",
        help='texts to choose the weights for, UTF-8; or "self", a text that the model writes (default for q4)',
    )
    add("--no-calibrate", action="store_true", help="search each scale by itself: quick, and loses more")
    add("--calibrate-seconds", type=float, metavar="S", help="about how long calibration may take")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, lambda args: _quantize(parser, args))


def _quantize(parser: CommandParser, args: argparse.Namespace) -> int:
    if args.no_calibrate and (args.calibrate or args.calibrate_seconds is not None):
        parser.error("--no-calibrate goes with neither --calibrate nor --calibrate-seconds")
    if args.calibrate_seconds is not None and not args.calibrate_seconds > 0:
        parser.error("--calibrate-seconds must be above 0")
    if args.type is None and args.bits is None:
        parser.error("give --type or --bits")
    if args.bits is not None and (args.type == "q8" or args.no_calibrate):
        parser.error("--bits goes with neither --type q8 nor --no-calibrate")
    calibrate = False if args.no_calibrate else "self" if args.calibrate == ["self"] else args.calibrate

    def say(sentence: str) -> None:
        print(f"quantize: {one_line(sentence)}", file=sys.stderr, flush=True)

    with progress_bar("quantize") as progress:
        quantize(
            args.source,
            args.output,
            args.type or "q4",
            group_size=args.group_size,
            output_type=args.output_type,
            bits=args.bits,
            calibrate=calibrate,
            calibrate_seconds=args.calibrate_seconds,
            progress=progress,
            say=say,
        )
    return 0


# pyllama2.quantize is the function. Importing this file would put the module in its place.
quantize.main = main  # type: ignore[attr-defined]
quantize.make_parser = make_parser  # type: ignore[attr-defined]
sys.modules[__name__] = quantize  # type: ignore[assignment]
