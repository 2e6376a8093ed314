"""Makes links from a page in docs/ to lines of the source.

A place is named by a file's name and what stands in it:

    model.Attention.forward      a class or function of pyllama2/model.py, by its qualified name
    forward.pyx run_layer        a function of a file of _cpu or its kernels
    forward.pyx # attention      a comment line there, and what follows it up to the next blank line
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CPU = ROOT / "pyllama2" / "_cpu"


class PlaceNotFound(ValueError):
    """There is no such place in the source, or more than one."""


def link_to(place: str) -> str:
    """The path relative to docs/, and the lines: ../pyllama2/model.py#L38-L50. Raises PlaceNotFound."""
    if place.startswith("model."):
        path = ROOT / "pyllama2" / "model.py"
        first, last = _python_lines(path, place.removeprefix("model."))
    else:
        name, _, what = place.partition(" ")
        path = next((folder / name for folder in (_CPU, _CPU / "kernels") if (folder / name).exists()), _CPU / name)
        if not path.exists():
            raise PlaceNotFound(f"{place}: there is no {name}")
        first, last = _comment_lines(path, what) if what.startswith("#") else _function_lines(path, what)
    return f"../{path.relative_to(ROOT).as_posix()}#L{first}-L{last}"


@cache
def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _python_lines(path: Path, qualified: str) -> tuple[int, int]:
    node: ast.AST = ast.parse(path.read_text())
    for name in qualified.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        found = [child for child in getattr(node, "body", []) if isinstance(child, kinds) and child.name == name]
        if len(found) != 1:
            raise PlaceNotFound(f"{path.name} has no {qualified}")
        node = found[0]
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
