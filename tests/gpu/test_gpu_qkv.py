"""wq wk wv -> biases -> rope -> kv append: in one launch for few tokens, in two for prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.gpu_attention import config_of
from helpers.gpu_layout import Floats, device_vectors, random_vectors, random_weight, rms_norm
from numpy.typing import NDArray

from pyllama2._cpu.matrix import MatrixProduct
from pyllama2._gpu.cache import CudaKVCache, LayerCache
from pyllama2._gpu.launchers.cache import FinishQkv
from pyllama2._gpu.launchers.matmul import Matmul
from pyllama2._gpu.launchers.matvec import QkvMatvec
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.launchers.vectors import Normed, VectorKernels
from pyllama2._gpu.layout import Vectors, is_float

N_POSITIONS, N_ROWS = 64, 3
EPS = 1e-5


def rotated(x: Floats, positions: NDArray[np.int32], turns: Floats) -> Floats:
    """x (n, heads, head_dim) with the rounding of the CPU: products and sums one by one."""
    turn = turns[positions][:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    pairs = [a * turn[..., 0] - b * turn[..., 1], a * turn[..., 1] + b * turn[..., 0]]
    return np.stack(pairs, axis=-1).reshape(x.shape)


def make_turns(head_dim: int) -> Floats:
    angles = np.outer(np.arange(N_POSITIONS), 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim))
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def as_positions(keys: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Keys of the cache as (n_rows, n_kv_heads, n_positions, head_dim)."""
    piece = math.gcd(head_dim, 16 // keys.dtype.itemsize)
    blocks = keys.reshape(N_ROWS, -1, N_POSITIONS // 32, head_dim // piece, 32, piece)
    return blocks.transpose(0, 1, 2, 4, 3, 5).reshape(N_ROWS, -1, N_POSITIONS, head_dim)


def int8_codes(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Codes and scales of vectors (..., head_dim), as the CPU's cache has them."""
    scales = np.abs(x).max(-1) / np.float32(127)
    return np.rint(x * (np.float32(1) / scales)[..., None]).clip(-127, 127).astype(np.int8), scales


# heads, head_dim: MHA and GQA; heads that share tiles, end in the middle of one, or fill four
HEADS = [(6, 3, 8), (4, 4, 16), (2, 1, 64), (4, 2, 80), (2, 2, 128)]


# type, group_size, n, norms; vectors for float matrices come from the kernel before
CASES = [
    (type, group_size, n, norms)
    for type, group_size in (("q4", 64), ("q8", 32), ("float16", 128), ("float32", 128))
    for n, norms in ((1, False), (1, True), (4, False), (8, False))
    if not (norms and is_float(type))
]


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("type", "group_size", "n", "norms"), CASES)
def test_queries_and_cache(
    cupy: Any, type: str, group_size: int, heads: tuple[int, int, int], kv_dtype: str, n: int, norms: bool
) -> None:
    n_heads, n_kv_heads, head_dim = heads
    dim, q_dim, kv_dim = 172, n_heads * head_dim, n_kv_heads * head_dim
    weights = [random_weight(type, group_size, (rows, dim), i) for i, rows in enumerate((q_dim, kv_dim, kv_dim))]
    x, turns = random_vectors(n, dim), make_turns(head_dim)
    places = np.random.default_rng(2).choice(N_ROWS * N_POSITIONS, n, replace=False)
    rows, positions = (places // N_POSITIONS).astype(np.int32), (places % N_POSITIONS).astype(np.int32)

    given: Vectors | Normed
    if norms:
        norm_weight = random_vectors(1, dim, 8)[0]
        given = Normed(cupy.asarray(x[0]), cupy.asarray(norm_weight), EPS)
        x = rms_norm(x, norm_weight, EPS)
    vectors = device_vectors(cupy, VectorKernels(cupy, group_size, "float32"), x, type, group_size)
    if not norms:
        given = vectors
    matrix = Uploader(cupy).matrix(*weights)
    q = cupy.empty((n, n_heads, head_dim), np.float32)
    kv, counters = cupy.empty((2, n, kv_dim), np.float32), cupy.zeros((2, n_kv_heads), np.uint32)
    keys, values = (cupy.zeros(N_ROWS * kv_dim * N_POSITIONS, kv_dtype) for _ in range(2))
    scales = [cupy.zeros((N_ROWS, n_kv_heads, N_POSITIONS), np.float32) for _ in range(2)]
    int8 = kv_dtype == "int8"
    device_turns, device_positions = cupy.asarray(turns), cupy.asarray(positions)
    launch = QkvMatvec(cupy, type, group_size, n, head_dim, kv_dtype, norms=norms)
    bias = None if n == 8 else random_vectors(1, q_dim + 2 * kv_dim, 3)[0]
    device_bias = None if bias is None else cupy.asarray(bias)
    for _ in range(2):  # counters are ready for the next launch
        launch(
            matrix, given, device_turns, cupy.asarray(rows), device_positions, q, kv if int8 else None,
            counters if int8 else None, N_POSITIONS, keys, values, *(scales if int8 else (None, None)), device_bias,
        )  # fmt: skip
        assert not counters.get().any()

    products = [MatrixProduct(weight, n)(x) for weight in weights]
    if bias is not None:
        products = [a + b for a, b in zip(products, np.split(bias, [q_dim, q_dim + kv_dim]), strict=True)]
    products = [product.reshape(n, -1, head_dim) for product in products]
    expected_q, expected_k = (rotated(product, positions, turns) for product in products[:2])
    assert q.get().tobytes() == expected_q.tobytes()
    stored = [as_positions(keys.get(), head_dim), values.get().reshape(N_ROWS, n_kv_heads, N_POSITIONS, head_dim)]
    for i, expected in enumerate((expected_k, products[2])):
        found = stored[i][rows, :, positions]
        if int8:
            codes, code_scales = int8_codes(expected)
            assert (found == codes).all()
            assert scales[i].get()[rows, :, positions].tobytes() == code_scales.tobytes()
        else:
            assert found.tobytes() == expected.astype(np.float16).tobytes()
        written = np.zeros((N_ROWS, N_POSITIONS), bool)
        written[rows, positions] = True
        assert not stored[i].transpose(0, 2, 1, 3)[~written].any()

    # The kernels of prompts give the same.
    of_prompt = LayerCache(
        *(cupy.zeros(N_ROWS * kv_dim * N_POSITIONS, kv_dtype) for _ in range(2)),
        *(cupy.zeros((N_ROWS, n_kv_heads, N_POSITIONS), np.float32) if int8 else None for _ in range(2)), N_POSITIONS,
    )  # fmt: skip
    apart = cupy.empty((n, q_dim), np.float32)
    Matmul(cupy, type, group_size, 80).qkv(matrix, vectors, n, apart, kv)
    finish = FinishQkv(cupy, config_of(heads), kv_dtype)
    finish(apart, kv, n, device_bias, device_turns, cupy.asarray(rows), device_positions, of_prompt)
    assert apart.get().tobytes() == expected_q.tobytes()
    for ours, theirs in ((of_prompt.keys, keys), (of_prompt.values, values)):
        assert ours.get().tobytes() == theirs.get().tobytes()
    if int8:
        for ours, theirs in zip((of_prompt.key_scales, of_prompt.value_scales), scales, strict=True):
            assert ours.get().tobytes() == theirs.get().tobytes()


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_what_finishes_a_prompts_queries_and_cache_is_checked(cupy: Any, kv_dtype: str) -> None:
    config = config_of((4, 2, 8))
    cache = CudaKVCache(cupy, config, 1, 32, kv_dtype).layers[0]
    finish = FinishQkv(cupy, config, kv_dtype)
    sizes = {"q": 3 * 32, "kv": 2 * 3 * 16, "bias": 32 + 2 * 16, "rope_table": 8, "rows": 3, "positions": 3}
    for name in sizes:
        arrays = {key: cupy.zeros(size - (key == name), np.int32 if key in ("rows", "positions") else np.float32)
                  for key, size in sizes.items()}  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} must be a contiguous"):
            finish(n=3, cache=cache, **arrays)
    arrays = {key: cupy.zeros(size, np.int32 if key in ("rows", "positions") else np.float32)
              for key, size in sizes.items()}  # fmt: skip
    with pytest.raises(ValueError, match=r"^keys must be a contiguous"):
        finish(n=3, cache=replace(cache, keys=cache.keys.view(np.uint8)), **arrays)
