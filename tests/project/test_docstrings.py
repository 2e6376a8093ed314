"""Docstrings are in Google style, as editors fold it: what they say of arguments is complete, and in sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyllama2"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def documented(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """Functions and classes with their docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (docstring := ast.get_docstring(node)):
            yield node, docstring


def entries(docstring: str, section: str) -> list[str]:
    """The entries of a section: the name of each, a colon and the text."""
    found = re.search(rf"^{section}:\n((?:    .*\n|\n(?=    ))*)", f"{docstring}\n", re.MULTILINE)
    return re.split(r"\n(?! )", re.sub(r"^    ", "", found[1], flags=re.MULTILINE).strip()) if found else []


def test_entries_are_seen() -> None:
    docstring = (
        "Do.\n\nArgs:\n    x: a thing\n        of two lines.\n    *rest: more.\n\nRaises:\n    ValueError: never."
    )
    assert entries(docstring, "Args") == ["x: a thing\n    of two lines.", "*rest: more."]
    assert entries(docstring, "Raises") == ["ValueError: never."] and entries(docstring, "Attributes") == []


def names_of(texts: list[str]) -> list[str]:
    """What entries are about; one entry may be about several: "rows, positions: ..."."""
    return [name.lstrip("*") for text in texts for name in text.partition(":")[0].split(", ")]


def parameters(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """Names of the parameters of a function, or of a class's __init__."""
    if isinstance(node, ast.ClassDef):
        inits = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        return parameters(inits[0]) if inits else []
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [argument.arg for argument in every if argument and argument.arg not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arguments(path: Path) -> None:
    """Where any is documented, all are, in their order."""
    for node, docstring in documented(path):
        names = names_of(entries(docstring, "Args"))
        assert names in ([], parameters(node)), f"{node.name}: {names}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_fields_of_dataclasses(path: Path) -> None:
    for node, docstring in documented(path):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            fields = [field.target.id for field in node.body if isinstance(field, ast.AnnAssign)]  # type: ignore[union-attr]
            names = names_of(entries(docstring, "Attributes"))
            assert names in ([], fields), f"{node.name}: {names}"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_entries_are_sentences(path: Path) -> None:
    for node, docstring in documented(path):
        for section in ("Args", "Attributes", "Raises"):
            for entry in entries(docstring, section):
                name, colon, text = entry.partition(": ")
                assert colon and re.fullmatch(r"[\w*.]+(, \w+)*", name) and text.endswith("."), f"{node.name}: {entry}"
