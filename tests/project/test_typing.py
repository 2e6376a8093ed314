"""The types of the public interface: a sample program that mypy accepts and that runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_llama import write_tiny

import pyllama2
from pyllama2.generation.chat_engine import ChatEngine

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "helpers" / "typing_sample.py"
# Methods that the sample need not call.
ELSEWHERE = {"save_state", "load_state", "astream", "astream_chat"}


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
class TestMypy:
    def check(self, path: Path, cache: Path) -> subprocess.CompletedProcess[str]:
        """mypy --strict as a user would run it: without this project's configuration."""
        flags = ["--strict", "--config-file=", f"--cache-dir={cache}", "--follow-imports=silent"]
        return subprocess.run(
            [sys.executable, "-m", "mypy", *flags, path], capture_output=True, text=True, cwd=ROOT, timeout=300
        )

    def test_accepts_the_sample(self, tmp_path: Path) -> None:
        result = self.check(SAMPLE, tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr

    def test_refuses_what_the_sample_marks_as_wrong(self, tmp_path: Path) -> None:
        text = SAMPLE.read_text()
        marks = [number for number, line in enumerate(text.splitlines(), 1) if "# type: ignore[" in line]
        path = tmp_path / "sample.py"
        path.write_text(text.replace("# type: ignore[", "# ["))
        found = self.check(path, tmp_path).stdout
        assert len(marks) == 10 and all(f"sample.py:{number}: error" in found for number in marks), found


def test_the_sample_runs(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.bin")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYLLAMA2_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, SAMPLE, model], capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"{pyllama2.__version__}\n")


def test_the_sample_uses_every_public_name() -> None:
    text = SAMPLE.read_text()
    missing = [name for name in pyllama2.__all__ if name not in text]
    of_llama = [*vars(pyllama2.Llama), *vars(ChatEngine)]
    methods = [name for name in of_llama if not name.startswith("_") and f"llm.{name}" not in text]
    assert not missing and not set(methods) - ELSEWHERE
