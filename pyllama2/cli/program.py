"""The program pyllama2: the table of its commands, and what it says when a command is misspelled or missing.

A command NAME is the file pyllama2/NAME.py with two functions: make_parser() returns its CommandParser, and main(argv)
runs it. The file is imported when its command is asked for. This file imports little: --version and errors come at
once, and Ctrl-C during the imports of a command ends it without a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any, cast

from ..errors import Pyllama2Error
from ..shown import shown
from . import other_names
from .parser import CommandParser
from .running import run_guarded

COMMANDS = {
    "generate": "continue a text",
    "chat": "talk to a model",
    "serve": "serve a model over HTTP, with OpenAI's interface",
    "batch": "answer the requests of a file, many at a time",
    "perplexity": "say how well a model predicts a text",
    "export": "turn a checkpoint into a model file",
    "quantize": "make a model file smaller",
    "bench": "measure how fast a model runs",
    "inspect": "say what is in a model, and what it needs",
    "doctor": "say what is on this machine, and what can run here",
    "models": "list the models that are here; get and remove some",
}

_EPILOG = """\
pyllama2 COMMAND --help says more. The first steps:

  pyllama2 generate "Once upon a time"
  pyllama2 chat -m smollm2

--print-completion prints a script that completes commands and flags. In
~/.bashrc, or into a folder of zsh's $fpath:
  eval "$(pyllama2 --print-completion bash)"
  pyllama2 --print-completion zsh > _pyllama2
"""
_SHELLS = ("bash", "zsh", "tcsh")


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command's name and its arguments; None: those of the process.

    Returns:
        Its exit code, or 2 if there is no such command.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return run_guarded("pyllama2", lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        code: int = _command(first).main(arguments[1:])
        return code
    parser = make_parser()
    if first in ("help", "") or not first.startswith("-"):
        if first == "help":
            return _run([*arguments[1:2], "--help"])
        if first:
            parser.error(_about_unknown(first, arguments[1:]))
        parser.print_help(sys.stderr)
        return 2
    if any(argument in COMMANDS for argument in arguments[1:]) and first not in ("-h", "--help"):
        name = next(argument for argument in arguments if argument in COMMANDS)
        rest = [argument for argument in arguments if argument != name]
        parser.error(f"the command comes first: pyllama2 {name} {shown(shlex.join(rest))}")
    args = parser.parse(arguments)
    if args.print_completion:
        print(_completion(args.print_completion))
    return 0


def make_parser(filled: bool = False) -> CommandParser:
    """Make the parser of the program.

    Args:
        filled: with the flags of all commands, whose files are imported then.
    """
    parser = CommandParser("", "Run Llama-2-family models on one machine.", _EPILOG)
    parser.add_argument("--print-completion", choices=_SHELLS, help="print a script of completions for a shell")
    maker = cast(type[CommandParser], _filled if filled else _empty)  # argparse calls it with the options of add_parser
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=maker)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, command=name)
    return parser


def _command(name: str) -> Any:
    with _ctrl_c_in_imports():
        return importlib.import_module(f"pyllama2.{name}")


@contextmanager
def _ctrl_c_in_imports() -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C, also where a package has made an ImportError of it, as numpy does."""
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    except ImportError:
        if came:
            raise KeyboardInterrupt from None
        raise
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _filled(command: str, **options: Any) -> CommandParser:
    parser: CommandParser = _command(command).make_parser()
    return parser


def _empty(command: str, **options: Any) -> CommandParser:
    return CommandParser(command, COMMANDS[command])


def _about_unknown(word: str, rest: Sequence[str]) -> str:
    """What to type instead of a word that is no command."""
    if word in other_names.COMMANDS:
        return f"there is no command {word}; did you mean {other_names.COMMANDS[word]}?"
    if os.path.exists(word) or word.endswith((".bin", ".gguf")):
        return f"a command comes first: pyllama2 chat -m {shown(shlex.quote(word))}"
    lower = word.lower()
    begun = [name for name in COMMANDS if len(lower) > 1 and name.startswith(lower)]
    close = get_close_matches(lower, COMMANDS, 1) or begun
    if close:
        return f"there is no command {shown(word)}; did you mean {close[0]}?"
    words = [word, *rest]
    if " " in word.strip() or (rest and not any(one.startswith("-") for one in words)):
        return f"a command comes first: pyllama2 generate {shown(shlex.quote(' '.join(words)))}"
    return f"there is no command {shown(word)}; there are {', '.join(COMMANDS)}"


def _completion(shell: str) -> str:
    """The script of completions for a shell.

    Raises:
        Pyllama2Error: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise Pyllama2Error('shtab is missing: pip install "pyllama2[cli]"') from None
    parser = make_parser(filled=True)
    for command in _parsers(parser):
        for action in command._actions:
            if action.dest in ("model", "against", "path", "checkpoint", "source", "name"):
                action.complete = _MODELS  # type: ignore[attr-defined]  # what shtab looks for
            elif action.metavar in _FILES or action.dest == "file":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell, preamble=cast(Any, _PREAMBLE))
    return script


# Models are completed from files, and from the names that `pyllama2 models --names` prints.
_MODELS = {"bash": "_pyllama2_models", "zsh": "_pyllama2_models", "tcsh": "f"}
_PREAMBLE = {
    "bash": """
_pyllama2_models() {
  compgen -f -- "$1"
  compgen -W "$(pyllama2 models --names 2>/dev/null)" -- "$1"
}
""",
    "zsh": """
_pyllama2_models() {
  _files
  compadd -- ${(f)"$(pyllama2 models --names 2>/dev/null)"}
}
""",
}
_FILES = ("PATH", "FILE", "OUT", "IN", "TEXT", "CHECKPOINT", "MODEL")


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of all commands."""
    return [
        command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]
