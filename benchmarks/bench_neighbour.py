"""Measures what a busy program on one core leaves of a model's speed: with it and without, in turns.

    python benchmarks/bench_neighbour.py MODEL            # a model file, such as make_random_model.py writes
    python benchmarks/bench_neighbour.py MODEL --prompt 512 --new 32 --repeat 6

The program is an endless loop of Python on the first CPU. With n cores, arithmetic leaves 1 - 1 / (2 n) of the speed:
it takes half of its core. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from pyllama2._cpu import CpuBackend, default_threads
from pyllama2.analysis.benchmark import Spread, measure
from pyllama2.cli.common import positive
from pyllama2.cli.running import run_guarded
from pyllama2.loading import load_model


@contextlib.contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A block with a busy program on the first CPU, or without."""
    if not busy:
        yield
        return
    cpu = min(os.sched_getaffinity(0))
    with subprocess.Popen(["taskset", "-c", str(cpu), sys.executable, "-c", "while 1: pass"]) as program:
        time.sleep(0.3)
        try:
            yield
        finally:
            program.kill()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=positive, default=128, help="tokens of the prompt (default: 128)")
    parser.add_argument("--new", type=positive, default=48, help="tokens to decode (default: 48)")
    parser.add_argument("--repeat", type=positive, default=4, help="turns (default: 4)")
    parser.add_argument("--threads", type=positive, default=default_threads())
    args = parser.parse_args()
    model = load_model(args.model, quant=None, tokenizer=None, n_ctx=None, kv_dtype=None, progress=None)
    backend = CpuBackend(model, n_threads=args.threads)
    cache = backend.new_cache(1, max(args.prompt, args.new))
    measure(backend, cache, args.prompt, 2, 0)
    runs: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    hashes = set()
    for _ in range(args.repeat):
        for busy, found in runs.items():
            with neighbour(busy):
                run = measure(backend, cache, args.prompt, args.new, 0)
            found.append((run.decode, run.prompt))
            hashes.add(run.logits)
    print(f"{args.threads} threads; arithmetic leaves {1 - 0.5 / args.threads:.2f}")
    for i, what in enumerate(("decode", "prompt")):
        quiet, busy = ([run[i] for run in runs[busy]] for busy in (False, True))
        kept = statistics.median(busy) / statistics.median(quiet)
        print(f"{what}: {Spread.of(quiet)} tokens/s alone, {Spread.of(busy)} beside a busy program: {kept:.2f}")
    print(f"logits are {'the same' if len(hashes) == 1 else 'NOT THE SAME'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded("bench_neighbour.py", main))
