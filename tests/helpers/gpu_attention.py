"""Attention by the CPU backend's kernels, to the bit, and caches filled alike on both devices, for the CUDA tests."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyllama2._cpu.cache import CpuKVCache
from pyllama2._gpu.cache import CudaKVCache
from pyllama2.config import ModelConfig

Floats = NDArray[np.float32]
ROOT = Path(__file__).parents[2]
KINDS = {"float16": 1, "int8": 2}


def config_of(heads: tuple[int, int, int], n_layers: int = 1) -> ModelConfig:
    """A model with so many query heads, key heads and numbers in a head."""
    n_heads, n_kv_heads, head_dim = heads
    return ModelConfig(
        dim=32, hidden_dim=32, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
        vocab_size=40, max_seq_len=4096,
    )  # fmt: skip


def cpu_kernels(folder: Path) -> Any:
    """The function attention_of() of kernels/attention_of.c."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    target = folder / "attention_of.so"
    command = ["gcc", "-O2", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-w"]
    command += ["-I", str(ROOT / "pyllama2" / "_cpu" / "kernels"), str(ROOT / "tests" / "kernels" / "attention_of.c")]
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizers in the compiler
    subprocess.run([*command, "-o", str(target), "-lm"], check=True, env=env)
    return ctypes.CDLL(str(target)).attention_of


def expected_attention(
    attention_of: Any, cache: CpuKVCache, q: Floats, rows: list[int], positions: list[int], layer: int = 0
) -> Floats:
    """Attention of q (n, n_heads, head_dim) to one layer of a CPU cache."""
    out = np.zeros_like(q)
    for token, (row, position) in enumerate(zip(rows, positions, strict=True)):
        for head in range(q.shape[1]):
            at = (layer, row, head * cache.keys.shape[2] // q.shape[1])
            arrays = [None if a is None else a[at].ctypes.data_as(ctypes.c_void_p)
                      for a in (cache.keys, cache.values, cache.key_scales, cache.value_scales)]  # fmt: skip
            sizes = (cache.keys.shape[-2], cache.values.shape[-1], position)
            vectors = (np.ascontiguousarray(x).ctypes.data_as(ctypes.c_void_p) for x in (q[token, head],))
            done = attention_of(KINDS[str(cache.keys.dtype)], *arrays, *sizes, *vectors,
                                out[token, head].ctypes.data_as(ctypes.c_void_p))  # fmt: skip
            if not done:
                pytest.skip("this CPU has no fused multiply-add")
    return out


def random_row(config: ModelConfig, length: int, dtype: str, seed: int) -> dict[str, NDArray[Any]]:
    """A row as save_row() gives it, some positions of which matter more than others."""
    rng = np.random.default_rng(seed)
    shape = (config.n_layers, config.n_kv_heads, length, config.head_dim)
    numbers = {name: rng.standard_normal(shape).astype(np.float32) for name in ("keys", "values")}
    numbers["keys"] *= rng.choice([0.3, 1.0, 3.0], (*shape[:3], 1)).astype(np.float32)
    if dtype == "float16":
        return {name: array.astype(np.float16) for name, array in numbers.items()}
    saved: dict[str, NDArray[Any]] = {}
    for name, array in numbers.items():
        scales = np.abs(array).max(-1) / np.float32(127)
        saved[name] = np.rint(array * (1 / scales)[..., None]).astype(np.int8)
        saved[name.replace("s", "") + "_scales"] = scales
    return saved


def filled_caches(cupy: Any, config: ModelConfig, lengths: list[int], dtype: str) -> tuple[CpuKVCache, CudaKVCache]:
    """Caches of both backends with the same numbers: rows of these lengths, each with some room after it."""
    cpu = CpuKVCache(config, len(lengths), max(lengths) + 3, dtype)
    gpu = CudaKVCache(cupy, config, len(lengths), max(lengths) + 3, dtype)
    for row, length in enumerate(lengths):
        arrays = random_row(config, length, dtype, row)
        cpu.load_row(row, arrays)
        gpu.load_row(row, arrays)
    return cpu, gpu
