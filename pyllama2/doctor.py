"""python -m pyllama2.doctor: what is on this machine, what can run here and how fast, and what is missing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["doctor", *sys.argv[1:]]))

from . import __version__
from ._cpu import default_threads
from .analysis.diagnosis import CONTEXT, Diagnosis, Prospect, diagnose
from .cli.common import Devices, thread_count
from .cli.parser import CommandParser
from .cli.running import run_command
from .shown import for_json, shown

_EPILOG = """\
The bundled model is run, so that what is said to work has worked. Memory is
planned for a context of 4,096 tokens, with keys and values in float16. Speeds
are what the memory allows at most: on the CPU by the bandwidth that was just
measured, on a GPU by the peak that its driver says.

The exit code is 1 if no model can run on the device that --device or
PYLLAMA2_DEVICE asks for. Add the report to a bug report.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("doctor", "Say what is on this machine, what can run, and what is missing.", _EPILOG)
    add = parser.add_argument
    add("--device", choices=Devices(), help="device that must work, also cuda:1 (default: PYLLAMA2_DEVICE, else auto)")
    add("-t", "--threads", type=thread_count, metavar="N", help="threads (default: the number of physical cores)")
    add("--no-measure", action="store_true", help="do not measure the memory's bandwidth")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, _doctor)


def _doctor(args: argparse.Namespace) -> int:
    n_threads = args.threads or default_threads()
    found = diagnose(__version__, args.device, n_threads=n_threads, measure=not args.no_measure)
    print(for_json(json.dumps(asdict(found), ensure_ascii=False)) if args.json else "\n".join(_lines(found)))
    return 1 if found.problems else 0


def _lines(found: Diagnosis) -> Iterator[str]:
    rate = "" if found.bandwidth is None else f", reading {found.bandwidth:.1f} GB/s"
    yield f"pyllama2   {found.version}, Python {found.python}, {found.system}"
    yield f"CPU        {shown(found.processor)}; {found.n_threads} thread{'s' if found.n_threads > 1 else ''}{rate}"
    yield f"kernels    {found.isa or 'do not work'}"
    if found.available_bytes is not None:
        yield f"memory     {_gb(found.available_bytes)} available"
    for i, gpu in enumerate(found.gpus):
        name = "GPU        " if len(found.gpus) == 1 else f"{f'cuda:{i}':11}"
        peak = "" if gpu.peak_gb_per_s is None else f", {gpu.peak_gb_per_s:.0f} GB/s at most"
        memory = f"{_gb(gpu.free_bytes)} of {_gb(gpu.total_bytes)} free"
        yield f"{name}{shown(gpu.name)}, compute capability {gpu.compute_capability}, {memory}{peak}"
    versions = {"CuPy": found.cuda.cupy, "the driver's CUDA": found.cuda.driver, "NVRTC": found.cuda.compiler}
    if any(versions.values()):
        yield "CUDA       " + ", ".join(f"{name} {version or 'is missing'}" for name, version in versions.items())
    if found.no_gpu is not None:
        yield f"GPU        none: {shown(found.no_gpu)}"
    yield ""
    yield f"Llamas, with a context of {CONTEXT:,} tokens:"
    yield from _table(found.prospects)
    if any(one.device == "cuda" and one.fits is False for one in found.prospects):
        yield "What does not fit on a GPU has as many layers there as fit, and the others on the CPU (--n-gpu-layers)."
    if found.missing:
        yield ""
        yield "not installed:"
        for extra, packages in found.missing.items():
            install = f'pip install "pyllama2[{extra}]"'
            yield f"  {install:33} {found.extras[extra]} ({', '.join(packages)})"
    yield ""
    if found.problems:
        yield from (f"problem: {shown(problem)}" for problem in found.problems)
    else:
        yield "all is well: the bundled model has just run"


def _table(prospects: tuple[Prospect, ...]) -> Iterator[str]:
    yield f"  {'':5} {'type':5} {'device':7} {'memory':>9}  {'fits':5} tokens/s at most"
    for one in prospects:
        fits = {True: "yes", False: "no", None: "?"}[one.fits]
        speed = "" if one.tokens_per_s is None or one.fits is False else f"{one.tokens_per_s:.1f}"
        line = f"  {one.model:5} {one.quant:5} {one.device:7} {_gb(one.needed_bytes):>9}  {fits:5} {speed}"
        yield line.rstrip()


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
