"""Write docs/api.md: every public name of the package and every command line, from their docstrings and parsers.

    python scripts/docs/make_api_docs.py            # write it
    python scripts/docs/make_api_docs.py --check    # exit 1 if it is not what would be written

tests/project/test_api_docs.py does the latter; run the script after a change of a public signature, docstring or flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "api.md"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

HEAD = """\
# The interface of pyllama2

Made by `python scripts/docs/make_api_docs.py` from the docstrings; change those, not this page.

In signatures, a Prompt is a string or a sequence of token ids, a Message a mapping with the strings "role" and
"content", a FilePath a string or os.PathLike, and Progress a function of (done, total, name).
"""
_EMPTY = inspect.Parameter.empty


def page() -> str:
    """All of docs/api.md."""
    import pyllama2
    from pyllama2.__main__ import COMMANDS

    names = sorted(pyllama2.__all__, key=str.lower)
    public = {name: getattr(pyllama2, name) for name in names if name != "__version__"}
    classes = {name: value for name, value in public.items() if isinstance(value, type)}
    errors = {name: value for name, value in classes.items() if issubclass(value, Exception)}
    results = {name: value for name, value in classes.items() if dataclasses.is_dataclass(value)}
    results |= {value.__name__: value for value in _returned(classes["Llama"]) if value.__name__ not in classes}
    functions = {name: value for name, value in public.items() if name not in classes}
    parts = [HEAD, "## Llama\n", *_class("Llama", pyllama2.Llama), "## Functions\n"]
    for name, value in functions.items():
        parts += _function(f"pyllama2.{name}", _unwrapped(value), level=3)
    parts.append("## Parameters and results\n")
    for name, value in sorted(results.items()):
        parts += [f"### {name}\n", *_class(name, value)]
    parts.append("## Errors\n")
    for name, value in sorted(errors.items(), key=lambda item: (len(item[1].__mro__), item[0])):
        parts.append(f"`{name}({value.__bases__[0].__name__})`: {_text(value)}\n")
    parts.append("## Command lines\n\nEach is `python -m pyllama2.NAME` and `pyllama2 NAME`.\n")
    for name in COMMANDS:
        parts += _command(name)
    return "\n".join(parts).rstrip() + "\n"


def _returned(owner: type) -> list[type]:
    """Classes of the package that methods of owner return and that are not private."""
    found: dict[str, type] = {}
    for name, value in _members(owner):
        function = value.fget if isinstance(value, property) else value
        result = vars(sys.modules[owner.__module__]).get(_return_of(function))
        if isinstance(result, type) and result.__module__.startswith("pyllama2."):
            found[name] = result
    return sorted(set(found.values()), key=lambda value: value.__name__)


def _unwrapped(value: Any) -> Any:
    """The function behind a name that is a callable module once its command line was imported."""
    if inspect.ismodule(value):
        return getattr(value, value.__name__.rpartition(".")[2])
    return value


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class in the order of its source."""
    for name, value in vars(owner).items():
        if not name.startswith("_") and (callable(value) or isinstance(value, (property, classmethod, staticmethod))):
            yield name, value


def _class(name: str, owner: type) -> Iterator[str]:
    if dataclasses.is_dataclass(owner):
        yield _code(f"class {name}", [_field(field) for field in dataclasses.fields(owner)])
    elif "__init__" in vars(owner) and name in importlib.import_module("pyllama2").__all__:
        yield _signature(name, owner.__init__)
    yield from _docstring(owner)
    for member, value in _members(owner):
        if isinstance(value, property):
            yield f"#### {name}.{member}\n"
            yield f"    {name}.{member}: {_return_of(value.fget)}\n"
            yield from _docstring(value)
        else:
            yield from _function(f"{name}.{member}", getattr(value, "__func__", value), level=4)


def _function(name: str, function: Any, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}\n"
    yield _signature(name, function)
    yield from _docstring(function)


def _docstring(value: Any) -> Iterator[str]:
    """The first sentence or two as text; what is aligned by hand stays as it is."""
    text = _text(value)
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        aligned = any("  " in line.strip() or line.startswith(" ") for line in lines)
        yield (
            "\n".join(f"    {line}" if aligned else line for line in lines).replace("<", "&lt;" if not aligned else "<")
            + "\n"
        )


def _text(value: Any) -> str:
    text = inspect.getdoc(value)
    if not text:
        raise SystemExit(f"{getattr(value, '__qualname__', value)} has no docstring")
    return text


def _field(field: dataclasses.Field[Any]) -> str:
    default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
    return f"{field.name}: {field.type}{default}"


def _return_of(function: Any) -> str:
    return str(function.__annotations__.get("return", "None"))


def _signature(name: str, function: Any) -> str:
    """A signature with annotations as they are written, whatever version of Python runs this."""
    parts: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        starred = starred or prefix == "*"
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        annotation = "" if parameter.annotation is _EMPTY else f": {parameter.annotation}"
        default = "" if parameter.default is _EMPTY else f" = {parameter.default!r}"
        parts.append(f"{prefix}{parameter.name}{annotation}{default}")
    result = "" if function.__name__ == "__init__" else f" -> {_return_of(function)}"
    return _code(name, parts, result)


def _code(head: str, parts: list[str], result: str = "") -> str:
    """A call, or a class with its fields, on one line if it fits."""
    line = f"{head}({', '.join(parts)}){result}"
    if len(line) <= 110:
        return f"    {line}\n"
    return "\n".join([f"    {head}(", *(f"        {part}," for part in parts), f"    ){result}"]) + "\n"


def _command(name: str) -> Iterator[str]:
    """What --help says, in a form that is the same in all versions of Python."""
    parser = _parser(name)
    yield f"### {parser.prog}\n"
    yield f"{parser.description}\n"
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        yield f"{(group.title or '').capitalize()}:\n"
        rows = [(_invocation(action), _help(parser, action)) for action in actions]
        width = max(len(left) for left, _ in rows)
        yield "\n".join(f"    {left:<{width}}  {right}".rstrip() for left, right in rows) + "\n"
    if parser.epilog:
        yield "\n".join(f"    {line}".rstrip() for line in parser.epilog.strip().splitlines()) + "\n"


def _invocation(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    metavar = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else action.dest.upper()
    )
    if not action.option_strings:
        return f"[{metavar}]" if action.nargs == "?" else str(metavar)
    return ", ".join(action.option_strings) + f" {metavar}" + (" (required)" if action.required else "")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}


class _Caught(Exception):
    """Carries the parser of a command line out of it."""


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command line, taken when it is about to parse."""

    def catch(parser: argparse.ArgumentParser, *arguments: object) -> None:
        raise _Caught(parser)

    module = importlib.import_module(f"pyllama2.{name}")
    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch):
        try:
            module.main([])
        except _Caught as caught:
            parser = caught.args[0]
            assert isinstance(parser, argparse.ArgumentParser)
            return parser
    raise SystemExit(f"pyllama2 {name} parses no arguments")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write docs/api.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    wanted = page()
    if not parser.parse_args().check:
        PAGE.write_text(wanted)
        return 0
    return 0 if PAGE.exists() and PAGE.read_text() == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
