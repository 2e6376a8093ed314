"""Embedding, RMSNorm, and vectors for matrices of any kind. There is one block of threads for each token.

For float matrices, vectors are sorted where they would be quantized for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout import BITS, DeviceMatrix, Vectors, kind_of
from ..source import compile_module
from .arguments import NULL, expect, expect_at_least, integers

THREADS = 512


@dataclass(frozen=True)
class Norm:
    """An RMSNorm that is fused with the step before it.

    Attributes:
        weight: (dim,) float32.
        eps: added to the mean square.
        to: vectors for the result.
    """

    weight: Any
    eps: float
    to: Vectors


@dataclass(frozen=True)
class Normed:
    """A single vector that a product norms and quantizes by itself.

    Attributes:
        x: (dim,) float32, to be normed.
        weight: (dim,) float32.
        eps: added to the mean square.
    """

    x: Any
    weight: Any
    eps: float


def vector_arguments(x: Vectors, n: int) -> tuple[Any, Any, Any]:
    """Return the arrays of x as kernels take them. Raises ValueError if x has fewer than n vectors."""
    if x.n < n:
        raise ValueError(f"there is room for {x.n} vectors, not for {n}")
    return x.codes, NULL if x.scales is None else x.scales, NULL if x.offsets is None else x.offsets


def norm_arguments(norm: Norm | None, dim: int, n: int, group_size: int) -> tuple[Any, ...]:
    """Return weight, eps, bits, codes, scales and offsets of a fused norm, as kernels take them. None gives NULLs."""
    if norm is None:
        return NULL, np.float32(0), np.int32(0), NULL, NULL, NULL
    if norm.to.columns != dim or norm.to.group_size != group_size:
        raise ValueError(f"a norm of {dim} numbers in groups of {group_size} cannot go to {norm.to.columns} in groups "
                         f"of {norm.to.group_size}")  # fmt: skip
    weight = expect("the norm's weight", norm.weight, "float32", (dim,))
    return weight, np.float32(norm.eps), np.int32(BITS[norm.to.type]), *vector_arguments(norm.to, n)


class VectorKernels:
    """RMSNorm, quantization and embedding for groups of one size.

    Args:
        cupy: the module, or a stand-in.
        group_size: of the vectors.
        table_type: of tok_embeddings: "q4", "q8", "float16" or "float32".
        table_group_size: of the table. None: that of the vectors.
    """

    def __init__(self, cupy: Any, group_size: int, table_type: str, table_group_size: int | None = None) -> None:
        self._group_size, self._table = group_size, kind_of(table_type, table_group_size or group_size)
        names = [f"rms_norm_quantize<{group_size}>", f"quantize<{group_size}>", f"swiglu_quantize<{group_size}>"]
        names.append(f"embed<{BITS[table_type]}, {self._table[1]}, {group_size}>")
        module = compile_module(cupy, ["embed", "prompt"], names)
        self._norm, self._quantize, self._swiglu, self._embed = (module.get_function(name) for name in names)

    def embed(self, table: DeviceMatrix, tokens: Any, n: int, x: Any, norm: Norm | None = None) -> None:
        """Look up embeddings.

        Args:
            table: (vocab_size, dim).
            tokens: (n,) int32.
            n: number of tokens.
            x: (n, dim) float32 for the embeddings.
            norm: of x. None: no norm.
        """
        dim = table.columns
        if table.kind != self._table:
            raise ValueError(f"the table of embeddings must be {self._table[0]} in groups of {self._table[1]}")
        first = table.codes.view(np.int8), NULL if table.scales is None else table.scales
        expect_at_least("tokens", tokens, "int32", n)
        expect_at_least("x", x, "float32", n * dim)
        arguments = (*first, tokens, np.int32(dim), x, *norm_arguments(norm, dim, n, self._group_size))
        self._embed((n,), (THREADS,), arguments)

    def rms_norm(self, x: Any, n: int, norm: Norm, picked: Any = None) -> None:
        """Norm n vectors.

        Args:
            x: (tokens, dim) float32.
            n: number of results.
            norm: the norm, and where the results go.
            picked: (n,) int32, rows of x. None: the first n rows.
        """
        dim = norm.to.columns
        weight, eps, bits, *to = norm_arguments(norm, dim, n, self._group_size)
        expect_at_least("x", x, "float32", dim if picked is not None else n * dim)
        chosen = NULL if picked is None else expect_at_least("picked", picked, "int32", n)
        self._norm((n,), (THREADS,), (x, weight, eps, np.int32(dim), chosen, bits, *to))

    def quantize(self, x: Any, n: int, to: Vectors) -> None:
        """Quantize x, (n, columns) float32. The results go to vectors 0 .. n of to."""
        expect_at_least("x", x, "float32", n * to.columns)
        self._quantize((n,), (THREADS,), (x, *integers(to.columns, BITS[to.type]), *vector_arguments(to, n)))

    def swiglu(self, gate_up: Any, n: int, to: Vectors) -> None:
        """Compute silu(gate) * up of gate_up, (n, 2, hidden_dim) float32, quantized, to vectors 0 .. n of to."""
        expect_at_least("gate_up", gate_up, "float32", 2 * n * to.columns)
        self._swiglu((n,), (THREADS,), (gate_up, *integers(to.columns, BITS[to.type]), *vector_arguments(to, n)))
