"""The CUDA sources compile, where a compiler is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

SOURCES = sorted(f.name for f in (files("pyllama2._gpu") / "kernels").iterdir() if f.name.endswith(".cu"))


def test_sources_are_package_data() -> None:
    assert "norm.cu" in SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_compiles_without_spills(name: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    source = files("pyllama2._gpu") / "kernels" / name
    command = [nvcc, "-arch=sm_80", "-Werror=all-warnings", "-Xptxas=-v", "-c", str(source), "-o", tmp_path / "x.o"]
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizers in nvcc
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    reports = [line for line in result.stderr.splitlines() if "spill" in line]
    assert reports and all(" 0 bytes spill stores, 0 bytes spill loads" in line for line in reports)
