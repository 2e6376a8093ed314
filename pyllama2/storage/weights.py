"""One tensor of a model in one of four storage types, and where each number of it lies.

    float32, float16   the matrix, row-major
    q8                 signed 8-bit codes,                 weight = code * scale
    q4                 unsigned 4-bit codes, zero at 8,    weight = (code - 8) * scale

Quantized rows are cut into groups of group_size inputs with one float16 scale each. Rows are padded
with zeros to a whole group, and their number is padded to a multiple of 8. Eight rows are stored
together, four inputs at a time. One 32-byte register then holds 8 rows x 4 inputs, and
eight products of the same input need no horizontal sum:

    q8 codes    int8  (rows/8, inputs/4, 8, 4)               [block, input quad, row, input in quad]
    q4 codes    uint8 (rows/8, groups, group_size/8, 8, 4)   low nibble: quad j of the group,
                                                             high nibble: quad j + group_size/8
    scales      float16 (rows/8, groups, 8)

Norms are always float32. Our file stores these arrays as they are, and the CPU backend computes on them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig

WeightType = Literal["float32", "float16", "q8", "q4"]
GROUP_SIZES = (32, 64, 128)
ROW_BLOCK = 8  # rows that are interleaved
QUAD = 4  # neighbouring inputs of one row


@dataclass(frozen=True)
class Quantization:
    """The storage types of a model's matrices.

    Attributes:
        type: the type of every matrix but the output matrix.
        output_type: the type of output.weight, and of tok_embeddings.weight when the two are tied.
        group_size: inputs that share a scale; 0 for float types.

    Raises:
        ValueError: the three do not go together.
    """

    type: WeightType
    output_type: WeightType
    group_size: int = 0

    def __post_init__(self) -> None:
        for value in (self.type, self.output_type):
            if value not in get_args(WeightType):
                raise ValueError(f"weight type must be one of {', '.join(get_args(WeightType))}, not {value!r}")
        if self.type in ("float32", "float16"):
            if self.output_type != self.type or self.group_size != 0:
                raise ValueError(f"a {self.type} model has one type and no groups")
        elif self.output_type not in ("q8", "q4") or self.group_size not in GROUP_SIZES:
            raise ValueError(f"a {self.type} model needs an output type of q8 or q4 and a group size of 32, 64 or 128")

    @classmethod
    def of(cls, weight_type: str, group_size: int = 64, output_type: str | None = None) -> Quantization:
        """Fill in what a user left out.

        Args:
            weight_type: "float32", "float16", "q8" or "q4".
            group_size: inputs that share a scale: 32, 64 or 128; not used for float types.
            output_type: None: q8 in a quantized model, else weight_type.

        Raises:
            ValueError: the three do not go together.
        """
        if weight_type in ("float32", "float16"):
            return cls(cast(WeightType, weight_type), cast(WeightType, output_type or weight_type))
        return cls(cast(WeightType, weight_type), cast(WeightType, output_type or "q8"), group_size)

    def type_of(self, name: str, config: ModelConfig) -> WeightType:
        """Return the storage type of the tensor called name in a model of this config."""
        if name.endswith("norm.weight"):
            return "float32"
        is_output = name == "output.weight" or (config.tied_embeddings and name == "tok_embeddings.weight")
        return self.output_type if is_output else self.type


def packed_shapes(
    weight_type: WeightType, shape: tuple[int, ...], group_size: int
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Compute the shapes of the arrays that store a tensor.

    Args:
        weight_type: the tensor's storage type.
        shape: its logical shape.
        group_size: inputs that share a scale; not used for float types.

    Returns:
        The shape of the codes, or of the plain numbers of a float type; and that of the scales, None for float types.
    """
    if weight_type in ("float32", "float16"):
        return shape, None
    rows, columns = shape
    blocks, groups = -(-rows // ROW_BLOCK), -(-columns // group_size)
    scales = (blocks, groups, ROW_BLOCK)
    if weight_type == "q8":
        return (blocks, groups * group_size // QUAD, ROW_BLOCK, QUAD), scales
    return (blocks, groups, group_size // (2 * QUAD), ROW_BLOCK, QUAD), scales


@dataclass(frozen=True)
class Weight:
    """One tensor. Its arrays have the layout in the module's docstring.

    Attributes:
        name: Meta's name of the tensor.
        type: the storage type.
        shape: the logical shape, without padding.
        data: float32 or float16 numbers, or codes: int8 for q8, uint8 for q4.
        scales: float16; None for float types.
        group_size: inputs that share a scale; 0 for float types.
    """

    name: str
    type: WeightType
    shape: tuple[int, ...]
    data: NDArray[Any]
    scales: NDArray[np.float16] | None = None
    group_size: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.data.nbytes + (self.scales.nbytes if self.scales is not None else 0)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the numbers as float32 of the logical shape. This slow and plain code defines the layout."""
        if self.scales is None:
            return self.data.astype(np.float32)
        blocks, groups, _ = self.scales.shape
        if self.type == "q8":
            codes = self.data.view(np.int8).reshape(blocks, groups, self.group_size // QUAD, ROW_BLOCK, QUAD)
        else:
            # (blocks, groups, 2 halves of the group, quads, rows, 4)
            codes = np.stack([self.data & 15, self.data >> 4], axis=2).astype(np.int8) - 8
            codes = codes.reshape(blocks, groups, self.group_size // QUAD, ROW_BLOCK, QUAD)
        # -> (blocks, rows, groups, quads, 4)
        values = codes.transpose(0, 3, 1, 2, 4).astype(np.float32)
        with np.errstate(invalid="ignore"):  # the caller checks that the numbers are finite
            values *= self.scales.astype(np.float32).transpose(0, 2, 1)[..., None, None]
        matrix = values.reshape(blocks * ROW_BLOCK, groups * self.group_size)
        return np.ascontiguousarray(matrix[: self.shape[0], : self.shape[1]])


def all_finite(part: NDArray[Any]) -> bool:
    """Whether an array of any float type is free of NaN and infinity."""
    # numpy's isfinite is slow for float16. Without the sign bit, infinity and NaN are the largest bit patterns.
    if part.dtype == np.float16:
        return bool(np.left_shift(part.view(np.uint16), 1).max(initial=0) < 0xF800)
    return bool(np.isfinite(part).all())
