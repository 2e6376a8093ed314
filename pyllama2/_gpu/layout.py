"""How matrices, and the vectors that they are multiplied with, lie in device memory: their arrays and shapes.

kernels/common.cu says what each number means.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

TILE_ROWS = 32
PIECE = 16  # bytes that a lane loads at a time
BITS = {"q4": 4, "q8": 8, "float16": 16, "float32": 32}
VECTOR_PARTS = ("codes", "scales", "offsets")
RUNNING_SUMS = 16  # of a product of floats
FLOAT_GROUP = 128  # numbers of a vector for a float matrix that are written together

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name of an array -> dtype, shape
Kind = tuple[str, int]  # type and group size of a matrix, and of the vectors that it is multiplied with


def is_float(type: str) -> bool:
    """Return whether a matrix of this type takes vectors that are not quantized."""
    return BITS[type] >= 16


def kind_of(type: str, group_size: int) -> Kind:
    """Return the kind of a matrix on the device. group_size is that of the file: 0 for float types."""
    return type, FLOAT_GROUP if is_float(type) else group_size


def groups_of(columns: int, group_size: int) -> int:
    """Return the number of groups of one row. The last one is padded with zeros."""
    return -(-columns // group_size)


def matrix_arrays(type: str, parts: tuple[int, ...], columns: int, group_size: int) -> Shapes:
    """Return the arrays of a matrix.

    Args:
        type: "q4", "q8", "float16" or "float32".
        parts: rows of each part. The parts lie one after the other (wq wk wv), or their tiles alternate (w1 w3).
        columns: inputs.
        group_size: inputs that share a scale. Float types have FLOAT_GROUP, and no scales.
    """
    tiles = sum(-(-rows // TILE_ROWS) for rows in parts)
    groups = groups_of(columns, group_size)
    if is_float(type):
        pieces = groups * group_size * BITS[type] // (8 * PIECE * RUNNING_SUMS)
        return {"codes": ("uint8", (tiles, RUNNING_SUMS, pieces, TILE_ROWS, PIECE))}
    pieces = group_size * BITS[type] // (8 * PIECE)
    return {
        "codes": ("uint8", (tiles, groups, pieces, TILE_ROWS, PIECE)),
        "scales": ("float16", (tiles, groups, TILE_ROWS)),
    }


def vector_arrays(type: str, n: int, columns: int, group_size: int) -> Shapes:
    """Return the arrays of n vectors that are multiplied with a matrix of this type.

    For float types, codes are the bytes of float32 numbers.
    """
    groups = groups_of(columns, group_size)
    if is_float(type):
        return {"codes": ("int8", (n, RUNNING_SUMS, groups * group_size // RUNNING_SUMS * 4))}
    return {
        "codes": ("int8", (n, BITS[type] // 4, groups * group_size)),
        "scales": ("float32", (n, groups)),
        "offsets": ("int32", (n, groups)),
    }


def bytes_of(shapes: Shapes) -> int:
    """Return the bytes of all arrays."""
    return sum(prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())


def allocate(cupy: Any, shapes: Shapes) -> dict[str, Any]:
    """Allocate arrays, uninitialised, on cupy's current device."""
    return {name: cupy.empty(shape, dtype) for name, (dtype, shape) in shapes.items()}


def copy_to(cupy: Any, source: Any, target: Any) -> None:
    """Copy a numpy array to the device, and wait for it: the array may be written or freed afterwards.

    Some GPUs read all memory of the host by themselves. There the copy is not done when set() returns.
    """
    target.set(source)
    cupy.cuda.get_current_stream().synchronize()


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix on the device.

    Attributes:
        type: "q4", "q8", "float16" or "float32".
        parts: rows of the matrices that it consists of: (rows,), (q_dim, kv_dim, kv_dim) or (hidden_dim, hidden_dim).
        columns: inputs.
        group_size: inputs that share a scale; FLOAT_GROUP for float types.
        codes: as in matrix_arrays(); the numbers of float types.
        scales: as in matrix_arrays(); None for float types.
    """

    type: str
    parts: tuple[int, ...]
    columns: int
    group_size: int
    codes: Any
    scales: Any = None

    @property
    def kind(self) -> Kind:
        """Type and group size."""
        return self.type, self.group_size

    @property
    def groups(self) -> int:
        """Groups of one row."""
        return groups_of(self.columns, self.group_size)

    @property
    def tiles(self) -> int:
        """Tiles of 32 rows in all parts."""
        return int(self.codes.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(int(array.nbytes) for array in (self.codes, self.scales) if array is not None)

    @classmethod
    def empty(cls, cupy: Any, type: str, parts: tuple[int, ...], columns: int, group_size: int) -> DeviceMatrix:
        """Allocate memory for a matrix."""
        arrays = allocate(cupy, matrix_arrays(type, parts, columns, group_size))
        return cls(type, parts, columns, group_size, **arrays)


@dataclass(frozen=True)
class Vectors:
    """Memory for n vectors on the device that are to be multiplied with matrices of one kind.

    codes, scales and offsets are the arrays of vector_arrays(). For float types there are codes alone.
    """

    type: str
    n: int
    columns: int
    group_size: int
    codes: Any
    scales: Any = None
    offsets: Any = None

    @property
    def kind(self) -> Kind:
        """Type and group size of the matrices that the vectors are multiplied with."""
        return self.type, self.group_size

    @property
    def groups(self) -> int:
        """Groups of one vector."""
        return groups_of(self.columns, self.group_size)

    @classmethod
    def empty(cls, cupy: Any, type: str, n: int, columns: int, group_size: int) -> Vectors:
        """Allocate memory for vectors."""
        arrays = allocate(cupy, vector_arrays(type, n, columns, group_size))
        return cls(type, n, columns, group_size, **arrays)
