"""Measures attention in prompts: which share of the machine's arithmetic it reaches, by the profile.

    python benchmarks/bench_attention.py --tokens 4000

Two layers of random weights, with the heads of the 1.1B shape (64 numbers, 8 queries for a key) and of the 7B shape
(128 numbers, one query for a key), compute a prompt. The profile says how long attention took, queries to outputs. It
has 4 operations for each number of a query and each position that this query sees. The machine's arithmetic is that of
multiply-adds in registers, which a loop in C does in as many threads (needs a C compiler). It is measured before and
after each prompt, and the mean of both counts. What is printed is the median of --repeat turns.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarking import random_model

from pyllama2._cpu import CpuBackend, default_threads
from pyllama2.analysis.benchmark import random_tokens
from pyllama2.backend.base import Batch
from pyllama2.cli.common import positive
from pyllama2.cli.running import run_guarded
from pyllama2.config import ModelConfig
from pyllama2.errors import Pyllama2Error
from pyllama2.loading import load_model

LAYERS = 2
CHAINS = 12  # multiply-adds that do not wait for each other
_VECTOR_BYTES = {"avx512": 64, "avx2": 32, "avx_vnni": 32}  # by instruction set; other ones have 16
_LOOP = """
typedef float vector __attribute__((vector_size(BYTES)));
float multiply_add(long n) {
  vector sums[CHAINS] = {{0}}, x = {0.5f}, y = {1};
  for (long i = 0; i < n; i++)
#pragma GCC unroll 16
    for (int c = 0; c < CHAINS; c++) {
      sums[c] = sums[c] * x + y;
      __asm__("" : REGISTER(sums[c]));
    }
  float total = 0;
#pragma GCC unroll 16
  for (int c = 0; c < CHAINS; c++) total += sums[c][0];
  return total;
}
"""


class Arithmetic:
    """Multiply-adds in registers, in so many threads.

    Args:
        isa: the instruction set, whose vectors are used.
        n_threads: number of threads.
        folder: where to compile.

    Raises:
        Pyllama2Error: there is no C compiler, or it cannot compile the loop.
    """

    LOOPS = 40_000_000

    def __init__(self, isa: str, n_threads: int, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise Pyllama2Error("there is no C compiler called cc, which the loop of multiply-adds needs")
        source, library = folder / "loop.c", folder / "loop.so"
        source.write_text(_LOOP)
        n_bytes, register = _VECTOR_BYTES.get(isa, 16), "+w" if isa.startswith("neon") else "+v"
        options = ["-march=native", "-ffp-contract=fast", f"-DBYTES={n_bytes}", f"-DCHAINS={CHAINS}",
                   f'-DREGISTER="{register}"']  # fmt: skip
        command = [compiler, "-O2", "-shared", "-fPIC", *options, "-o", str(library), str(source)]
        if subprocess.run(command).returncode:
            raise Pyllama2Error(f"{compiler} cannot compile the loop of multiply-adds")
        self._loop = ctypes.CDLL(str(library)).multiply_add
        self._loop.argtypes, self._loop.restype = [ctypes.c_long], ctypes.c_float
        self._operations = 2 * n_bytes // 4 * CHAINS * self.LOOPS * n_threads
        self._pool = ThreadPoolExecutor(n_threads)
        self._n_threads = n_threads

    def gflops(self) -> float:
        """Return 10^9 operations a second, in one turn."""
        started = time.perf_counter()
        list(self._pool.map(self._loop, [self.LOOPS] * self._n_threads))
        return self._operations / (time.perf_counter() - started) / 1e9


def attention_gflops(config: ModelConfig, backend: CpuBackend, n_tokens: int) -> float:
    """Return 10^9 operations a second of attention, of all layers of one prompt."""
    cache = backend.new_cache(1, n_tokens)
    before = attention_seconds(backend)
    backend.forward(Batch.of_sequence(random_tokens(config.vocab_size, n_tokens), outputs="last"), cache)
    seconds = attention_seconds(backend) - before
    return operations_of(config, n_tokens) / seconds / 1e9


def operations_of(config: ModelConfig, n_tokens: int) -> int:
    """Return the operations of attention of all layers in a prompt. A token sees itself and all before it."""
    return 4 * config.n_layers * config.n_heads * config.head_dim * n_tokens * (n_tokens + 1) // 2


def attention_seconds(backend: CpuBackend) -> float:
    """Return the seconds of attention in prompts so far."""
    (step,) = (step for step in backend.profile().steps if step.name == "attention")
    return step.prompt_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1.1b", "7b"])
    parser.add_argument("--tokens", type=positive, default=4000)
    parser.add_argument("--kv", nargs="+", default=["float16", "int8"], help="types of keys and values")
    parser.add_argument("--threads", type=positive, default=default_threads())
    parser.add_argument("--repeat", type=positive, default=5)
    parser.add_argument("--models-dir", default="random-models", metavar="DIR", help="of random models (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arithmetic = None
        for shape in args.shapes:
            path = random_model(args.models_dir, shape, "q4", LAYERS)
            for kv_dtype in args.kv:
                model = load_model(path, quant=None, tokenizer=None, n_ctx=None, kv_dtype=kv_dtype, progress=None)
                backend = CpuBackend(model, n_threads=args.threads, kv_dtype=kv_dtype)
                arithmetic = arithmetic or Arithmetic(backend.describe().isa or "", args.threads, Path(folder))
                limits, reached = [arithmetic.gflops()], []
                for _ in range(args.repeat):
                    reached.append(attention_gflops(model.config, backend, args.tokens))
                    limits.append(arithmetic.gflops())
                shares = sorted(2 * found / sum(pair) for found, pair in zip(reached, pairwise(limits), strict=True))
                print(
                    f"{shape}: heads of {model.config.head_dim}, {kv_dtype}: {statistics.median(reached):.0f} GFLOP/s"
                    f" of {statistics.median(limits):.0f}, {statistics.median(shares):.0%}"
                    f" ({shares[0]:.0%} to {shares[-1]:.0%})",
                    flush=True,
                )
                backend.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded("bench_attention.py", main))
