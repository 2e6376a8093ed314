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

# With all that is around the dot products: of a single column that reads four streams, and of pairs of blocks.
MOST_IN_STREAMS = {"streams_q4_32": 8.0, "streams_q4_64": 6.7, "streams_q4_128": 6.0, "streams_q8": 8.5}
MOST_IN_PAIRS = {"pairs_q4_32": 5.8, "pairs_q4_64": 4.8, "pairs_q4_128": 4.1, "pairs_q8_32": 5.0}


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


def dots_of_bytes_or_words(code: list[str]) -> int:
    """How many dot products of AVX2 there are."""
    return sum(re.match(r"vpmadd(ubsw|wd) .*%ymm", line) is not None for line in code)


@pytest.mark.parametrize("kernel", MOST_IN_STREAMS)
def test_four_streams_take_few_instructions(kernel: str) -> None:
    code = functions()[f"{kernel}_avx2"]
    dots = dots_of_bytes_or_words(code)
    assert dots >= 16  # two for each register of codes
    assert len(code) / dots < MOST_IN_STREAMS[kernel]
    assert sum("prefetch" in line for line in code) >= 4


@pytest.mark.parametrize("kernel", MOST_IN_PAIRS)
def test_pairs_of_blocks_share_what_they_load_of_columns(kernel: str) -> None:
    code = functions()[f"{kernel}_avx2"]
    dots = dots_of_bytes_or_words(code)
    assert dots >= 112  # tiles of 3 and of 4 columns
    assert len(code) / dots < MOST_IN_PAIRS[kernel]
    assert sum("vbroadcastss" in line for line in code) / dots < 0.6  # one for two dots, and one for each scale


@pytest.mark.parametrize("group_size", [32, 64])
def test_sums_of_q4_that_wrap_around_are_not_taken_apart(group_size: int) -> None:
    """Each of twelve accumulators is widened once, at the end of a group, and starts with its offset."""
    code = functions()[f"panel_q4_{group_size}_avx2"]
    assert sum("vpmaddwd" in line for line in code) == 12
    assert not [line for line in code if line.startswith("vpaddd")]
