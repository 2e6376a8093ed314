"""Everything to be known about the CUDA backend on a card that it has not run on yet, in one report.

    python scripts/cuda/first_day.py                     all steps; a random 7B is made first, in models/
    python scripts/cuda/first_day.py --quick             the bundled model alone, without the tests
    python scripts/cuda/first_day.py --model 7b.bin --out report.txt
    python scripts/cuda/first_day.py --step logits       one step

    machine     versions of all, memory, what doctor says
    logits      prompts and steps at 1, 255, 256, 257 and 600, of 1 and 8 sequences, beside the CPU's: each bit
    devices     the first layers on the GPU and the rest on the CPU, or on a second GPU
    threads     another thread runs the recorded step; sequences are copied beside it
    memory      what a plan says beside what is taken: after loading, growing, and 24 graphs
    sanitizer   compute-sanitizer: memcheck, racecheck, synccheck
    rate, speed the memory's rate; tokens/s of 1, 2, 4, 8 sequences and of a prompt; what the host takes of a step
    kernels     the time of each kernel
    tests       the GPU tests with CuPy

It stops at nothing: each step has a process of its own and a time limit, and one that fails is a line of the report.
The report goes to stdout as it grows. Attach it to a bug report. The exit code is 1 if a step failed. Needs a source
checkout; where something is missing, such as compute-sanitizer or a GPU, a line says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

_ALL = ("machine", "logits", "devices", "threads", "memory", "sanitizer", "rate", "speed", "kernels", "tests")
_NOT_QUICK = ("sanitizer", "tests")
_FAILED, _SKIPPED = 1, 3  # exit codes of a step's process


def run_step(name: str, args: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Do a step in this process, and say its lines. Returns 0, _FAILED or _SKIPPED."""
    try:
        from first_day_steps import STEPS, SkippedError  # it needs the package, whose build may be broken
    except Exception:
        say(traceback.format_exc().rstrip())
        return _FAILED
    try:
        for line in STEPS[name](args):
            say(line)
    except SkippedError as error:
        say(f"not done: {error}")
        return _SKIPPED
    except AssertionError as error:
        say(f"WRONG: {error}")
        return _FAILED
    except Exception:
        say(traceback.format_exc().rstrip())
        return _FAILED
    return 0


def run_apart(name: str, argv: list[str], limit_s: float, say: Callable[[str], None]) -> int:
    """Do a step in a process of its own: a kernel that goes wrong spoils CUDA for all of its process."""
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--step", name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        # What the step has started ends with it.
        timer = threading.Timer(limit_s, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout:
                say(line.rstrip("\n"))
            status = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            raise
        finally:
            is_in_time = timer.is_alive()
            timer.cancel()
    if status in (0, _FAILED, _SKIPPED):
        return status
    say(f"exit code {status}" if is_in_time else f"not finished after {limit_s:g} s")
    return _FAILED


class Report:
    """What was said so far, on stdout and in a file.

    Args:
        path: of the file; None: there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.write_text("")

    def say(self, line: str) -> None:
        """Add a line."""
        print(line, flush=True)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(f"{line}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    report = Report(None if args.step else args.out)
    if args.step:
        return run_step(args.step, args, report.say)
    results: dict[str, str] = {}
    for name in _ALL:
        if args.quick and name in _NOT_QUICK:
            results[name] = "left out by --quick"
            continue
        report.say(f"\n== {name}")
        started = time.perf_counter()
        status = run_step(name, args, report.say) if args.together else run_apart(name, argv, args.limit, report.say)
        word = {0: "done", _SKIPPED: "not done"}.get(status, "FAILED")
        results[name] = f"{word}, {time.perf_counter() - started:.1f} s"
    report.say("\n== summary")
    for name, result in results.items():
        report.say(f"{name:10} {result}")
    return int(any(result.startswith("FAILED") for result in results.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="the bundled model alone, unless --model names one; no tests")
    add("--model", type=Path, help="one of our files, beside the bundled model (default: a random one)")
    add("--shape", choices=("1.1b", "7b", "13b"), default="7b", help="of random weights (default: 7b)")
    add("--models-dir", type=Path, default=Path("models"), help="where random models are kept")
    add("--new-tokens", type=int, default=32, help="decoded for each figure")
    add("--repeat", type=int, default=3, help="of each figure, whose median counts")
    add("--tests", default="tests/gpu -k cuda", help="arguments of pytest (default: tests/gpu -k cuda)")
    add("--limit", type=float, default=900.0, metavar="SECONDS", help="of a step (default: 900)")
    add("--together", action="store_true", help="all steps in one process: one that spoils CUDA spoils the rest")
    add("--out", type=Path, help="write the report there, too")
    add("--step", choices=(*_ALL, "small"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
