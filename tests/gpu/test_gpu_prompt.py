"""The kernels for prompts: products with many vectors have the bits of those with few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulationError, StandIn, missing_compiler
from helpers.gpu_backend import real_cupy
from helpers.gpu_layout import device_vectors, random_vectors, random_weight

from pyllama2._cpu.matrix import MatrixProduct
from pyllama2._gpu import source
from pyllama2._gpu.launchers.matmul import Matmul
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.launchers.vectors import VectorKernels
from pyllama2._gpu.layout import FLOAT_GROUP, Vectors

FORMATS = [(type, group_size) for type in ("q4", "q8") for group_size in (32, 64, 128)]


@pytest.fixture(scope="module", params=["sm_70", "sm_75", "sm_80, forward", "sm_80, in another order", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[tuple[Any, int]]:
    """cupy, or a stand-in, and the compute capability that the launchers are told."""
    if request.param == "cuda":
        with real_cupy() as module:
            yield module, 80
        return
    if reason := missing_compiler():
        pytest.skip(reason)
    architecture = int(request.param[3:5])
    order = 3 if "another" in request.param else "forward"
    yield StandIn(mode="check", order=order, arch=architecture), architecture


@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_products_have_the_bits_of_the_cpu(device: tuple[Any, int], type: str, group_size: int) -> None:
    cupy, compute_capability = device
    matmul, uploader = Matmul(cupy, type, group_size, compute_capability), Uploader(cupy)
    kernels = VectorKernels(cupy, group_size, "float32")
    for shape, n in (((100, 172), 9), ((33, 576), 130), ((64, 256), 64)):
        weight, x = random_weight(type, group_size, shape), random_vectors(n, shape[1])
        vectors, matrix = device_vectors(cupy, kernels, x, type, group_size), uploader.matrix(weight)
        expected = MatrixProduct(weight, n)(x)
        out = cupy.empty((n, shape[0]), np.float32)
        matmul(matrix, vectors, n, out)
        assert out.get().tobytes() == expected.tobytes()
        matmul(matrix, vectors, n, out, accumulate=True)
        assert out.get().tobytes() == (expected + expected).tobytes()


@pytest.mark.parametrize("compute_capability", [70, 80])
def test_matrices_that_lie_together(cupy: Any, compute_capability: int) -> None:
    n, columns = 12, 96
    x, uploader = random_vectors(n, columns), Uploader(cupy)
    vectors = device_vectors(cupy, VectorKernels(cupy, 32, "float32"), x, "q4", 32)
    matmul = Matmul(cupy, "q4", 32, compute_capability)
    gate, up = (random_weight("q4", 32, (100, columns), i) for i in (4, 5))
    out = cupy.empty((n, 2, 100), np.float32)
    matmul(uploader.matrix(gate, up, in_turns=True), vectors, n, out)
    assert out.get()[:, 0].tobytes() == MatrixProduct(gate, n)(x).tobytes()
    assert out.get()[:, 1].tobytes() == MatrixProduct(up, n)(x).tobytes()


# Rows of wq, and of wk and wv: GQA and MHA; the last tile of each is full, or has few rows; a block has tiles of two.
QKV_ROWS = [(48, 24), (32, 32), (160, 40), (70, 33), (24, 72)]


@pytest.mark.parametrize("rows", QKV_ROWS, ids=str)
@pytest.mark.parametrize(("type", "group_size", "compute_capability"), [
    ("q4", 32, 70), ("q4", 64, 75), ("q4", 64, 80), ("q8", 32, 70), ("q8", 32, 80), ("float16", FLOAT_GROUP, 80),
    ("float32", FLOAT_GROUP, 80),
])  # fmt: skip
def test_wq_wk_wv_in_one_launch(
    cupy: Any, type: str, group_size: int, compute_capability: int, rows: tuple[int, int]
) -> None:
    columns, (q_dim, kv_dim), matmul = 172, rows, Matmul(cupy, type, group_size, compute_capability)
    kernels = VectorKernels(cupy, group_size, "float32")
    weights = [random_weight(type, group_size, (n, columns), i) for i, n in enumerate((q_dim, kv_dim, kv_dim))]
    matrix = Uploader(cupy).matrix(*weights)
    for n in (3, 131):
        x, guard = random_vectors(n, columns), 5
        q, kv = (np.full(size + guard, 7, np.float32) for size in (n * q_dim, 2 * n * kv_dim))
        device_q, device_kv = cupy.asarray(q), cupy.asarray(kv)
        matmul.qkv(matrix, device_vectors(cupy, kernels, x, type, group_size), n, device_q, device_kv)
        expected_q, *expected_kv = (MatrixProduct(weight, n)(x) for weight in weights)
        q[:-guard], kv[:-guard] = expected_q.reshape(-1), np.concatenate(expected_kv).reshape(-1)
        assert device_q.get().tobytes() == q.tobytes() and device_kv.get().tobytes() == kv.tobytes()


def test_matrices_that_a_product_does_not_take(cupy: Any) -> None:
    matmul, uploader = Matmul(cupy, "q4", 32, 80), Uploader(cupy)
    vectors, out = Vectors.empty(cupy, "q4", 4, 96, 32), cupy.empty((4, 96), np.float32)
    one, two, three = (uploader.matrix(*(random_weight("q4", 32, (rows, 96)) for rows in parts))
                       for parts in ((96,), (48, 24), (48, 24, 24)))  # fmt: skip
    with pytest.raises(ValueError, match="one matrix, or several of the same size"):
        matmul(three, vectors, 4, out)
    for other in (one, two):
        with pytest.raises(ValueError, match="the matrix must be wq, wk and wv"):
            matmul.qkv(other, vectors, 4, out, out)
    with pytest.raises(ValueError, match="q must be a contiguous float32 array of 192 numbers"):
        matmul.qkv(three, vectors, 4, cupy.empty(191, np.float32), out)
    with pytest.raises(ValueError, match="kv must be a contiguous float32 array of 192 numbers"):
        matmul.qkv(three, vectors, 4, out, cupy.empty(191, np.float32))


def test_room_for_the_vectors_is_checked(cupy: Any) -> None:
    matrix = Uploader(cupy).matrix(random_weight("q4", 64, (32, 128)))
    vectors = Vectors.empty(cupy, "q4", 4, 128, 64)
    with pytest.raises(ValueError, match="room for 4 vectors, not for 5"):
        Matmul(cupy, "q4", 64, 80)(matrix, vectors, 5, cupy.empty((5, 32), np.float32))


WAIT, BARRIER = "wait_for_copies<kStages - 2>();\n", "__syncthreads();  // the part is there"
BEGIN = "if (part + kStages - 1 < n_parts) copies.begin(staged[next]"
# Mistakes in matmul_mma.cu, and what the emulator must say of each.
MISTAKES = {
    "no wait": (WAIT, "\n", "uninitialised"),
    "a wait for too little": (WAIT, WAIT.replace("2", "1"), "uninitialised"),
    "no barrier": (BARRIER, "//", "race"),
    "a copy over what is read": (BEGIN, BEGIN.replace("next", "here"), "race"),
    "a copy beyond the end": (BEGIN, BEGIN.replace("<", "<="), "out of bounds"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_order_of_copies_are_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing_compiler():
        pytest.skip(reason)
    old, new, kind = MISTAKES[mistake]
    text = source.source("matmul_mma")
    assert text.count(old) == 1
    monkeypatch.setattr(source, "source", lambda *names: text.replace(old, new))
    cupy = StandIn(mode="check")
    matmul = Matmul(cupy, "q4", 64, 80)
    monkeypatch.undo()
    x = random_vectors(128, 512)
    vectors = device_vectors(cupy, VectorKernels(cupy, 64, "float32"), x, "q4", 64)
    matrix = Uploader(cupy).matrix(random_weight("q4", 64, (64, 512)))
    with pytest.raises(EmulationError) as error:
        matmul(matrix, vectors, 128, cupy.empty((128, 64), np.float32))
    assert kind in {finding.kind for finding in error.value.findings}
