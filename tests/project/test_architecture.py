"""docs/architecture.md is what the script makes of the imports, and the names in it exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import make_architecture
import pytest
import source_links

PAGE = make_architecture.PAGE.read_text()


@pytest.mark.slow
def test_is_up_to_date() -> None:
    assert make_architecture.page(PAGE) == PAGE, "run python scripts/docs/make_architecture.py"


@pytest.mark.slow
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


def test_links_lead_to_the_lines_of_what_they_name() -> None:
    """A link [`Class.method`][file Class.method] has the name of its place, whose definition begins its lines."""
    links = re.findall(r"\[`([^`]+)`\]\s?\[([\w./]+) ([\w.]+)\]", PAGE)
    assert len(links) > 40
    for text, path, name in links:
        assert text == name
        place, _, lines = source_links.link_to(f"{path} {name}").removeprefix("../").partition("#L")
        first, last = (int(n) for n in lines.split("-L"))
        source = (make_architecture.ROOT / place).read_text().splitlines()[first - 1 : last]
        assert re.match(rf" *(?:class|def|async def|cdef [\w ]+) {name.split('.')[-1]}\b", source[0]), source[0]


@pytest.mark.slow
def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="made: picture"):
        make_architecture.page("# Architecture\n")
    with pytest.raises(SystemExit, match="made: links"):
        make_architecture.page(PAGE.partition("<!-- made: links -->")[0])
