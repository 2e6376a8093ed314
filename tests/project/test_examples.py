"""The scripts and the notebook in examples/ run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama

pytestmark = pytest.mark.subprocess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDED = {"langchain_chat.py": "langchain_core", "lm_eval_task.py": "lm_eval"}  # packages that are no extra
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """This package, the bundled model, and plots where a notebook wants them."""
    for name in ("PYLLAMA2_MODEL", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    paths = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.bin", "bpe", template=CHATML, max_seq_len=256)


def run(name: str, *arguments: Any) -> str:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    result = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.usefixtures("environment")
class TestScripts:
    @pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "compare_quantizations.py"])
    def test_with_the_bundled_model(self, name: str) -> None:
        assert run(name).strip()

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_with_a_model_of_ones_own(self, name: str, model: Path) -> None:
        assert run(name, model).strip()

    def test_the_batch_gives_the_same_texts(self) -> None:
        assert run("batch.py").endswith("the same texts: True\n")

    def test_the_forbidden_letters_are_missing(self) -> None:
        lines = dict(line.split(":", 1) for line in run("logits_processor.py").splitlines() if ": " in line)
        plain, without = (lines[name].replace("Once upon a time", "") for name in ("as it is", "without b, m"))
        assert set("bm") & set(plain) and not set("bm") & set(without)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_are_short_and_say_how_to_run_them(self, name: str) -> None:
        text = (EXAMPLES / name).read_text()
        assert text.count("\n") < 60 and f"python examples/{name} " in text


def stored(name: str) -> list[dict[str, Any]]:
    """The outputs that a notebook is kept with."""
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [{**output, "text": "".join(output.get("text", ""))} for output in outputs]


def executed(name: str) -> list[dict[str, Any]]:
    """The outputs of all cells of a notebook; a cell that fails is an exception."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join(output.get("text", "") for output in outputs if output.get("name") != "stderr")


def words_of(text: str) -> list[str]:
    """The words of a text, where numbers may differ between machines."""
    return re.sub(r"[\d.]+", "0", text).split()


def plots(outputs: list[dict[str, Any]]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def markdown(name: str) -> str:
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.usefixtures("environment")
class TestNotebooks:
    def test_quickstart(self) -> None:
        """It is kept with its outputs; `jupyter nbconvert --execute --inplace` makes them anew."""
        outputs = executed("quickstart.ipynb")
        assert words_of(printed(outputs)) == words_of(printed(stored("quickstart.ipynb")))
        assert plots(stored("quickstart.ipynb")) == 2
        assert plots(outputs) == 2
        text = printed(outputs)
        assert "Once upon a time" in text and text.count("...\n") == 3
        pages = ["".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
        assert len(pages) == 2 and all(page.count("<span") > 20 and "rgba(" in page for page in pages)
        assert "Once upon a time" in pages[0] and "The dragon" in pages[1] and "cancelled" not in pages[1]

    def test_llama_from_scratch(self) -> None:
        """It compares itself with pyllama2; what it prints is of the bundled model."""
        with Llama() as llm:
            config = llm.config
        outputs = executed("llama_from_scratch.ipynb")
        text = printed(outputs)
        assert plots(outputs) == 9
        assert f"{config.n_layers} layers, {config.n_parameters:,} numbers in all" in text
        assert text.count("largest difference from") == 2
        assert "the same tokens as pyllama2's greedy text: True" in text
        assert f"after {config.n_layers} layers the last word is already there for 100% of the tokens" in text
        divergences = re.findall(r"^(q[48]), groups of (\d+) .*% +([\d.]+) +[\d.]+%$", text, re.MULTILINE)
        assert [row[:2] for row in divergences] == [(q, n) for q in ("q8", "q4") for n in ("32", "64", "128")]
        q8, q4 = ([float(row[2]) for row in divergences if row[0] == q] for q in ("q8", "q4"))
        assert 0 <= max(q8) < min(q4)

    def test_llama_from_scratch_with_another_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Untied, of other sizes, unquantized, with no BOS: nothing in it is the bundled model's."""
        path = write_tiny(tmp_path / "m.bin", "bpe", max_seq_len=200, n_layers=1, dim=40, head_dim=6, hidden_dim=72)
        monkeypatch.setenv("PYLLAMA2_MODEL", str(path))
        text = printed(executed("llama_from_scratch.ipynb"))
        assert "the same tokens as pyllama2's greedy text: True" in text and "1 layers" in text

    def test_the_text_of_llama_from_scratch_has_no_figures(self) -> None:
        """Those would be the model's of some day. q8, q4, and the bits that they stand for are names."""
        text = re.sub(r"\$\$.*?\$\$", "", markdown("llama_from_scratch.ipynb"), flags=re.DOTALL)
        text = re.sub(r"\]\([^)]*\)|\$[^$]*\$|`[^`]*`", "", text)
        assert set(re.findall(r"\d+", text)) <= {"2", "4", "8"}

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_is_kept_with_all_outputs_or_none(self, name: str) -> None:
        nbformat = pytest.importorskip("nbformat")
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        counts = [cell.execution_count for cell in code]
        if name == "quickstart.ipynb":
            assert counts == list(range(1, len(code) + 1)) and "Traceback" not in printed(stored(name))
        else:
            assert counts == [None] * len(code) and stored(name) == []
