"""docs/coming-from.md has the names of other libraries that errors answer, and no others."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from pyllama2 import Llama, SamplingParams
from pyllama2.cli import other_names as cli_names
from pyllama2.generation import other_names as llama_names
from pyllama2.sampling import other_names as sampling_names

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()
LLAMA = set(inspect.signature(Llama).parameters)
SAMPLING = {field.name for field in fields(SamplingParams)}


def rows_of(section: str) -> list[list[str]]:
    """The cells of each row of the table of a section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]


def names_in(section: str) -> dict[str, set[str]]:
    """The names of others in the table of a section, by ours."""
    found: dict[str, set[str]] = {}
    for ours, *others in rows_of(section):
        found.setdefault(ours.strip().strip("`"), set()).update(re.findall(r"`([^`]+)`", " ".join(others)))
    return found


@pytest.mark.parametrize(
    ("section", "table", "known"),
    [
        ("Arguments of `Llama`", llama_names.OTHER_NAMES, LLAMA),
        ("Sampling parameters", sampling_names.OTHER_NAMES, SAMPLING),
        ("Flags", cli_names.FLAGS, set()),
        ("Commands", cli_names.COMMANDS, set()),
    ],
)
def test_tables(section: str, table: Mapping[str, str], known: set[str]) -> None:
    in_page = names_in(section)
    assert len(rows_of(section)) == len(in_page)  # no row stands twice
    assert in_page and (not known or in_page.keys() <= known)
    pairs = {(name, ours) for ours, names in in_page.items() for name in names if name != ours}
    assert pairs == set(table.items())


def test_what_it_says_of_an_error() -> None:
    with pytest.raises(TypeError, match="n_gpu_layers"):
        Llama(num_gpu=20)  # type: ignore[call-arg]
