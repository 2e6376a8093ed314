"""docs/api.md is what the docstrings and parsers say."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import pyllama2
from pyllama2 import __main__

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import make_api_docs  # noqa: E402


@pytest.fixture(scope="module")
def page() -> str:
    return make_api_docs.page()


def test_is_up_to_date(page: str) -> None:
    assert make_api_docs.PAGE.read_text() == page, "run python scripts/docs/make_api_docs.py"


def test_has_every_public_name(page: str) -> None:
    for name in set(pyllama2.__all__) - {"__version__"}:
        assert f"## {name}\n" in page or f"## pyllama2.{name}\n" in page or f"`{name}(" in page, name
    for name, value in vars(pyllama2.Llama).items():
        assert name.startswith("_") or (f"#### Llama.{name}\n" in page and value.__doc__), name
    for field in dataclasses.fields(pyllama2.SamplingParams):
        assert f"        {field.name}: {field.type} = {field.default!r},\n" in page


def test_has_the_help_of_every_command(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in __main__.COMMANDS:
        assert f"### pyllama2 {name}\n" in page
        assert __main__.main([name, "--help"]) == 0
        for flag in {word.strip("[],") for word in capsys.readouterr().out.split() if word.startswith("--")}:
            assert flag == "--help" or flag in page, flag


def test_does_not_depend_on_what_was_imported(page: str) -> None:
    """A function that is a callable module by now is documented as the function."""
    code = "import pyllama2.export, pyllama2.quantize, pyllama2.perplexity, make_api_docs; print(make_api_docs.page())"
    for prefix in ("", "import os; os.environ['COLUMNS'] = '40'; "):
        result = subprocess.run(
            [sys.executable, "-c", prefix + code], capture_output=True, text=True, timeout=60,
            cwd=ROOT / "scripts" / "docs", env={"PYTHONPATH": str(ROOT), "PATH": ""},
        )  # fmt: skip
        assert result.stdout == page + "\n", result.stderr


def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setattr(make_api_docs, "PAGE", tmp_path / "api.md")
    monkeypatch.setattr(sys, "argv", ["make_api_docs.py", "--check"])
    assert make_api_docs.main() == 1
    (tmp_path / "api.md").write_text(page + "x")
    assert make_api_docs.main() == 1
    monkeypatch.setattr(sys, "argv", ["make_api_docs.py"])
    assert make_api_docs.main() == 0 and (tmp_path / "api.md").read_text() == page


def test_a_name_without_a_docstring_is_refused() -> None:
    with pytest.raises(SystemExit, match="has no docstring"):
        make_api_docs._text(lambda: None)
