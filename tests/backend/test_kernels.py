"""Every function of every kernel table against the scalar ones, on this machine and on emulated 64-bit ARM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_kernels.sh"


def digests(*arguments: str) -> dict[str, str]:
    """The digest of the results of each table that ran."""
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizers in the compiler
    result = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert all(int(compared) > 1_000_000 for _, compared, _ in lines)
    return {table: digest for table, _, digest in lines}


@pytest.fixture(scope="module")
def native() -> dict[str, str]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    return digests("native")


@pytest.mark.subprocess
def test_all_tables_give_the_same(native: dict[str, str]) -> None:
    assert "scalar" in native
    assert len({digest for table, digest in native.items() if table != "scalar"}) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "tables"), [("max", ["scalar", "neon", "neon_dotprod"]), ("cortex-a57", ["scalar", "neon"])]
)
def test_arm_gives_the_same(cpu: str, tables: list[str], native: dict[str, str]) -> None:
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("a compiler for ARM, aarch64-linux-gnu-gcc, is not installed")
    if shutil.which("qemu-aarch64") is None and shutil.which("qemu-aarch64-static") is None:
        pytest.skip("an emulator of ARM, qemu-aarch64, is not installed")
    found = digests("aarch64", cpu)
    assert list(found) == tables
    fused = {digest for table, digest in (native | found).items() if table != "scalar"}
    assert found["scalar"] == native["scalar"] and len(fused) == 1
