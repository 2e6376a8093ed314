"""The CUDA sources are put together, and compile where CUDA's own compiler is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyllama2._gpu import source

SOURCES = sorted(path.name for path in source.KERNELS.glob("*.cu"))


def test_sources_are_package_data() -> None:
    assert "norm.cu" in SOURCES


def test_a_file_comes_once_after_what_it_needs() -> None:
    text = source.source("matvec", "embed.cu", "matvec")
    order = [text.index(f'#line 1 "{name}.cu"\n') for name in ("common", "quantize", "norm", "embed")]
    assert order == sorted(order)
    assert text.count('#line 1 "matvec.cu"') == text.count('#line 1 "common.cu"') == 1


def test_unknown_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no kernel file flash\.cu"):
        source.source("flash")


@pytest.mark.subprocess
@pytest.mark.parametrize("name", SOURCES)
def test_compiles(name: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    path = tmp_path / name
    path.write_text(source.source(name))
    # A file has functions for others too, and static ones that are not called are worth a warning.
    command = [nvcc, *source.OPTIONS, "-arch=sm_80", "-Werror=all-warnings", "-diag-suppress=177", "-c", str(path)]
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizers in nvcc
    result = subprocess.run([*command, "-o", tmp_path / "x.o"], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
