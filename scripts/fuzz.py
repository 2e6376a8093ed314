"""Fuzzes the readers, tokenizers, templates and compiled functions of the package; see tests/fuzz.

    python scripts/fuzz.py                                  # a minute, divided among all targets
    python scripts/fuzz.py gguf pth --seconds 3600          # an hour, divided between two targets
    python scripts/fuzz.py gguf --runs 1000000 --plain      # a million executions, without atheris
    python scripts/fuzz.py gguf --replay FILE               # one execution, with the input of a finding

With atheris (pip install -e ".[fuzz]"), inputs that reach new lines of Python are kept and mutated further. --plain
mutates the seeds and accepted inputs without looking at lines. It does more executions per second. Every target runs in
a process of its own. A finding is an exception that is not promised, a crash, more than --timeout seconds of processor
time, or more than --memory megabytes. Its input is written to --findings. The exit code is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if TYPE_CHECKING:
    from fuzz.target import Target

_MAX_INPUT = 1 << 16
_PATIENCE = 10  # an execution may take this many times --timeout in real time


class Record:
    """A file that outlives a target's process: how many executions it did, and its last input."""

    _HEADER = struct.Struct("<QQQ")  # executions, accepted, length of the last input

    def __init__(self, path: Path) -> None:
        path.touch()
        os.truncate(path, self._HEADER.size + _MAX_INPUT)
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.executions = self.accepted = 0

    def run(self, target: Target, data: bytes, timeout: int) -> bool:
        """Run the target on an input. Returns whether the target accepted it.

        An exception is a finding. A signal ends the process if the processor time exceeds timeout seconds.
        """
        self.executions += 1
        self._HEADER.pack_into(self._map, 0, self.executions, self.accepted, len(data))
        self._map[self._HEADER.size : self._HEADER.size + len(data)] = data
        signal.setitimer(signal.ITIMER_PROF, timeout)  # processor time: a busy machine is no finding
        accepted = target.run(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.accepted += accepted
        return accepted

    def read(self) -> tuple[int, int, bytes]:
        """Return the number of executions, of accepted ones, and the last input."""
        executions, accepted, length = self._HEADER.unpack_from(self._map)
        return executions, accepted, self._map[self._HEADER.size : self._HEADER.size + length]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them unless named")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, divided among the targets (default 60)")
    parser.add_argument("--runs", type=int, help="executions of each target, instead of --seconds")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random numbers (default: the time)")
    parser.add_argument("--timeout", type=int, default=20, help="seconds of one execution (default 20)")
    parser.add_argument("--memory", type=int, default=2048, help="MB of one process (default 2048)")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what atheris finds interesting")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the one target on this input")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)  # makes this the process of one target
    args = parser.parse_args()
    if args.record is not None or args.replay is not None:
        return run_target(args)
    from fuzz.targets import TARGETS

    names = args.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {min(unknown)}; there are {', '.join(TARGETS)}")
    with ThreadPoolExecutor(args.jobs) as pool:
        seconds = args.seconds * min(args.jobs, len(names)) / len(names)
        results = list(pool.map(lambda name: fuzz_in_process(name, seconds, args), names))
    total = sum(result.executions for result in results)
    findings = sum(result.finding is not None for result in results)
    print(f"{total:,} executions of {len(results)} targets, {findings} findings")
    return int(findings > 0)


@dataclass(frozen=True)
class Result:
    """What the process of one target did. finding is the file with the input that ended it."""

    executions: int
    finding: Path | None


