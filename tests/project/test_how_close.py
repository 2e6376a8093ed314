"""The table of files that benchmarks/how_close.py prints."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import how_close
import pytest
from helpers.tiny_llama import write_tiny

import pyllama2

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shares_of_what_the_plain_search_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, q4, q8, text = (tmp_path / name for name in ("source.bin", "q4.bin", "q8.bin", "text.txt"))
    write_tiny(source)
    pyllama2.quantize(source, q4, "q4", calibrate=False)
    pyllama2.quantize(source, q8, "q8")
    text.write_text("a little fox who lived in the forest\n\n\nThe capital of France is a city")
    command = ["how_close.py", "--model", str(source), "--text", str(text), "--files", str(q4), str(q8)]
    monkeypatch.setattr(sys, "argv", command)
    how_close.main()
    line = re.compile(r"^\| (.+?) \| ([\d.]+) ± [\d.]+ \| [\d.]+% \| ([\d.]+) \|$", re.MULTILINE)
    rows = line.findall(capsys.readouterr().out)
    assert [name.split(",")[0] for name, _, _ in rows] == [
        "q4 by a search that knows nothing of the inputs", "q4 in memory", "q4.bin", "q8.bin",
    ]  # fmt: skip
    losses, shares = ([float(row[i]) for row in rows] for i in (1, 2))
    assert losses[1] == losses[2] and losses[3] < 0.05 * losses[0]
    assert shares == pytest.approx([loss / losses[0] for loss in losses], abs=0.006)
