"""The instruction sets that the kernels are written for, and which of them the CPU of this machine has."""

from __future__ import annotations

import numpy as np

from pyllama2._cpu.matrix import MatrixProduct
from pyllama2.storage.weights import Weight

ALL = ("scalar", "avx2", "avx_vnni", "avx512", "neon", "neon_dotprod")


def _is_here(isa: str) -> bool:
    try:
        MatrixProduct(Weight("w", "float32", (1, 1), np.ones((1, 1), np.float32)), 1, 1, isa)
    except ValueError as error:
        if "this CPU has no instruction set" not in str(error):
            raise
        return False
    return True


HERE = tuple(isa for isa in ALL if _is_here(isa))
