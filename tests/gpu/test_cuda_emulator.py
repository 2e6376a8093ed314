"""The emulator of CUDA finds every planted bug, and nothing in the correct twin of each."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_emulator import EmulationError, StandIn, missing_compiler

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=missing_compiler() or "")

BUGS = Path(__file__).parents[1] / "cuda_emulator" / "bugs"
SAMPLE = re.compile(r'// grid ([\d ]+), block ([\d ]+)(?:, shared (\d+))?\nextern "C" __global__ void (\w+)\(')
ORDERS = ("forward", "backward", 7)


class Sample(NamedTuple):
    """A kernel of bugs/*.cu and how it is launched."""

    file: str
    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    kind: str  # of the finding in the bad one


def samples() -> list[Sample]:
    found = []
    for path in sorted(BUGS.glob("*.cu")):
        text = path.read_text()
        kind = re.findall(r"^// Finds: (.*)$", text, re.MULTILINE)[0]
        for grid, block, shared, name in SAMPLE.findall(text):
            sizes = tuple(map(int, grid.split())), tuple(map(int, block.split()))
            found.append(Sample(path.stem, name, *sizes, int(shared or 0), kind))
    return found


SAMPLES = samples()
BAD = [sample for sample in SAMPLES if sample.name.startswith("bad_")]
GOOD = [sample for sample in SAMPLES if sample.name.startswith("good_")]


@cache
def device(order: str | int) -> StandIn:
    return StandIn(mode="check", order=order)


@cache
def module(file: str, order: str | int) -> Any:
    code = f'#line 1 "{file}.cu"\n' + (BUGS / f"{file}.cu").read_text()
    return device(order).RawModule(code=code, options=("--std=c++17",))


def run(sample: Sample, order: str | int) -> np.ndarray:
    cupy = device(order)
    out = cupy.zeros(1024, np.float32)
    inputs = cupy.asarray(np.arange(1024, dtype=np.float32))
    ints = cupy.empty(16, np.int32)
    ints[: 10 if sample.file == "uninitialised" else 16] = 0
    kernel = module(sample.file, order).get_function(sample.name)
    kernel(sample.grid, sample.block, (out, inputs, ints, np.int32(1024)), shared_mem=sample.shared)
    return out.get()


def test_there_are_a_dozen_of_each_kind() -> None:
    assert {"race_shared", "missing_syncwarp"} < {sample.file for sample in SAMPLES}
    assert [sample.name.removeprefix("bad_") for sample in BAD] == [s.name.removeprefix("good_") for s in GOOD]
    for file in {sample.file for sample in SAMPLES}:
        assert sum(sample.file == file for sample in BAD) >= 12


@pytest.mark.parametrize("sample", BAD, ids=lambda sample: f"{sample.file}-{sample.name}")
def test_bug_is_found(sample: Sample) -> None:
    for order in ORDERS:
        with pytest.raises(EmulationError) as error:
            run(sample, order)
        found = [finding for finding in error.value.findings if finding.kind == sample.kind]
        assert found, f"only {error.value}"
        lines = (BUGS / found[0].file).read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if f"void {sample.name}(" in line)
        assert found[0].kernel == sample.name and found[0].line > 0
        helpers = ("last_block", "shared_through_a_pointer", "inside_a_function")
        assert found[0].line > start or any(helper in sample.name for helper in helpers)


@pytest.mark.parametrize("sample", GOOD, ids=lambda sample: f"{sample.file}-{sample.name}")
def test_correct_twin_is_accepted(sample: Sample) -> None:
    results = [run(sample, order) for order in ORDERS]
    assert all(np.array_equal(results[0], other) for other in results[1:])
