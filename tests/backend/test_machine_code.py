"""The machine code of kernels for x86: how many instructions a dot product takes, and that nothing is spilled."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache

import pytest

import pyllama2._cpu.dispatch

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are for x86-64"),
]
# Instructions for a dot product, of all numbers of columns together, with gcc 12: 4.1 and 3.0 of q4, 4.1 of q8.
MOST_FOR_A_DOT = {"pair_q4_64": 5.0, "pair_q4_128": 4.0, "pair_q8_32": 5.0}

# Of a single column that reads four streams, with all that is around the dot products.
MOST_IN_STREAMS = {"columns_q4_32": 7.5, "columns_q4_64": 6.5, "columns_q4_128": 7.5, "columns_q8_64": 13.0}


@cache
def functions() -> dict[str, list[str]]:
    """The instructions of each function of the kernels' module."""
    command = ["objdump", "-d", "--no-show-raw-insn", pyllama2._cpu.dispatch.__file__]
    found: dict[str, list[str]] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if name := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            lines = found.setdefault(name.group(1), [])
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(.+)", line):
            lines.append(instruction.group(1))
    return found


@pytest.mark.parametrize("kernel", MOST_FOR_A_DOT)
def test_two_blocks_take_few_instructions(kernel: str) -> None:
    code = functions()[f"{kernel}_avx512"]
    dots = [line for line in code if re.match(r"vpdp(busd|wssd) .*\{1to16\}.*%zmm", line)]
    assert len(dots) >= 288  # two for each register of codes, in tiles of 1 to 8 columns
    assert len(code) / len(dots) < MOST_FOR_A_DOT[kernel]


@pytest.mark.parametrize(
    "kernel", ["pair_q4_32", "pair_q4_64", "pair_q4_128", "pair_q8_32", "pair_q8_64", "pair_q8_128"]
)
def test_no_vector_is_kept_on_the_stack(kernel: str) -> None:
    code = functions()[f"{kernel}_avx512"]
    assert any("%zmm" in line for line in code)
    assert not [line for line in code if "%zmm" in line and "(%rsp)" in line]


@pytest.mark.parametrize("kernel", MOST_IN_STREAMS)
def test_four_streams_take_few_instructions(kernel: str) -> None:
    code = functions()[f"{kernel}_avx2"]
    dots = [line for line in code if re.match(r"vpmadd(ubsw|wd) .*%ymm", line)]
    assert len(dots) >= 16  # two for each register of codes
    assert len(code) / len(dots) < MOST_IN_STREAMS[kernel]
    assert sum("prefetch" in line for line in code) >= 4