def fuzz_in_process(name: str, seconds: float, args: argparse.Namespace) -> Result:
    """Fuzz one target in a process of its own. Print a line of figures, and the finding if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, name, "--record", f"{folder}/record", "--seed", str(args.seed)]
        command += ["--timeout", str(args.timeout), "--memory", str(args.memory), "--seconds", str(seconds)]
        command += ["--runs", str(args.runs)] if args.runs else []
        command += ["--plain"] if args.plain else []
        command += ["--corpus", str(args.corpus.resolve())] if args.corpus else []
        began = time.monotonic()
        with open(f"{folder}/log", "w+b") as log:
            status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8000))
            text = log.read().decode("utf-8", "replace")
        executions, accepted, data = Record(Path(folder, "record")).read()
    share = f"{100 * accepted / max(executions, 1):.0f}% accepted"
    print(f"{name:22} {executions:10,} executions in {time.monotonic() - began:.0f} s, {share}", flush=True)
    if status == 0:
        return Result(executions, None)
    args.findings.mkdir(exist_ok=True)
    path = args.findings / f"{name}-{sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    ended = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    print(f"{text}\n{name}: ended with {ended}; again: python scripts/fuzz.py {name} --replay {path}", flush=True)
    return Result(executions, path)


def run_target(args: argparse.Namespace) -> int:
    """Run a target in this process, or replay one input."""
    logging.disable()  # readers log what is odd in a file but no error
    warnings.simplefilter("error", RuntimeWarning)  # as in the tests
    os.environ["PYLLAMA2_NUM_THREADS"] = "1"
    target = load_target(args.targets[0], args.replay is None and not args.plain)
    if args.replay is not None:
        print("accepted" if target.run(args.replay.read_bytes()) else "refused, as promised")
        return 0
    record = Record(args.record)
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # it reserves many terabytes of addresses
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (args.memory << 20),) * 2)
    if args.plain:
        return fuzz_plainly(target, record, args)
    fuzz_by_coverage(target, record, args)
    return 0


def load_target(name: str, instrumented: bool) -> Target:
    """Load a target. instrumented: let atheris instrument the package's Python code."""
    if instrumented:
        import atheris

        with atheris.instrument_imports(include=["pyllama2"], enable_loader_override=False):
            from fuzz.targets import TARGETS
    else:
        from fuzz.targets import TARGETS
    return TARGETS[name]


def fuzz_by_coverage(target: Target, record: Record, args: argparse.Namespace) -> None:
    """Fuzz with libFuzzer, which ends the process."""
    import atheris

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        changed = atheris.Mutate(data, len(data)) if random.random() < 0.3 else target.mutate(data, random)
        return bytes(changed[:max_size])

    folder = args.record.parent
    kept = (folder if args.corpus is None else args.corpus) / target.name
    seeds = folder / "seeds"
    seeds.mkdir()
    kept.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate([*target.seeds, *target.regressions.values()]):
        (seeds / str(i)).write_bytes(seed)
    flags = [
        f"-max_len={_MAX_INPUT}", f"-timeout={_PATIENCE * args.timeout}", f"-rss_limit_mb={args.memory}",
        f"-artifact_prefix={folder}/", "-len_control=0", f"-seed={args.seed}",
        f"-runs={args.runs}" if args.runs else f"-max_total_time={max(1, round(args.seconds))}",
    ]  # fmt: skip
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # or libFuzzer's alarm fires during the exit
    atheris.Setup(
        [sys.argv[0], *flags, str(kept), str(seeds)],
        lambda data: record.run(target, data, args.timeout),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def fuzz_plainly(target: Target, record: Record, args: argparse.Namespace) -> int:
    """Mutate seeds and accepted inputs until the time or the number of runs is reached. Returns the exit code."""
    random = Random(args.seed)
    pool = [*target.seeds, *target.regressions.values()]
    n_first = len(pool)
    deadline = None if args.runs else time.monotonic() + args.seconds
    while record.executions < args.runs if deadline is None else time.monotonic() < deadline:
        data = target.mutate(random.choice(pool), random)[:_MAX_INPUT]
        signal.alarm(_PATIENCE * args.timeout)
        try:
            accepted = record.run(target, data, args.timeout)
        except Exception:
            traceback.print_exc()
            return 1
        if accepted:
            if len(pool) < n_first + 200:
                pool.append(data)
            elif random.random() < 0.1:
                pool[random.randrange(n_first, len(pool))] = data
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.exit(main())
