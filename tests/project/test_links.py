"""Links in the documents lead somewhere: files, headings, and lines that are there. The web is not asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.ipynb")]
# Where a path in backticks must exist, when it starts with one of these.
FOLDERS = ("pyllama2", "scripts", "tests", "examples", "docs", ".ci")
_INLINE = re.compile(r"\]\(<?([^()\s>]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\)")
_DEFINITION = re.compile(r"^\[([^\]]+)\]:\s+(\S+)", re.MULTILINE)
_USE = re.compile(r"\][ ]?\[([^\]]+)\]")


def text_of(path: Path) -> str:
    """The Markdown of a page or of a notebook, without code blocks."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^```.*?^```|(?<=\n\n)(?: {4}[^\n]*\n+)+", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors_of(path: Path) -> set[str]:
    """The anchors that a forge gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?)\s*$", text_of(path), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchor, n = plain, 0
        while anchor in found:
            n += 1
            anchor = f"{plain}-{n}"
        found.add(anchor)
    return found


def problem(page: Path, target: str) -> str | None:
    """What is wrong with a link on a page; None when it leads somewhere or to the web."""
    if re.match(r"[a-z]+:", target):
        return None if target.startswith(("https://", "mailto:")) else "is not https"
    place, _, anchor = unquote(target).partition("#")
    path = (page.parent / place).resolve() if place else page
    if ROOT not in path.parents:
        return "leaves the project"
    if not path.exists():
        return "leads nowhere"
    if not anchor:
        return None
    if path.suffix == ".md":
        return None if anchor in anchors_of(path) else "has no such heading"
    lines = re.fullmatch(r"L(\d+)(?:-L(\d+))?", anchor)
    if lines is None:
        return "has an anchor that is neither a heading nor lines"
    first, last = int(lines[1]), int(lines[2] or lines[1])
    return None if 1 <= first <= last <= len(path.read_text().splitlines()) else "leads past the end of the file"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPages:
    def test_links_lead_somewhere(self, page: Path) -> None:
        text = text_of(page)
        targets = [*_INLINE.findall(text), *(target for _, target in _DEFINITION.findall(text))]
        assert [(target, why) for target in targets if (why := problem(page, target))] == []

    def test_references_are_defined_and_used(self, page: Path) -> None:
        text = text_of(page)
        defined = {name.lower() for name, _ in _DEFINITION.findall(text)}
        used = {re.sub(r"\s+", " ", name).lower() for name in _USE.findall(re.sub(r"`[^`]*`", "", text))}
        assert used == defined

    def test_paths_in_the_text_exist(self, page: Path) -> None:
        for path in re.findall(r"`([\w./-]+/[\w./-]*\w)`", text_of(page)):
            assert path.split("/")[0] not in FOLDERS or (ROOT / path).exists(), path


def test_the_check_is_able_to_fail() -> None:
    page = ROOT / "docs" / "llama.md"
    good = ["llama.svg", "../README.md#speed", "#sizes", "../pyllama2/model.py#L1-L20", "https://example.org"]
    assert [problem(page, target) for target in good] == [None] * len(good)
    bad = ["nothing.md", "#nothing", "../README.md#nothing", "../pyllama2/model.py#L999999", "../../etc", "http://a.b"]
    bad += ["../pyllama2/model.py#L20-L1", "../pyllama2/model.py#L0", "../pyllama2/model.py#class"]
    assert all(problem(page, target) for target in bad)
    assert _INLINE.findall("[a](b.md) ![c](d.svg) [e](<f.md>)") == ["b.md", "d.svg", "f.md"]
    assert _INLINE.findall("[over\ntwo](lines.md#x)") == ["lines.md#x"]


def test_pages_are_found() -> None:
    assert {"README.md", "llama.md", "quickstart.ipynb", "llama_from_scratch.ipynb"} <= {page.name for page in PAGES}
