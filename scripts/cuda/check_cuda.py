"""Compiles every CUDA kernel for five generations of GPUs, and checks the cost of the machine code. Needs no GPU.

    pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvdisasm
    python scripts/cuda/check_cuda.py                       everything: takes minutes
    python scripts/cuda/check_cuda.py --quick               1 and 8 columns only
    python scripts/cuda/check_cuda.py --architectures 61 90 --json FILE

Needs a source checkout, numpy and these wheels. CuPy and a driver are not needed. NVRTC gets the options that CuPy
gives it. The table has a row for each kernel and architecture: registers, spills, shared memory and kinds of
instructions. Each figure is the largest of all template arguments. Counts for Llama-2 7B follow. The exit code is 1 for
a spill, for a kernel that is not listed, and for a count that misses its target. No time is measured.

The disassembler knows sm_75 and later. For sm_61 there are only the assembler's registers, spills and shared memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cuda_costs
import cuda_kernels
import sass
from instructions import inner_loop
from nvrtc import INSTALL, CompileError, Nvrtc

ARCHITECTURES = (61, 75, 80, 89, 90)
_COLUMNS = ("dp4a", "mma", "fma", "logic", "integer", "global", "shared", "local", "shuffle", "barrier")


@dataclass
class Row:
    """One kernel for one architecture. Each figure is the largest of all template arguments."""

    kernel: str
    architecture: int
    variants: int = 0
    registers: int = 0
    shared: int = 0
    spilled: int = 0
    local: int = 0
    instructions: dict[str, int] = field(default_factory=dict)  # empty if it cannot be disassembled


@dataclass
class Report:
    """The results of one file for one architecture."""

    rows: list[Row]
    spills: list[str]
    per_weight: dict[str, float]  # kernel -> lane-instructions per weight of its inner loop
    error: str = ""


def check_file(name: str, architecture: int, columns: range) -> Report:
    """Compile one kernel file with all of its templates."""
    expressions = cuda_kernels.expressions(columns)[name]
    try:
        text = cuda_kernels.source.source(name)
        compiled = Nvrtc().compile(text, cuda_kernels.source.OPTIONS, expressions, architecture)
    except CompileError as error:
        return Report([], [], {}, f"{name}.cu, sm_{architecture}: {str(error)[:1000]}")
    nvdisasm = sass.disassembler()
    code = sass.disassemble(nvdisasm, compiled.cubin) if nvdisasm else {}
    own = cuda_kernels.kernels_of(name)
    readable = {mangled: expression for expression, mangled in compiled.names.items()}
    rows: dict[str, Row] = {}
    report = Report([], [], {})
    for mangled, usage in compiled.usage.items():
        expression = readable.get(mangled, mangled)
        kernel = expression.split("<")[0]
        if kernel not in own:
            continue  # it belongs to a file that this one needs
        row = rows.setdefault(kernel, Row(kernel, architecture))
        row.variants += 1
        for what in ("registers", "shared", "spilled", "local"):
            setattr(row, what, max(getattr(row, what), getattr(usage, what)))
        if usage.spilled:
            report.spills.append(f"{expression}, sm_{architecture}: {usage.spilled} bytes")
        if mangled in code:
            for kind, count in sass.mix(code[mangled][0]).items():
                row.instructions[kind] = max(row.instructions.get(kind, 0), count)
            loop = inner_loop(expression, *code[mangled])
            if loop is not None:
                report.per_weight[expression] = loop.per_weight
    report.rows = list(rows.values())
    return report


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    head = ["kernel", "sm", "variants", "registers", "spilled", "shared", "all", *_COLUMNS]
    lines = [head]
    for row in rows:
        mix = [str(row.instructions[kind]) if row.instructions else "-" for kind in ("all", *_COLUMNS)]
        lines.append([row.kernel, str(row.architecture), str(row.variants), str(row.registers), str(row.spilled),
                      str(row.shared), *mix])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def run(architectures: Sequence[int], columns: range, jobs: int) -> list[Report]:
    """Check all files for all architectures, several at a time."""
    tasks = [
        (name, architecture)
        for architecture in architectures
        for name in cuda_kernels.expressions(columns)
        if name != "matmul_mma" or architecture >= cuda_kernels.FIRST_MMA
    ]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(check_file, *zip(*tasks, strict=True), [columns] * len(tasks)))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, metavar="SM")
    parser.add_argument("--quick", action="store_true", help="products of 1 and of 8 columns, not of those between")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write the table and the counts here too")
    arguments = parser.parse_args()
    try:
        version = Nvrtc().version
    except CompileError as error:
        print(f"check_cuda: {error}", file=sys.stderr)
        return 1
    columns = range(1, 9, 7) if arguments.quick else range(1, 9)
    reports = run(arguments.architectures, columns, arguments.jobs)
    rows = [row for report in reports for row in report.rows]
    print(f"NVRTC {version}; the largest of each kernel's variants\n\n{table(rows)}\n")
    if not sass.disassembler():
        print(f"instructions are not counted: nvdisasm is missing ({INSTALL})")

    failures = [report.error for report in reports if report.error]
    failures += [f"spilled registers: {spill}" for report in reports for spill in report.spills]
    failures += [f"not listed in scripts/cuda/cuda_kernels.py: {kernel}" for kernel in cuda_kernels.unlisted()]
    per_weight: dict[str, dict[str, float]] = {}
    for report in reports:
        if report.rows:
            per_weight.setdefault(f"sm_{report.rows[0].architecture}", {}).update(report.per_weight)
    counts = cuda_costs.counts(per_weight)
    print("counted for Llama-2 7B")
    for count in counts:
        print(f"  {count}")
    failures += [f"missed: {count}" for count in counts if not count.holds]
    if arguments.json:
        written: dict[str, Any] = {
            "nvrtc": version,
            "kernels": [asdict(row) for row in rows],
            "lane_instructions_per_weight": per_weight,
            "counts": [asdict(count) for count in counts],
            "failures": failures,
        }
        Path(arguments.json).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"\n{len(failures)} failures" if failures else "\nno spills, and every count within its target")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
