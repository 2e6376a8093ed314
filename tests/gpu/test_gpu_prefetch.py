"""What kernels prefetch: bytes of what the next kernel of a step reads, and no other ones."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import LaunchCounts, StandIn, missing_compiler
from helpers.gpu_backend import assert_same_logits, make_model, ragged_step, random_tokens
from helpers.gpu_layout import random_weight

from pyllama2._cpu import CpuBackend
from pyllama2._gpu import CudaBackend
from pyllama2._gpu.launchers.prefetch import RUN, TILE_AHEAD, Prefetch, keys_ahead, prefetch_arguments
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2.config import ModelConfig

pytestmark = pytest.mark.subprocess
SECTOR = 32
L2_BYTES = 1 << 20


def sectors(n_bytes: int, most: int) -> int:
    """Sectors that are prefetched of so many bytes: every other kilobyte, up to the most bytes."""
    places = [at // RUN * 2 * RUN + at % RUN for at in range(0, most, SECTOR)]
    return sum(place < n_bytes for place in places)


def steps(n: int, type: str, kv_dtype: str, mode: str) -> tuple[StandIn, list[LaunchCounts], CudaBackend]:
    """Two steps of n sequences, whose logits are the CPU's, and what the launches of the second one cost."""
    if reason := missing_compiler():
        pytest.skip(reason)
    config = ModelConfig(dim=256, hidden_dim=320, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, vocab_size=100,
                         max_seq_len=64)  # fmt: skip
    model = make_model(config, type, 32)
    with StandIn(mode=mode, l2_bytes=L2_BYTES).installed() as cupy:
        cpu, gpu = CpuBackend(model, n_threads=1, kv_dtype=kv_dtype), CudaBackend(model, kv_dtype=kv_dtype)
        caches = cpu.new_cache(n, 64), gpu.new_cache(n, 64)
        tokens = random_tokens(config, 2 * n)
        for step in range(2):
            batch = ragged_step([[token] for token in tokens[step * n : (step + 1) * n]], [step] * n)
            first = len(cupy.device.counts)
            assert_same_logits(cpu, cpu.forward(batch, caches[0]), gpu.forward(batch, caches[1]))
        return cupy, cupy.device.counts[first:], gpu


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("type", ["q4", "q8"])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_a_kernel_prefetches_what_the_next_one_reads(n: int, type: str, kv_dtype: str) -> None:
    _, counts, gpu = steps(n, type, kv_dtype, "count")
    kernels = [count for count in counts if re.match(r"matvec|attend", count.kernel)]
    assert len(kernels) == 2 * 5 + 1
    layers, output = gpu._model_open().layers, gpu._model_open().output
    config = gpu.config
    matrices = [matrix for layer in layers for matrix in (layer.wqkv, None, layer.wo, layer.w13, layer.w2)] + [output]
    for (kernel, _), (_, matrix) in zip(pairwise(kernels), pairwise(matrices), strict=True):
        if matrix is None:  # the keys before position 1: a block of 32
            key_bytes = 32 * config.head_dim * np.dtype(kv_dtype).itemsize
            wanted = n * config.n_kv_heads * sectors(key_bytes, keys_ahead(L2_BYTES, n, config.n_kv_heads))
        else:
            following = Prefetch.of(matrix, L2_BYTES)
            assert following is not None
            wanted = following.tiles * sectors(matrix.codes.nbytes // matrix.tiles, TILE_AHEAD)
        assert kernel.instructions["prefetches"] == wanted > 0, kernel.kernel
    assert kernels[-1].instructions["prefetches"] == 0  # what comes after it is read already


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_nothing_else_is_prefetched(kv_dtype: str) -> None:
    """The emulator finds a prefetch beyond the end of an array."""
    cupy, *_ = steps(2, "q4", kv_dtype, "check")
    assert cupy.device.settings.checks


def test_a_small_cache_gets_a_part() -> None:
    if reason := missing_compiler():
        pytest.skip(reason)
    matrix = Uploader(StandIn()).matrix(random_weight("q4", 64, (32 * 20, 64)))
    assert Prefetch.of(matrix, 0) is None and Prefetch.of(matrix, 4 * TILE_AHEAD - 1) is None
    for l2_bytes, tiles in ((4 * TILE_AHEAD, 1), (40 * TILE_AHEAD, 10), (400 * TILE_AHEAD, 20)):
        following = Prefetch.of(matrix, l2_bytes)
        assert following is not None and following.tiles == tiles
        codes, tile_bytes, n = prefetch_arguments(following)
        assert codes is matrix.codes and (tile_bytes, n) == (32 * 64 // 2, tiles)
    assert keys_ahead(4 << 20, 1, 8) == 128 << 10 and keys_ahead(4 << 20, 8, 8) == 16 << 10
    assert keys_ahead(100, 1, 8) == 0


def test_float_matrices_are_not_prefetched() -> None:
    if reason := missing_compiler():
        pytest.skip(reason)
    matrix: Any = Uploader(StandIn()).matrix(random_weight("float16", 0, (64, 64)))
    assert Prefetch.of(matrix, 1 << 30) is None


def test_the_kernels_have_these_numbers() -> None:
    text = (Path(__file__).parents[2] / "pyllama2/_gpu/kernels/prefetch.cu").read_text()
    assert f"kTileAhead = {TILE_AHEAD >> 10} << 10;" in text
    assert f"kSector = {SECTOR}, kRun = {RUN};" in text
