"""The console script pyllama2, and python -m pyllama2: every command line as a subcommand."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "generate": "continue a text",
    "chat": "talk to a model",
    "export": "turn a checkpoint into a model file",
    "quantize": "make a model file of 8 or 4 bits per weight",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns its exit code, 2 when there is none of that name."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        module = importlib.import_module(f"pyllama2.{arguments[0]}")
        code: int = module.main(arguments[1:])
        return code
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    print("usage: pyllama2 COMMAND ... (COMMAND --help says more)\n\n" + "\n".join(lines),
          file=sys.stdout if asked else sys.stderr)  # fmt: skip
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
