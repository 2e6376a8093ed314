"""Products of matrices with 1 to 8 vectors, each fused with the steps after it, for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..layout import BITS, TILE_ROWS, DeviceMatrix, Kind, Vectors, is_float
from ..source import compile_module
from .arguments import NULL, expect, expect_at_least, integers
from .prefetch import Prefetch, prefetch_arguments
from .vectors import THREADS, Norm, Normed, norm_arguments, vector_arguments

MAX_COLUMNS = 8
_KERNELS = {"product": "matvec", "residual": "matvec_residual", "swiglu": "matvec_swiglu"}  # float_: of float types
METHODS = tuple(_KERNELS)  # of Matvec


def norms_itself(kind: Kind, n: int) -> bool:
    """Whether products of such a matrix with n vectors take a Normed. Others take Vectors."""
    return n == 1 and not is_float(kind[0])


def matrix_arguments(matrix: DeviceMatrix, x: Vectors, n: int) -> tuple[Any, ...]:
    """Return the arrays of matrix, and those of n vectors x, as kernels take them: of float types codes alone.

    Raises ValueError if they do not go together.
    """
    if (matrix.kind, matrix.columns) != (x.kind, x.columns):
        raise ValueError(f"a {matrix.type} matrix of {matrix.columns} columns in groups of {matrix.group_size} cannot "
                         f"take {x.type} vectors of {x.columns} in groups of {x.group_size}")  # fmt: skip
    vectors = vector_arguments(x, n)
    return ((matrix.codes,), vectors[:1]) if is_float(matrix.type) else ((matrix.codes, matrix.scales), vectors)


def input_arguments(matrix: DeviceMatrix, x: Vectors | Normed, n: int) -> tuple[Any, ...]:
    """Return the arrays of matrix, and those of x, as the kernels take them that can norm a quantized vector."""
    if isinstance(x, Vectors):
        weights, vectors = matrix_arguments(matrix, x, n)
        return weights, vectors if is_float(matrix.type) else (*vectors, NULL, NULL, np.float32(0), np.int32(0))
    dim = matrix.columns
    normed = (expect_at_least("x", x.x, "float32", dim), expect("the norm's weight", x.weight, "float32", (dim,)))
    return (matrix.codes, matrix.scales), (NULL, NULL, NULL, *normed, np.float32(x.eps), np.int32(dim))


class Matvec:
    """Products of matrices of one kind with a fixed number of vectors.

    Args:
        cupy: the module, or a stand-in.
        type: of the matrices: "q4", "q8", "float16" or "float32".
        group_size: of the matrices.
        n_columns: number of vectors, 1 to 8.
        methods: those that will be called. Their kernels are compiled now.
        to: type and group size of the vectors that residual() and swiglu() make; residual() makes those of both types.
            None: those of the matrices.
        norms: product() and swiglu() take a Normed, instead of Vectors: see norms_itself().
        halves: residual() has a block for each half of a tile, instead of one for each tile.

    Raises:
        ValueError: n_columns is out of range.
    """

    def __init__(
        self, cupy: Any, type: str, group_size: int, n_columns: int, methods: Sequence[str] = METHODS,
        to: Kind | None = None, *, norms: bool = False, halves: bool = False,
    ) -> None:  # fmt: skip
        _check_columns(type, n_columns, norms)
        self.n_columns, self._to, self._input = n_columns, to or (type, group_size), Normed if norms else Vectors
        self._prefetches = not is_float(type)  # for tiles of the next matrix
        next_type, next_group_size = self._to
        prefix, own = _own(type, group_size, n_columns)
        normed = ("true",) if norms else ()
        self._rows = TILE_ROWS // 2 if halves else TILE_ROWS  # of a block of residual()
        more = {"product": normed, "residual": (next_group_size, *((self._rows,) if halves else ())),
                "swiglu": (BITS[next_type], next_group_size, *normed)}  # fmt: skip
        names = {method: f"{prefix}{_KERNELS[method]}<{', '.join(map(str, (*own, *more[method])))}>"
                 for method in methods}  # fmt: skip
        module = compile_module(cupy, [f"{prefix}matvec"], list(names.values()))
        self._kernels = {method: module.get_function(name) for method, name in names.items()}

    def product(self, matrix: DeviceMatrix, x: Vectors | Normed, out: Any) -> None:
        """Write the products to out, (n_columns, rows) float32."""
        _check_input(x, self._input)
        weights, vectors = input_arguments(matrix, x, self.n_columns)
        (rows,) = matrix.parts
        expect_at_least("out", out, "float32", self.n_columns * rows)
        self._kernels["product"]((matrix.tiles,), (THREADS,), (*weights, *integers(rows, matrix.groups), *vectors, out))

    def residual(
        self, matrix: DeviceMatrix, x: Vectors, residual: Any, counter: Any, norm: Norm | None = None,
        prefetch: Prefetch | None = None,
    ) -> None:  # fmt: skip
        """Add the products to residual, then norm it.

        Args:
            matrix: the matrix.
            x: the vectors.
            residual: (n_columns, rows) float32.
            counter: (1,) uint32, zero before and after.
            norm: of residual. None: no norm.
            prefetch: what the next kernel reads, to be prefetched. Kernels of float matrices prefetch nothing.
        """
        weights, vectors = matrix_arguments(matrix, x, self.n_columns)
        (rows,) = matrix.parts
        expect_at_least("residual", residual, "float32", self.n_columns * rows)
        expect_at_least("counter", counter, "uint32", 1)
        normed = norm_arguments(norm, rows, self.n_columns, self._to[1])
        arguments = (*weights, *integers(rows, matrix.groups), *vectors, residual, *normed, counter)
        arguments += prefetch_arguments(prefetch) if self._prefetches else ()
        self._kernels["residual"]((-(-rows // self._rows),), (THREADS,), arguments)

    def swiglu(
        self, matrix: DeviceMatrix, x: Vectors | Normed, gated: Any, to: Vectors, counters: Any,
        prefetch: Prefetch | None = None,
    ) -> None:  # fmt: skip
        """Compute silu(w1 x) * (w3 x), quantized.

        Args:
            matrix: w1 and w3, whose tiles alternate.
            x: the vectors, or what the vector is a norm of.
            gated: (n_columns, hidden_dim) float32 scratch.
            to: vectors for the result.
            counters: (groups of to,) uint32, zeros before and after.
            prefetch: as for residual().
        """
        _check_input(x, self._input)
        weights, vectors = input_arguments(matrix, x, self.n_columns)
        rows, same_rows = matrix.parts
        if rows != same_rows or to.columns != rows or to.kind != self._to:
            raise ValueError("the matrix of w1 and w3 does not go with the vectors that its result is for")
        expect_at_least("gated", gated, "float32", self.n_columns * rows)
        expect_at_least("counters", counters, "uint32", to.groups)
        target = vector_arguments(to, self.n_columns)
        arguments = (*weights, *integers(rows, matrix.groups), *vectors, gated, *target, counters)
        arguments += prefetch_arguments(prefetch) if self._prefetches else ()
        self._kernels["swiglu"]((matrix.tiles // 2,), (THREADS,), arguments)


class QkvMatvec:
    """wq wk wv -> biases -> rope -> kv append for a fixed number of tokens.

    Args:
        cupy: the module, or a stand-in.
        type: of the matrices: "q4", "q8", "float16" or "float32".
        group_size: of the matrices.
        n_columns: number of tokens, 1 to 8.
        head_dim: of queries, keys and values.
        kv_dtype: of the cache, "float16" or "int8".
        norms: it takes a Normed, instead of Vectors: see norms_itself().

    Raises:
        ValueError: n_columns is out of range.
    """

    def __init__(
        self, cupy: Any, type: str, group_size: int, n_columns: int, head_dim: int, kv_dtype: str, *,
        norms: bool = False,
    ) -> None:  # fmt: skip
        _check_columns(type, n_columns, norms)
        self.n_columns, self._head_dim, self._kv_dtype = n_columns, head_dim, kv_dtype
        self._input = Normed if norms else Vectors
        code = {"float16": "__half", "int8": "signed char"}[kv_dtype]
        prefix, own = _own(type, group_size, n_columns)
        arguments = ", ".join(map(str, (*own, head_dim, code, *(("true",) if norms else ()))))
        name = f"{prefix}matvec_qkv<{arguments}>"
        self._kernel = compile_module(cupy, [f"{prefix}matvec_qkv"], [name]).get_function(name)

    def __call__(
        self,
        matrix: DeviceMatrix,
        x: Vectors | Normed,
        rope_table: Any,
        rows: Any,
        positions: Any,
        q: Any,
        kv: Any,
        counters: Any,
        n_positions: int,
        keys: Any,
        values: Any,
        key_scales: Any = None,
        value_scales: Any = None,
        bias: Any = None,
        keys_ahead: int = 0,
    ) -> None:
        """Launch the kernel.

        Args:
            matrix: wq, wk and wv, one after the other.
            x: the vectors, or what the vector is a norm of.
            rope_table: (max_seq_len, head_dim / 2, 2) float32, cosine and sine of each position and pair.
            rows, positions: (n_columns,) int32 of the tokens.
            q: (n_columns, q_dim) float32 for the rotated queries.
            kv: (2, n_columns, kv_dim) float32 scratch for int8, else None.
            counters: (2, n_kv_heads) uint32 zeros for int8, else None.
            n_positions: positions of the cache.
            keys, values: of one layer, as in kernels/cache.cu.
            key_scales, value_scales: for int8, else None.
            bias: (q_dim + 2 kv_dim,) float32 of wq, wk and wv; None in models without.
            keys_ahead: bytes of each head's earlier keys to prefetch. Kernels of float matrices prefetch nothing.
        """
        _check_input(x, self._input)
        weights, vectors = input_arguments(matrix, x, self.n_columns)
        q_dim, kv_dim, _ = matrix.parts
        n, int8 = self.n_columns, self._kv_dtype == "int8"
        expect_at_least("q", q, "float32", n * q_dim)
        expect_at_least("rope_table", rope_table, "float32", self._head_dim)
        for name, array in (("rows", rows), ("positions", positions)):
            expect_at_least(name, array, "int32", n)
        for name, array in (("keys", keys), ("values", values)):
            expect_at_least(name, array, self._kv_dtype, n_positions * kv_dim)
        extra = (NULL, NULL, np.int32(n_positions), keys, values, NULL, NULL)
        if int8:
            expect_at_least("kv", kv, "float32", 2 * n * kv_dim)
            expect_at_least("counters", counters, "uint32", 2 * kv_dim // self._head_dim)
            extra = (kv, counters, np.int32(n_positions), keys, values, key_scales, value_scales)
        if bias is not None:
            expect_at_least("bias", bias, "float32", q_dim + 2 * kv_dim)
        sizes = integers(q_dim, kv_dim, matrix.groups)
        arguments = (*weights, *sizes, *vectors, rope_table, rows, positions, q, *extra, NULL if bias is None else bias)
        arguments += () if is_float(matrix.type) else (np.uint32(keys_ahead),)
        self._kernel((matrix.tiles,), (THREADS,), arguments)


def _own(type: str, group_size: int, n_columns: int) -> tuple[str, tuple[int, ...]]:
    """How the names of kernels for a kind of matrix begin, and their first template arguments."""
    return ("float_", (BITS[type], n_columns)) if is_float(type) else ("", (BITS[type], group_size, n_columns))


def _check_columns(type: str, n_columns: int, norms: bool) -> None:
    if not 1 <= n_columns <= MAX_COLUMNS:
        raise ValueError(f"a product for decoding takes 1 to {MAX_COLUMNS} vectors, not {n_columns}")
    if norms and n_columns != 1:
        raise ValueError(f"a product norms one vector, not {n_columns}")
    if norms and is_float(type):
        raise ValueError(f"a product with a {type} matrix norms no vector")


def _check_input(x: Vectors | Normed, wanted: type[Vectors | Normed]) -> None:
    if not isinstance(x, wanted):
        raise ValueError(f"the product was compiled for {wanted.__name__}, not for {type(x).__name__}")
