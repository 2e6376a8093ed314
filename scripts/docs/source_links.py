"""Makes links from a page in docs/ to lines of the source.

A place is a file of the package and what stands in it. A file is named by its path in pyllama2/, or by its name alone
when no other file has it:

    model.py Attention.forward      a class or function, by its qualified name
    generation/engine.py Engine
    forward.pyx run_layer           a function of Cython or C
    forward.pyx # attention         a comment line, and what follows it up to the next blank line

A page links to a place by [text][PLACE]. definitions() says where these lead.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyllama2"


class PlaceNotFound(ValueError):
    """There is no such place in the source, or more than one."""


def definitions(page: str) -> list[str]:
    """The lines `[PLACE]: link` for the places that a page links to, in alphabetical order. Raises PlaceNotFound."""
    places = {" ".join(place.split()) for place in re.findall(r"\]\[([^\]]+)\]", page)}
    return [f"[{place}]: {link_to(place)}" for place in sorted(places)]


def link_to(place: str) -> str:
    """The path relative to docs/, and the lines: ../pyllama2/model.py#L38-L50. Raises PlaceNotFound."""
    name, _, what = place.partition(" ")
    paths = [PACKAGE / name] if (PACKAGE / name).is_file() else list(PACKAGE.rglob(name))
    if len(paths) != 1:
        raise PlaceNotFound(f"{place}: there are {len(paths)} files {name}")
    path = paths[0]
    if what.startswith("#"):
        first, last = _comment_lines(path, what)
    elif path.suffix == ".py":
        first, last = _python_lines(path, what)
    else:
        first, last = _function_lines(path, what)
    return f"../{path.relative_to(ROOT).as_posix()}#L{first}-L{last}"


@cache
def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _python_lines(path: Path, qualified: str) -> tuple[int, int]:
    node: ast.AST = ast.parse(path.read_text())
    for name in qualified.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [child for child in getattr(node, "body", []) if isinstance(child, kinds) and child.name == name]
        if not found:
            raise PlaceNotFound(f"{path.name} has no {qualified}")
        node = found[-1]  # after its overloads
    return node.lineno, node.end_lineno or node.lineno


def _function_lines(path: Path, name: str) -> tuple[int, int]:
    """Find a function or a method, from its first line to the end of its body."""
    lines = _lines(path)
    head = re.compile(rf"( *)(?:c?p?def|TARGET|static)\b[^=]*?\b(?:NAME\()?{re.escape(name)}\)?\(")
    starts = [(i, match[1]) for i, line in enumerate(lines) if (match := head.match(line))]
    starts = [(i, margin) for i, margin in starts if not lines[i].rstrip().endswith(";")]
    if len(starts) != 1:
        raise PlaceNotFound(f"{path.name} has {len(starts)} functions called {name}")
    start, margin = starts[0]
    end = start + 1
    if path.suffix == ".h":
        while not lines[end].startswith("}"):
            end += 1
        return start + 1, end + 1
    # The signature may go on for some lines; the body is indented further than the head.
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(margin + " ")):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    return start + 1, end


def _comment_lines(path: Path, comment: str) -> tuple[int, int]:
    lines = _lines(path)
    starts = [i for i, line in enumerate(lines) if line.strip() == comment or line.strip().startswith(comment + " ;")]
    if len(starts) != 1:
        raise PlaceNotFound(f"{path.name} has {len(starts)} lines {comment!r}")
    end = starts[0]
    while end < len(lines) and lines[end].strip():
        end += 1
    return starts[0] + 1, end
