"""The CUDA backend beside the CPU backend, for its tests: with the real CuPy, or on the checking emulator."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pretended_driver
import pytest
from cuda_emulator import StandIn, missing_compiler
from numpy.typing import NDArray
from pretended_driver import Driver

from helpers.tiny import quantized_model, random_weights
from pyllama2._cpu import CpuBackend
from pyllama2._gpu import CudaBackend
from pyllama2._gpu.planner import Plan
from pyllama2.backend.base import Backend, Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.config import ModelConfig
from pyllama2.storage.model_file import StoredModel

# Those whose float sums have the order of the CUDA kernels; others may round otherwise.
SAME_BITS = ("avx2", "avx_vnni", "avx512")


@functools.cache
def has_gpu() -> bool:
    """Whether a driver and a GPU are there. To be asked before the pretended driver is installed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pretended() -> Driver:
    """The real CuPy on a pretended driver; else the test is skipped."""
    if has_gpu():
        pytest.skip("there is a GPU, and nothing to pretend")
    if reason := pretended_driver.missing():
        pytest.skip(reason)
    return pretended_driver.install()


@contextmanager
def real_cupy(**settings: Any) -> Iterator[Any]:
    """The module cupy: on a GPU where there is one, else on the pretended driver with these settings."""
    if has_gpu():
        yield pytest.importorskip("cupy", exc_type=ImportError)
        return
    driver = pretended()
    with driver.machine(**settings):
        yield driver.cupy


@contextmanager
def checking_cupy(**settings: Any) -> Iterator[Any]:
    """`import cupy` gives an emulator that checks every access meanwhile."""
    if reason := missing_compiler():
        pytest.skip(reason)
    with StandIn(mode="check", **settings).installed() as cupy:
        yield cupy


def pair(model: StoredModel, kv_dtype: str) -> tuple[CpuBackend, CudaBackend]:
    """Both backends of one model."""
    return CpuBackend(model, n_threads=1, kv_dtype=kv_dtype), CudaBackend(model, kv_dtype=kv_dtype)


def pool_bytes(planned: Plan) -> int:
    """What CuPy's pool counts for the arrays of a plan: multiples of 512 bytes."""
    return sum(-(-array.nbytes // 512) * 512 for array in planned.arrays)


def make_model(config: ModelConfig, type: str = "q4", group_size: int = 32, seed: int = 0) -> StoredModel:
    return quantized_model(config, random_weights(config, seed), type, group_size)


def random_tokens(config: ModelConfig, n: int, seed: int = 5) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n).tolist()


def assert_same_logits(cpu: CpuBackend, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    """Equal to the bit where the CPU sums in the same order, else as near as two instruction sets of a CPU are."""
    assert found.dtype == np.float32 and found.shape == expected.shape and np.isfinite(found).all()
    if cpu.describe().isa in SAME_BITS:
        assert np.array_equal(found, expected)
    else:
        assert np.median(np.abs(found - expected).max(1)) < 2e-3 * np.abs(expected).max()


def ragged_step(tokens: list[list[int]], positions: list[int]) -> Batch:
    """One batch of the next tokens of each row, from its position on; logits of all."""
    rows = [row for row, piece in enumerate(tokens) for _ in piece]
    places = [start + i for start, piece in zip(positions, tokens, strict=True) for i in range(len(piece))]
    flat = [token for piece in tokens for token in piece]
    arrays = (np.asarray(values, np.int32) for values in (flat, rows, places, range(len(flat))))
    return Batch(*arrays)


def run_ragged(backend: Backend, cache: KVCache, sequences: list[list[int]], pieces: list[list[int]]) -> list[Any]:
    """Logits (length, vocab_size) of each sequence, taken in pieces: pieces[i][row] tokens of each row at once."""
    done, found = [0] * len(sequences), [[] for _ in sequences]  # type: ignore[var-annotated]
    for lengths in pieces:
        step = [tokens[at : at + n] for tokens, at, n in zip(sequences, done, lengths, strict=True)]
        batch = ragged_step(step, done)
        logits = backend.forward(batch, cache)
        for row in range(len(sequences)):
            found[row].append(logits[batch.rows == row])
            done[row] += len(step[row])
    return [np.concatenate(parts) for parts in found]


def assert_cpus_logits(model: StoredModel, kv_dtype: str, pieces: list[list[int]], length: int = 40) -> None:
    """Rows are taken in pieces, as run_ragged() says: their logits are the CPU's."""
    cpu, gpu = pair(model, kv_dtype)
    lengths = [sum(column) for column in zip(*pieces, strict=True)]
    sequences = [random_tokens(model.config, n, row) for row, n in enumerate(lengths)]
    found = run_ragged(gpu, gpu.new_cache(len(lengths), length), sequences, pieces)
    expected = run_ragged(cpu, cpu.new_cache(len(lengths), length), sequences, pieces)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_logits(cpu, theirs, ours)
