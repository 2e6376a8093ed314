"""Products of matrices with many vectors, for prompts, and biases."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layout import BITS, DeviceMatrix, Vectors, is_float
from ..source import compile_module
from .arguments import NULL, expect_at_least, integers
from .matvec import matrix_arguments

_THREADS = 256
_BLOCK_TILES = 2
_FIRST_MMA = 75  # the first compute capability with such tensor cores


class Matmul:
    """Products of matrices of one kind with any number of vectors. They have the bits of Matvec's.

    Args:
        cupy: the module, or a stand-in.
        type: of the matrices: "q4", "q8", "float16" or "float32".
        group_size: of the matrices.
        compute_capability: of the device: 80 for 8.0. From 7.5 on, tensor cores are used for q4 and q8.
    """

    def __init__(self, cupy: Any, type: str, group_size: int, compute_capability: int) -> None:
        self._is_float = is_float(type)
        has_mma = compute_capability >= _FIRST_MMA
        kernel = "float_matmul" if self._is_float else "matmul_mma" if has_mma else "matmul"
        self._block_vectors, self._threads = {"float_matmul": (24, 512), "matmul_mma": (128, 256), "matmul": (64, 256)}[
            kernel
        ]
        name = f"{kernel}<{BITS[type]}>" if self._is_float else f"{kernel}<{BITS[type]}, {group_size}>"
        self._kernel = compile_module(cupy, [kernel], [name]).get_function(name)

    def __call__(self, matrix: DeviceMatrix, x: Vectors, n: int, out: Any, *, accumulate: bool = False) -> None:
        """Launch the kernel.

        Args:
            matrix: one matrix, or several of the same size whose tiles alternate.
            x: the vectors.
            n: number of vectors.
            out: (n, rows) float32 for the products; (n, 2, rows) for w1 and w3.
            accumulate: add the products to out.

        Raises:
            ValueError: matrix, x and out do not go together.
        """
        if len(set(matrix.parts)) != 1:
            raise ValueError("a product takes one matrix, or several of the same size that lie in turns")
        expect_at_least("out", out, "float32", n * sum(matrix.parts))
        self._launch(matrix, len(matrix.parts), x, n, out, accumulate, NULL, 0)

    def qkv(self, matrix: DeviceMatrix, x: Vectors, n: int, q: Any, kv: Any) -> None:
        """Launch the kernel for wq, wk and wv.

        Args:
            matrix: the three, one after the other.
            x: the vectors.
            n: number of vectors.
            q: (n, q_dim) float32 for the products of wq.
            kv: (2, n, kv_dim) float32 for those of wk and wv.

        Raises:
            ValueError: matrix, x, q and kv do not go together.
        """
        if len(matrix.parts) != 3 or matrix.parts[1] != matrix.parts[2]:
            raise ValueError("the matrix must be wq, wk and wv")
        expect_at_least("q", q, "float32", n * matrix.parts[0])
        expect_at_least("kv", kv, "float32", 2 * n * matrix.parts[1])
        self._launch(matrix, 1, x, n, q, False, kv, matrix.parts[1])

    def _launch(
        self, matrix: DeviceMatrix, parts: int, x: Vectors, n: int, out: Any, accumulate: bool, kv: Any, kv_rows: int
    ) -> None:
        """Launch the kernel; parts: how many matrices go to out."""
        weights, vectors = matrix_arguments(matrix, x, n)
        grid = (-(-matrix.tiles // _BLOCK_TILES), -(-n // self._block_vectors))
        if self._is_float:
            grid = grid[::-1]
        sizes = integers(matrix.tiles, matrix.parts[0], parts, matrix.groups)
        target = np.int32(n), out, np.int32(accumulate), kv, np.int32(kv_rows)
        self._kernel(grid, (self._threads,), (*weights, *sizes, *vectors, *target))


class Bias:
    """Biases of products."""

    def __init__(self, cupy: Any) -> None:
        self._kernel = compile_module(cupy, ["rope"], []).get_function("add_bias")

    def __call__(self, x: Any, n: int, bias: Any) -> None:
        """Add a bias to n vectors.

        Args:
            x: (n, width) float32.
            n: number of tokens.
            bias: (width,) float32.
        """
        (width,) = bias.shape
        expect_at_least("x", x, "float32", n * width)
        blocks = max(1, min(64, width // 512))
        self._kernel((n, blocks), (_THREADS,), (x, bias, np.int32(width)))
