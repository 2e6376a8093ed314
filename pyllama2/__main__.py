"""The console script pyllama2, and python -m pyllama2: each command is a subcommand."""

from __future__ import annotations

import importlib
import sys

from . import __version__
from .cli.common import run_guarded

COMMANDS = {
    "generate": "continue a text",
    "chat": "talk to a model",
    "serve": "serve a model over HTTP, with OpenAI's interface",
    "perplexity": "say how well a model predicts a text",
    "export": "turn a checkpoint into a model file",
    "quantize": "make a model file smaller",
    "bench": "measure how fast a model runs",
    "inspect": "say what is in a model, and what it needs",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the subcommand and its arguments; None: those of the process.

    Returns:
        Its exit code, or 2 if there is no such subcommand.
    """
    arguments = sys.argv[1:] if argv is None else argv
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        module = importlib.import_module(f"pyllama2.{first}")
        code: int = module.main(arguments[1:])
        return code
    return run_guarded("pyllama2", lambda: _print_usage(first))


def _print_usage(argument: str) -> int:
    if argument == "--version":
        print(f"pyllama2 {__version__}")
        return 0
    asked_for_help = argument in ("-h", "--help")
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    usage = "\n".join(["usage: pyllama2 COMMAND ... | --version", "", *lines, "", "COMMAND --help says more."])
    print(usage, file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main())
