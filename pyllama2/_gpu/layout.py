"""How quantized matrices and vectors lie in device memory: shapes, and what is allocated for them.

kernels/common.cu says what each number means.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

TILE_ROWS = 32
PIECE = 16  # bytes that a lane loads at once
BITS = {"q4": 4, "q8": 8}

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name of an array -> dtype, shape


def groups_of(columns: int, group_size: int) -> int:
    """Groups of one row, the last padded with zeros."""
    return -(-columns // group_size)


def matrix_arrays(type: str, parts: tuple[int, ...], columns: int, group_size: int) -> Shapes:
    """Arrays of a matrix of these parts' rows, one part after the other (wq wk wv) or in turns (w1 w3)."""
    tiles = sum(-(-rows // TILE_ROWS) for rows in parts)
    groups = groups_of(columns, group_size)
    pieces = group_size * BITS[type] // (8 * PIECE)
    return {
        "codes": ("uint8", (tiles, groups, pieces, TILE_ROWS, PIECE)),
        "scales": ("float16", (tiles, groups, TILE_ROWS)),
    }


def vector_arrays(type: str, n: int, columns: int, group_size: int) -> Shapes:
    """Arrays of n vectors that are multiplied with a matrix of this type."""
    groups = groups_of(columns, group_size)
    return {
        "codes": ("int8", (n, BITS[type] // 4, groups * group_size)),
        "scales": ("float32", (n, groups)),
        "offsets": ("int32", (n, groups)),
    }


def bytes_of(shapes: Shapes) -> int:
    """Bytes of all arrays."""
    return sum(prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())


def allocate(cupy: Any, shapes: Shapes) -> dict[str, Any]:
    """The arrays, uninitialised, on cupy's current device."""
    return {name: cupy.empty(shape, dtype) for name, (dtype, shape) in shapes.items()}


@dataclass(frozen=True)
class DeviceMatrix:
    """A quantized matrix on the device; codes and scales as matrix_arrays() has them.

    parts  rows of the matrices it is made of: (rows,), (q_dim, kv_dim, kv_dim) or (hidden_dim, hidden_dim)
    """

    type: str
    parts: tuple[int, ...]
    columns: int
    group_size: int
    codes: Any
    scales: Any

    @property
    def groups(self) -> int:
        """Groups of one row."""
        return groups_of(self.columns, self.group_size)

    @property
    def tiles(self) -> int:
        """Tiles of 32 rows, of all parts."""
        return int(self.scales.shape[0])

    @classmethod
    def empty(cls, cupy: Any, type: str, parts: tuple[int, ...], columns: int, group_size: int) -> DeviceMatrix:
        """Memory for a matrix."""
        arrays = allocate(cupy, matrix_arrays(type, parts, columns, group_size))
        return cls(type, parts, columns, group_size, **arrays)


@dataclass(frozen=True)
class Vectors:
    """Room for n quantized vectors on the device; arrays as vector_arrays() has them."""

    type: str
    n: int
    columns: int
    group_size: int
    codes: Any
    scales: Any
    offsets: Any

    @property
    def groups(self) -> int:
        """Groups of one vector."""
        return groups_of(self.columns, self.group_size)

    @classmethod
    def empty(cls, cupy: Any, type: str, n: int, columns: int, group_size: int) -> Vectors:
        """Memory for vectors."""
        arrays = allocate(cupy, vector_arrays(type, n, columns, group_size))
        return cls(type, n, columns, group_size, **arrays)
