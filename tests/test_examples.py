"""The scripts and the notebook in examples/ run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import CHATML, write_tiny

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
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


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", NOTEBOOKS)
class TestNotebooks:
    def test_runs(self, name: str) -> None:
        nbformat = pytest.importorskip("nbformat")
        nbclient = pytest.importorskip("nbclient")
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
        printed = "".join(output.get("text", "") for output in outputs)
        assert "Once upon a time" in printed and printed.count("...\n") == 3

    def test_is_kept_without_outputs(self, name: str) -> None:
        nbformat = pytest.importorskip("nbformat")
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
