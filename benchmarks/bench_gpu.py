"""Measures the speed of the CUDA backend on this machine's GPU, and the rate at which its memory can be read.

    python benchmarks/bench_gpu.py --models-dir DIR                        # 7B of random weights, q4
    python benchmarks/bench_gpu.py --model 7b.bin --contexts 0 4000 --kv-dtypes float16 int8 --json figures.json
    python benchmarks/bench_gpu.py --plan                                  # memory that 7B needs; needs no GPU

There is a row for each type of keys and values, context and number of sequences. It has the tokens/s of decoding all
sequences together, greedily and on the device, as texts are generated; the GB/s that this reads (weights once a step,
keys and values of each sequence); the share of the read rate; and how much longer a step takes if the host gives it to
the GPU only when it has the tokens of the last. The read rate is the best of several sums over a large array, before
and after. The first row is the speed of a prompt, with copying its logits to the host.

Before anything is timed, the logits of a prompt and of some steps are compared with the CPU's. Without a GPU, or if
they differ by more than a thousandth of the largest, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "random_models"))

from make_random_model import SHAPES

from pyllama2._gpu import CudaBackend
from pyllama2._gpu.planner import plan
from pyllama2.analysis.benchmark import fill_cache, random_tokens
from pyllama2.backend.base import Batch
from pyllama2.memory import kv_cache_bytes, weight_bytes_per_token
from pyllama2.sampling.sampler import Draw
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Quantization

_READ_BYTES = 1 << 30
_MOST_DIFFERENCE = 1e-3  # of logits, relative to the largest


def read_rate(cupy: Any, repeat: int = 8) -> float:
    """Return the GB/s of summing up a large array: of 1 GiB, or of half of the memory that is free."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    array = cupy.empty(min(_READ_BYTES, cupy.cuda.runtime.memGetInfo()[0] // 2) // 4, cupy.float32)
    seconds = []
    for _ in range(repeat + 1):  # the first one compiles
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        array.sum()
        end.record()
        end.synchronize()
        seconds.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    rate = float(array.nbytes / min(seconds[1:]) / 1e9)
    del array
    pool.free_all_blocks()  # the next cache may need it
    return rate


