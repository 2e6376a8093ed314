"""docs/architecture.md is what the script makes of the imports, and the names in it exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import make_architecture
import pytest

PAGE = make_architecture.PAGE.read_text()


def test_is_up_to_date() -> None:
    assert make_architecture.page(PAGE) == PAGE, "run python scripts/docs/make_architecture.py"


def test_check_says_whether_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "architecture.md"
    page.write_text(PAGE.replace("| `shown` |", "| |"))
    monkeypatch.setattr(make_architecture, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["make_architecture.py", "--check"])
    assert make_architecture.main() == 1
    monkeypatch.setattr(sys, "argv", ["make_architecture.py"])
    assert make_architecture.main() == 0 and page.read_text() == PAGE


def test_has_every_room_in_order() -> None:
    assert re.findall(r"^\| \[`(\w+)(?:\.py)?`\]", PAGE, re.MULTILINE) == list(make_architecture.ROOMS)


def test_layers() -> None:
    imports = {"top": {"middle", "low"}, "middle": {"low"}, "low": set(), "other": {"low"}}
    assert make_architecture.layers(imports) == [["low"], ["middle", "other"], ["top"]]
    with pytest.raises(SystemExit, match="circle: a, b"):
        make_architecture.layers({"a": {"b"}, "b": {"a"}, "c": set()})


def test_names_are_in_the_files_that_they_link_to() -> None:
    """A link [`Class.method`](file) names something that is defined in the file."""
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./(pyllama2/[\w./]+\.(?:pyx|py|h|cu))\)", PAGE)
    names = [(name, path) for name, path in links if name != path.split("/")[-1]]
    assert len(names) > 20
    for name, path in names:
        text = (make_architecture.ROOT / path).read_text()
        for part in name.split("."):
            assert re.search(rf"\b(?:class|def|struct|cdef [\w ]+) {part}\b", text), (name, path)


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="made: picture"):
        make_architecture.page("# Architecture\n")
