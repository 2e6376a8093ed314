"""Products with several vectors, on tensor cores and before them: the same bits on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import StandIn, missing_compiler
from helpers.gpu_layout import device_vectors, random_vectors, random_weight

from pyllama2._cpu.matrix import MatrixProduct
from pyllama2._gpu.launchers.matvec import Matvec
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.launchers.vectors import VectorKernels

# Fewer groups than warps; a last step that is not full; steps in pairs, and one that is left.
COLUMNS = (172, 33 * 64, 48 * 64)


@pytest.mark.parametrize(("architecture", "order"), [(70, "forward"), (75, "forward"), (80, "forward"), (80, 5)])
@pytest.mark.parametrize(("type", "n"), [("q4", 8), ("q4", 5), ("q8", 4)])
def test_products_have_the_bits_of_the_cpu(architecture: int, order: str | int, type: str, n: int) -> None:
    if reason := missing_compiler():
        pytest.skip(reason)
    cupy = StandIn(mode="check", order=order, arch=architecture)
    kernels, matvec = VectorKernels(cupy, 64, "float32"), Matvec(cupy, type, 64, n, ["product"])
    for columns in COLUMNS:
        weight, x = random_weight(type, 64, (40, columns)), random_vectors(n, columns)
        out = cupy.empty((n, 40), np.float32)
        matvec.product(Uploader(cupy).matrix(weight), device_vectors(cupy, kernels, x, type, 64), out)
        assert out.get().tobytes() == MatrixProduct(weight, n)(x).tobytes()