def difference(model: StoredModel, backend: CudaBackend) -> float:
    """Return the largest difference of logits from the CPU's, relative to the largest: a prompt, then single tokens."""
    from pyllama2._cpu import CpuBackend

    tokens, largest = random_tokens(model.config.vocab_size, 24), 0.0
    with closing(CpuBackend(model, kv_dtype=backend.kv_dtype)) as cpu, closing(backend.new_cache(1, 32)) as cache:
        theirs = cpu.new_cache(1, 32)
        for batch in (
            Batch.of_sequence(tokens[:20], outputs="all"),
            *(Batch.of_sequence([token], start=20 + i) for i, token in enumerate(tokens[20:])),
        ):
            expected, found = cpu.forward(batch, theirs), backend.forward(batch, cache)
            largest = max(largest, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return largest


def prompt_speed(backend: CudaBackend, n_tokens: int, repeat: int) -> float:
    """Return the median tokens/s of a prompt."""
    batch = Batch.of_sequence(random_tokens(backend.config.vocab_size, n_tokens))
    with closing(backend.new_cache(1, n_tokens)) as cache:
        backend.forward(batch, cache)
        return n_tokens / median(_seconds(lambda: backend.forward(batch, cache)) for _ in range(repeat))


def decode_speed(
    backend: CudaBackend, n_rows: int, context: int, n_new: int, repeat: int, *, ahead: bool = True
) -> float:
    """Return the median steps/s of n_rows sequences that are decoded together, from position context on.

    ahead: the GPU begins each step before the host has the tokens of the last, as it does while texts are generated.
    """
    rows = np.arange(n_rows, dtype=np.int32)
    first = np.asarray(random_tokens(backend.config.vocab_size, n_rows), np.int32)
    greedy = [Draw(0.0)] * n_rows
    with closing(backend.new_cache(n_rows, context + n_new)) as cache:
        for row in range(n_rows):
            fill_cache(backend, cache, context, row)

        def run() -> None:
            tokens = first
            for i in range(n_new):
                step = Batch(tokens, rows, np.full(n_rows, context + i, np.int32), rows)
                sampled = backend.sample(step, cache, greedy, greedy if ahead and i + 1 < n_new else None)
                assert sampled is not None
                tokens = sampled.copy()

        run()  # compiles, and records graphs
        return n_new / median(_seconds(run) for _ in range(repeat))


def _seconds(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def bench(model: StoredModel, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print the rows of one model."""
    import cupy

    found: list[dict[str, Any]] = []
    for kv_dtype in args.kv_dtypes:
        with closing(CudaBackend(model, kv_dtype=kv_dtype)) as backend:
            print(", ".join(f"{name} {value}" for name, value in backend.describe().known().items()))
            differs = difference(model, backend)
            said = f"differ from the CPU's by {differs:.1e}" if differs else "have the CPU's bits"
            print(f"{kv_dtype:8} logits {said}")
            speed = prompt_speed(backend, args.prompt_tokens, args.repeat)
            print(f"{kv_dtype:8} prompt of {args.prompt_tokens}: {speed:8.1f} tokens/s")
            found.append({"kv_dtype": kv_dtype, "prompt_tokens": args.prompt_tokens, "tokens_per_s": speed,
                          "logits_differ_by": differs})  # fmt: skip
            for context in args.contexts:
                for n_rows in args.sequences:
                    before = read_rate(cupy)
                    steps, waiting = (decode_speed(backend, n_rows, context, args.new_tokens, args.repeat, ahead=ahead)
                                      for ahead in (True, False))  # fmt: skip
                    longer = 1 / waiting - 1 / steps
                    rate = max(before, read_rate(cupy))
                    cache = n_rows * kv_cache_bytes(model.config, context + args.new_tokens // 2, kv_dtype)
                    read = (weight_bytes_per_token(model.config, model.quantization) + cache) * steps / 1e9
                    found.append({"kv_dtype": kv_dtype, "context": context, "sequences": n_rows,
                                  "tokens_per_s": steps * n_rows, "read_gb_per_s": read, "memory_gb_per_s": rate,
                                  "share": read / rate, "host_s": longer,
                                  "launches": backend.describe().launches})  # fmt: skip
                    print(f"{kv_dtype:8} {n_rows} sequences at {context:5}: {steps * n_rows:8.1f} tokens/s, "
                          f"{read:7.1f} GB/s, {read / rate:.0%} of {rate:.0f}; "
                          f"{longer * 1e6:+.0f} us a step if it waits for the host")  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="one of our files (default: a random one of --shape)")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="where random models are kept")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--type", choices=("q4", "q8"), default="q4", help="of random weights")
    parser.add_argument("--kv-dtypes", nargs="+", choices=("float16", "int8"), default=["float16"])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--contexts", nargs="+", type=int, default=[0, 2000])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 4, 8], help="decoded together")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("--plan", action="store_true", help="print the memory of --shape (counted) and exit")
    args = parser.parse_args(argv)
    if args.plan:
        config = SHAPES[args.shape][0]
        for kv_dtype in args.kv_dtypes:
            planned = plan(config, Quantization.of(args.type), 1, config.max_seq_len, kv_dtype)
            print(f"{args.shape} {args.type}, {config.max_seq_len} tokens, {kv_dtype} keys and values (counted)")
            print(planned.describe())
        return 0
    reason = CudaBackend.unavailable_reason()
    if reason is not None:
        print(f"no cuda: {reason}", file=sys.stderr)
        return 1
    if args.model is None:
        from benchmarking import random_model

        args.model = Path(random_model(str(args.models_dir), args.shape, args.type, None))
    rows = bench(StoredModel.open(args.model), args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if any(row.get("logits_differ_by", 0.0) > _MOST_DIFFERENCE for row in rows):
        print("the logits are not those of the CPU", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
