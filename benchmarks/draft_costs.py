"""What a draft is worth, on paper: times of the passes are measured, the gain is computed for shares of true guesses.

    python benchmarks/draft_costs.py 7b-q8.bin 7b-q4.bin     # a model and its draft, which may have random weights

A pass of the model checks n guesses in 1 + n columns, after n passes of the draft. If a share a of the guesses comes
true, such a round makes 1 + a + a^2 + ... + a^n tokens. The gain is tokens by time, over a pass of one column. Texts
of a real model show which share comes true (bench_draft.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from pyllama2._cpu import CpuBackend, default_threads
from pyllama2.analysis.benchmark import random_tokens
from pyllama2.backend.base import Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.cli.common import positive
from pyllama2.cli.running import run_guarded
from pyllama2.loading import load_model

_MOST = 8  # guesses
_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)


def open_backend(path: str, n_threads: int) -> tuple[CpuBackend, KVCache]:
    """Return a model's backend, and a cache for one sequence."""
    model = load_model(path, quant=None, tokenizer=None, n_ctx=None, kv_dtype=None, progress=None)
    backend = CpuBackend(model, n_threads=n_threads)
    return backend, backend.new_cache(1, 64)


def seconds_of(backend: CpuBackend, cache: KVCache, n_tokens: int) -> float:
    """Return the seconds of a pass of n tokens, with logits of all."""
    batch = Batch.of_sequence(random_tokens(backend.config.vocab_size, n_tokens), start=16, outputs="all")
    started = time.perf_counter()
    backend.forward(batch, cache)
    return time.perf_counter() - started


def gain(share: float, n: int, passes: list[float], draft: float) -> float:
    """Return how many times as fast rounds of n guesses are, from the seconds of passes of 1, 2, ... columns."""
    return sum(share**i for i in range(n + 1)) * passes[0] / (passes[n] + n * draft)


def main() -> int:
    """Measure, compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("draft")
    parser.add_argument("--threads", type=positive, default=default_threads())
    parser.add_argument("--repeat", type=positive, default=5, help="passes of each kind (default: 5)")
    args = parser.parse_args()
    model, model_cache = open_backend(args.model, args.threads)
    draft, draft_cache = open_backend(args.draft, args.threads)
    seconds_of(model, model_cache, 1)
    passes: list[list[float]] = [[] for _ in range(_MOST + 1)]
    drafts = []
    for _ in range(args.repeat):
        for n, found in enumerate(passes):
            found.append(seconds_of(model, model_cache, n + 1))
        drafts += [seconds_of(draft, draft_cache, 1) for _ in range(3)]
    medians, one = [statistics.median(found) for found in passes], statistics.median(drafts)
    print("measured, milliseconds of a pass of the model with 1, 2, ... columns:")
    print("  " + " ".join(f"{seconds * 1e3:.1f}" for seconds in medians) + f"; of the draft: {one * 1e3:.1f}")
    print("computed, for a share of true guesses:")
    for share in _SHARES:
        best = max(range(_MOST + 1), key=lambda n: gain(share, n, medians, one))
        print(f"  {share:.1f}: {gain(share, best, medians, one):.2f} times, with {best} guesses")
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded("draft_costs.py", main))
