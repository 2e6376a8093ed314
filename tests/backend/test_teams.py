"""OpenMP may give fewer threads than were asked for. Every number is the same then, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.subprocess

# Digests of whatever runs in parallel: prompts and single tokens with each kind of weights and keys, with attention
# dealt out by heads and by spans, products of one matrix, quantizers.
PROGRAM = """
import hashlib, sys
import numpy as np
from pyllama2._cpu import CpuBackend, quantize_matrix
from pyllama2._cpu.matrix import MatrixProduct
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from helpers.tiny import quantized_model, random_weights

n_threads = int(sys.argv[1])
digest = hashlib.sha256()
rng = np.random.default_rng(1)
config = ModelConfig(
    dim=96, hidden_dim=200, n_layers=2, n_heads=6, n_kv_heads=3, head_dim=16, vocab_size=300, max_seq_len=1100
)
weights = random_weights(config)
for kind, kv_dtype in (("float32", "float32"), ("float16", "float16"), ("q8", "int8"), ("q4", "float16")):
    backend = CpuBackend(quantized_model(config, weights, kind, 32), n_threads=n_threads, kv_dtype=kv_dtype)
    cache = backend.new_cache(2, 1100)
    ids = rng.integers(0, 300, 1020)
    digest.update(backend.forward(Batch.of_sequence(ids[:1010]), cache).tobytes())
    for i in range(1010, 1020):
        digest.update(backend.forward(Batch.of_sequence(ids[i : i + 1], start=i), cache).tobytes())
matrix = rng.standard_normal((301, 200)).astype(np.float32)
for kind in ("q8", "q4"):
    for part in quantize_matrix(matrix, kind, 32, n_threads):
        digest.update(part.tobytes())
model = quantized_model(config, weights, "q4", 32)
for columns in (1, 7, 64):
    product = MatrixProduct(model.weights["layers.0.feed_forward.w1.weight"], columns, n_threads)
    digest.update(product(rng.standard_normal((columns, 96)).astype(np.float32)).tobytes())
print(digest.hexdigest())
"""
SETTINGS = [
    {"OMP_THREAD_LIMIT": "1"},
    {"OMP_THREAD_LIMIT": "2"},
    {"OMP_MAX_ACTIVE_LEVELS": "0"},
    {"OMP_DYNAMIC": "true"},
    {"OMP_NESTED": "true"},
    {"OMP_PROC_BIND": "true"},
    {"OMP_PROC_BIND": "close", "OMP_PLACES": "{0}"},
]


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**own, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def digest_of_one_thread() -> str:
    return run(PROGRAM, "1").stdout


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(map("=".join, settings.items())))
def test_fewer_threads_than_asked(settings: dict[str, str], digest_of_one_thread: str) -> None:
    assert run(PROGRAM, "5", **settings).stdout == digest_of_one_thread


def test_a_word_about_fewer_threads() -> None:
    program = "import pyllama2; pyllama2.Llama(n_threads=3).generate('One day', max_tokens=2)"
    assert run(program, OMP_THREAD_LIMIT="2").stderr == (
        "OpenMP gives 2 threads instead of 3; results are the same, but take longer\n"
    )
    assert run(program).stderr == ""


class TestDefaultThreads:
    PROGRAM = "from pyllama2._cpu import default_threads; print(default_threads())"

    @pytest.mark.parametrize("settings", [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}])
    def test_binding_does_not_hide_cpus(self, settings: dict[str, str]) -> None:
        assert run(self.PROGRAM, **settings).stdout == run(self.PROGRAM).stdout

    def test_what_the_process_may_use_counts(self) -> None:
        one = min(os.sched_getaffinity(0))
        program = f"import os; os.sched_setaffinity(0, {{{one}}}); {self.PROGRAM}"
        assert run(program).stdout == run(program, OMP_PROC_BIND="true").stdout == "1\n"

    def test_limit(self) -> None:
        assert run(self.PROGRAM, OMP_NUM_THREADS="4", OMP_THREAD_LIMIT="3").stdout == "3\n"
        assert run(self.PROGRAM, PYLLAMA2_NUM_THREADS="4", OMP_THREAD_LIMIT="3").stdout == "4\n"
