"""What the documents name in backticks exists: paths, classes and their members, functions, flags, variables."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(ROOT.glob("docs/*.md"))
SCRIPTS = [path for folder in ("scripts", "benchmarks", "examples") for path in sorted(ROOT.glob(f"{folder}/**/*.py"))]
# Names of other programs, files of the reader, mathematics, and what a reader puts a name for.
FOREIGN = {
    "cp", "mv", "fmaf", "pydoc", "os.PathLike", "-march", ".venv/bin/activate", "llama-7b-q4.bin", "COMMAND", "MODEL",
    "FIRST", "broad-32.bin", "deploy", "debug", "i", "E",
}  # fmt: skip
SOURCE = {".py", ".pyx", ".pxd", ".pyi", ".h", ".c", ".cpp", ".cu", ".sh"}
NO_SOURCE = {".md", ".svg", ".txt", ".bin"}


@cache
def files() -> list[Path]:
    """All that git tracks."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]
    return [path for name in names if (path := ROOT / name).is_file()]


@cache
def words() -> set[str]:
    """Every word of the source, its comments and its settings."""
    texts = [
        path.read_text(errors="replace") for path in files() if path.suffix not in NO_SOURCE and path != Path(__file__)
    ]
    return {word for text in texts for word in re.findall(r"\w[\w-]*", text)}


@cache
def classes() -> dict[str, set[str]]:
    """The classes of the package, with the names that are defined in them."""
    found: dict[str, set[str]] = {}
    for path in ROOT.glob("pyllama2/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                members = found.setdefault(node.name, set())
                for child in ast.walk(node):
                    if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        members.add(child.name)
                    elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                        members.add(child.target.id)
                    elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                        members.add(child.attr)
    return found


def spans_of(page: Path) -> Iterator[str]:
    """What stands in backticks on a page, outside of blocks."""
    text = re.sub(r"^```.*?^```$|(?<=\n\n)(?: {4}[^\n]*\n+)+", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    if page.name == "coming-from.md":  # names of others are on the left; test_coming_from.py tests the rest
        text = re.sub(r"^\|[^|\n]*\|", "|", text, flags=re.MULTILINE)
    return (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def missing(span: str) -> list[str]:
    """The names in a span that do not exist. Strings are no names."""
    names = re.findall(r"(?<![\w.-])(?:--?|/)?[A-Za-z_.][\w*./+-]*(?<=[\w*/])", re.sub(r"\"[^\"]*\"", "", span))
    return [name for name in names if name not in FOREIGN and not exists(name)]


def exists(name: str) -> bool:
    first, _, rest = name.partition(".")
    if "/" in name and name.partition("/")[0] in {path.name for path in ROOT.iterdir()}:
        return any(ROOT.glob(name))
    if Path(name).suffix in SOURCE:
        return any(path.name == name for path in files())
    if rest and first in classes():
        return rest.partition(".")[0] in classes()[first]
    return all(part in words() for part in re.findall(r"\w[\w-]*", name.replace(".N.", ".")))


@pytest.mark.subprocess
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_documents_exist(page: Path) -> None:
    assert [(span, names) for span in spans_of(page) if (names := missing(span))] == []


@pytest.mark.slow
def test_the_check_is_able_to_fail() -> None:
    good = [
        "Llama.generate()",
        "`--kv-dtype`",
        "pyllama2/model.py",
        "Sampler.sample",
        "benchmarks/bench_*.py",
        "top_k=1",
    ]
    assert [missing(span) for span in good] == [[]] * len(good)
    bad = [
        "Llama.generates()",
        "--kv-type",
        "pyllama2/modell.py",
        "Samplers",
        "benchmarks/bunch_*.py",
        "forwards.pyx",
    ]
    assert all(missing(span) for span in bad)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_commands_in_docstrings_exist(path: Path) -> None:
    """A script that says how to run it gives its own place, and flags that it has."""
    text = path.read_text()
    for place, arguments in re.findall(
        r"^ *python (\S+\.py)\b(.*)", ast.get_docstring(ast.parse(text)) or "", re.MULTILINE
    ):
        assert ROOT / place == path
        for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments.partition("#")[0]):
            assert f'"{flag}"' in text, flag
