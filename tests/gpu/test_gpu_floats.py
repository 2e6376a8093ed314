"""float16 and float32 matrices on the GPU: the CPU's bits, though sums of floats depend on the order of additions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.gpu_layout import (
    Floats,
    assert_goes_to,
    assert_quantized,
    device_vectors,
    matrix_numbers,
    random_vectors,
    random_weight,
)

from pyllama2._cpu.matrix import MatrixProduct
from pyllama2._gpu.launchers import upload
from pyllama2._gpu.launchers.matmul import Matmul
from pyllama2._gpu.launchers.matvec import Matvec
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.launchers.vectors import VectorKernels
from pyllama2._gpu.layout import FLOAT_GROUP, Vectors

TYPES = ("float16", "float32")
# Fewer inputs than running sums; a multiple of 16, not of 128; not of 16; several times what is on its way; 7B's w2.
SHAPES = [(40, 10), (75, 48), (64, 172), (33, 1100), (32, 11008)]
EPS = 1e-5


@pytest.fixture(scope="module")
def uploader(cupy: Any) -> Uploader:
    return Uploader(cupy)


@pytest.fixture(scope="module")
def kernels(cupy: Any) -> VectorKernels:
    return VectorKernels(cupy, FLOAT_GROUP, "float32")


def sorted_vectors(cupy: Any, kernels: VectorKernels, x: Floats, type: str) -> Vectors:
    return device_vectors(cupy, kernels, x, type, FLOAT_GROUP)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("type", TYPES)
def test_upload_keeps_every_number(uploader: Uploader, type: str, shape: tuple[int, int]) -> None:
    weight = random_weight(type, 0, shape)
    numbers = matrix_numbers(uploader.matrix(weight))
    assert (numbers[: shape[0], : shape[1]] == weight.dequantize()).all()
    assert not numbers[shape[0] :].any() and not numbers[:, shape[1] :].any()


@pytest.mark.parametrize("type", TYPES)
def test_upload_lays_matrices_together_slice_by_slice(
    uploader: Uploader, type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "SLICE_BYTES", 2 * 32 * 96 * 4)  # two tiles of float32, four of float16
    q, k = (random_weight(type, 0, (rows, 96), rows) for rows in (200, 24))
    numbers = matrix_numbers(uploader.matrix(q, k))
    assert (numbers[:200, :96] == q.dequantize()).all() and (numbers[224:248, :96] == k.dequantize()).all()
    gate, up = (random_weight(type, 0, (300, 96), seed) for seed in (4, 5))
    numbers = matrix_numbers(uploader.matrix(gate, up, in_turns=True)).reshape(-1, 2, 32, 128)[..., :96]
    for i, weight in enumerate((gate, up)):
        assert (numbers[:, i].reshape(-1, 96)[:300] == weight.dequantize()).all()


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("type", TYPES)
def test_products_with_few_vectors(cupy: Any, uploader: Uploader, kernels: VectorKernels, type: str, n: int) -> None:
    matvec = Matvec(cupy, type, FLOAT_GROUP, n, ["product"])
    for shape in SHAPES:
        weight, x = random_weight(type, 0, shape), random_vectors(n, shape[1])
        vectors, out = sorted_vectors(cupy, kernels, x, type), cupy.empty((n, shape[0]), np.float32)
        assert_quantized(vectors, x)
        matvec.product(uploader.matrix(weight), vectors, out)
        assert out.get().tobytes() == MatrixProduct(weight, n)(x).tobytes()


@pytest.mark.parametrize("type", TYPES)
def test_products_with_many_vectors(cupy: Any, uploader: Uploader, kernels: VectorKernels, type: str) -> None:
    matmul = Matmul(cupy, type, FLOAT_GROUP, 80)
    for shape, n in (((100, 172), 9), ((33, 1100), 50), ((64, 48), 24)):
        weight, x = random_weight(type, 0, shape), random_vectors(n, shape[1])
        vectors, matrix = sorted_vectors(cupy, kernels, x, type), uploader.matrix(weight)
        expected, out = MatrixProduct(weight, n)(x), cupy.empty((n, shape[0]), np.float32)
        matmul(matrix, vectors, n, out)
        assert out.get().tobytes() == expected.tobytes()
        matmul(matrix, vectors, n, out, accumulate=True)
        assert out.get().tobytes() == (expected + expected).tobytes()

    weights, x = [random_weight(type, 0, (100, 96), seed) for seed in (4, 5)], random_vectors(12, 96)
    vectors, out = sorted_vectors(cupy, kernels, x, type), cupy.empty((12, 2, 100), np.float32)
    matmul(uploader.matrix(*weights, in_turns=True), vectors, 12, out)
    for i, weight in enumerate(weights):
        assert out.get()[:, i].tobytes() == MatrixProduct(weight, 12)(x).tobytes()


FLOAT_TO = [("float16", FLOAT_GROUP), ("q4", 64), ("q8", 128)]


@pytest.mark.parametrize(("own", "to"), [
    *((("float16", FLOAT_GROUP), to) for to in FLOAT_TO), (("float32", FLOAT_GROUP), ("float32", FLOAT_GROUP)),
    (("q4", 64), ("float32", FLOAT_GROUP)), (("q8", 32), ("float16", FLOAT_GROUP)),
])  # fmt: skip
@pytest.mark.parametrize("n", [1, 8])
def test_what_follows_a_product_goes_to_a_matrix_of_any_kind(
    cupy: Any, uploader: Uploader, n: int, own: tuple[str, int], to: tuple[str, int]
) -> None:
    assert_goes_to(cupy, uploader, n, own, to)


def test_float_matrices_take_no_vector_that_must_be_normed(cupy: Any) -> None:
    with pytest.raises(ValueError, match="a product with a float16 matrix norms no vector"):
        Matvec(cupy, "float16", FLOAT_GROUP, 1, ["product"], norms=True)
