"""Measures the start: seconds to the first words of the command, to a model's first token, and where imports take them.

    python benchmarks/bench_start.py                     # the bundled model
    python benchmarks/bench_start.py -m llama-7b-q4.bin  # and the first token of a large one, from the page cache

The first run of each measurement does not count: it reads files into the page cache, and writes byte code. Python must
be allowed to keep that (no PYTHONDONTWRITEBYTECODE).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pyllama2._cpu import default_threads
from pyllama2.analysis.benchmark import Spread
from pyllama2.cli.common import positive
from pyllama2.cli.running import run_guarded

ROOT = Path(__file__).resolve().parents[1]
_PROMPT = "Once upon a time"
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


def first_words() -> float:
    """Return the seconds until the command generate writes what follows its prompt."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pyllama2.generate", _PROMPT, "-n", "4", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_ENVIRONMENT) as process:
        assert process.stdout is not None
        written = b""
        while len(written) <= len(_PROMPT) and (more := os.read(process.stdout.fileno(), 1000)):
            written += more
        took = time.perf_counter() - started
        process.stdout.read()
    return took


def first_token(model: str) -> float:
    """Return the seconds from the start of Python to the first token of a model, and the end of Python."""
    command = [sys.executable, str(ROOT / "benchmarks" / "start_once.py"), "pyllama2", model, str(default_threads())]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)
    return time.perf_counter() - started


def import_seconds() -> Counter[str]:
    """Return the seconds that each package's modules take to import, by python -X importtime, without what they import.

    Measuring makes imports slower.
    """
    command = [sys.executable, "-X", "importtime", "-m", "pyllama2.generate", _PROMPT, "-n", "1"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=_ENVIRONMENT).stderr
    seconds: Counter[str] = Counter()
    for own, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", lines):
        package = module.split(".")[0]
        seconds[package if package in ("numpy", "pyllama2", "sentencepiece", "psutil") else "Python's own"] += int(own)
    return Counter({package: own / 1e6 for package, own in seconds.items()})


def spread(measure: Callable[[], float], repeat: int) -> Spread:
    """Measure once in vain, then repeat times."""
    measure()
    return Spread.of([measure() for _ in range(repeat)])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="a model file whose first token is timed")
    parser.add_argument("--repeat", type=positive, default=9, help="measurements of each (default: 9)")
    args = parser.parse_args()
    if args.model:
        os.stat(args.model)  # an error comes before the work
    print(f"first words of generate, bundled model: {spread(first_words, args.repeat)} s")
    if args.model:
        print(f"first token of {Path(args.model).name}: {spread(lambda: first_token(args.model), args.repeat)} s")
    print("imports of generate, while they are measured:")
    for package, seconds in import_seconds().most_common():
        print(f"  {package:<14}{seconds * 1e3:6.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded("bench_start.py", main))
