"""The console script pyllama2, and python -m pyllama2: each command is a subcommand."""

import sys

from .cli.program import COMMANDS, main

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(main())
