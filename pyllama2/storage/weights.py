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

Norms and biases are always float32. Our file stores these arrays as they are, and the CPU backend computes on them as
they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..shown import shown_value

WeightType = Literal["float32", "float16", "q8", "q4"]
GROUP_SIZES = (32, 64, 128)
ROW_BLOCK = 8  # rows that are interleaved
QUAD = 4  # neighbouring inputs of one row

# The matrices of a layer that have one input, in the order in which the forward pass needs them. They are stored alike.
STEPS = (
    ("attention.wq", "attention.wk", "attention.wv"),
    ("attention.wo",),
    ("feed_forward.w1", "feed_forward.w3"),
    ("feed_forward.w2",),
)
STEP_OF = {name.split(".")[1]: step for step, names in enumerate(STEPS) for name in names}


@dataclass(frozen=True)
class StorageType:
    """How the numbers of one matrix are stored.

    Attributes:
        type: the storage type.
        group_size: inputs that share a scale; 0 for float types.

    Raises:
        ValueError: the two do not go together.
    """

    type: WeightType
    group_size: int = 0

    def __post_init__(self) -> None:
        sizes = GROUP_SIZES if self.type in ("q8", "q4") else (0,)
        if self.type not in get_args(WeightType) or self.group_size not in sizes:
            raise ValueError(
                f"there is no storage type {shown_value(self.type)} in groups of {shown_value(self.group_size)}"
            )

    def __str__(self) -> str:
        """Such as q4/64, or float16."""
        return f"{self.type}/{self.group_size}" if self.group_size else self.type

    @classmethod
    def parse(cls, text: Any) -> StorageType:
        """Make the type from what str() gave.

        Raises:
            ValueError: text is not such a string.
        """
        kind, _, size = text.partition("/") if isinstance(text, str) else ("", "", "")
        if size not in map(str, GROUP_SIZES):
            raise ValueError(f"a storage type is written like q4/64, not {shown_value(text)}")
        return cls(cast(WeightType, kind), int(size))


@dataclass(frozen=True)
class Quantization:
    """The storage types of a model's matrices.

    Attributes:
        type: the type of every matrix but the output matrix.
        output_type: the type of output.weight, and of tok_embeddings.weight when the two are tied.
        group_size: inputs that share a scale; 0 for float types.
        layers: for a model of mixed types: those of the four STEPS of every layer, instead of type and group_size.

    Raises:
        ValueError: they do not go together.
    """

    type: WeightType
    output_type: WeightType
    group_size: int = 0
    layers: tuple[tuple[StorageType, ...], ...] = ()

    def __post_init__(self) -> None:
        for value in (self.type, self.output_type):
            if value not in get_args(WeightType):
                raise ValueError(
                    f"weight type must be one of {', '.join(get_args(WeightType))}, not {shown_value(value)}"
                )
        if self.type in ("float32", "float16"):
            if self.output_type != self.type or self.group_size != 0:
                raise ValueError(f"a {self.type} model has one type and no groups")
        elif self.output_type not in ("q8", "q4") or self.group_size not in GROUP_SIZES:
            raise ValueError(f"a {self.type} model needs an output type of q8 or q4 and a group size of 32, 64 or 128")
        for layer in self.layers:
            if len(layer) != len(STEPS) or not all(kind.group_size for kind in layer) or not self.group_size:
                raise ValueError("each layer of a mixed model has four quantized types")

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

    def storage_of(self, name: str, config: ModelConfig) -> StorageType:
        """Return how the tensor called name is stored in a model of this config."""
        if name.endswith(("norm.weight", ".bias")):
            return StorageType("float32")
        if name == "output.weight" or (config.tied_embeddings and name == "tok_embeddings.weight"):
            return StorageType(self.output_type, self.group_size)
        if self.layers and name.startswith("layers."):
            _, layer, *step, _ = name.split(".")
            return self.layers[int(layer)][STEP_OF[step[-1]]]
        return StorageType(self.type, self.group_size)

    def type_of(self, name: str, config: ModelConfig) -> WeightType:
        """Return the storage type of the tensor called name in a model of this config."""
        return self.storage_of(name, config).type

    def kinds_of(self, name: str, config: ModelConfig) -> set[StorageType]:
        """Return how the tensors are stored that have this name in one layer or another."""
        if not self.layers or not name.startswith("layers."):
            return {self.storage_of(name, config)}
        rest = name.split(".", 2)[2]
        return {self.storage_of(f"layers.{layer}.{rest}", config) for layer in range(len(self.layers))}

    def of_step(self, layer: int, step: int) -> StorageType:
        """Return how the matrices of a layer's step are stored."""
        return self.layers[layer][step] if self.layers else StorageType(self.type, self.group_size)

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError unless a mixed model has the types of as many layers as config."""
        if self.layers and len(self.layers) != config.n_layers:
            raise ValueError(f"there are types of {len(self.layers)} layers, the model has {config.n_layers}")

    def to_json(self) -> str:
        """The quantization as a JSON object, as our file stores it. A model of one type has no "layers"."""
        values: dict[str, Any] = {"type": self.type, "output_type": self.output_type, "group_size": self.group_size}
        if self.layers:
            values["layers"] = [[str(kind) for kind in layer] for layer in self.layers]
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Quantization:
        """Make the quantization from the JSON object of to_json().

        Raises:
            TypeError, ValueError: a field is unknown, missing or wrong.
        """
        values = json.loads(text)
        layers = values.pop("layers", [])
        if not isinstance(layers, list) or not all(isinstance(layer, list) for layer in layers):
            raise ValueError("layers must be a list of lists")
        if not isinstance(values.get("group_size", 0), int):
            raise ValueError(f"group_size must be an integer, not {shown_value(values['group_size'])}")
        return cls(**values, layers=tuple(tuple(StorageType.parse(kind) for kind in layer) for layer in layers))


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

    @classmethod
    def of_codes(
        cls,
        name: str,
        kind: StorageType,
        shape: tuple[int, ...],
        codes: NDArray[np.int8],
        scales: NDArray[np.float16],
    ) -> Weight:
        """Lay out chosen codes and scales: the inverse of dequantize().

        Args:
            name: Meta's name of the tensor.
            kind: q8 or q4 and the group size.
            shape: the logical shape (rows, columns).
            codes: signed, (rows, groups * group_size), zero beyond the columns.
            scales: (rows, groups).
        """
        rows, groups = scales.shape
        padding = ((0, -rows % ROW_BLOCK), (0, 0))
        blocks, quads = (rows + padding[0][1]) // ROW_BLOCK, kind.group_size // QUAD
        # (blocks, rows, groups, quads, 4) -> (blocks, groups, quads, rows, 4)
        laid = np.pad(codes, padding).reshape(blocks, ROW_BLOCK, groups, quads, QUAD).transpose(0, 2, 3, 1, 4)
        laid = np.ascontiguousarray(laid)
        if kind.type == "q8":
            data = laid.reshape(blocks, groups * quads, ROW_BLOCK, QUAD)
        else:
            unsigned = (laid + 8).astype(np.uint8)
            data = unsigned[:, :, : quads // 2] | unsigned[:, :, quads // 2 :] << 4
        laid_scales = np.pad(scales, padding).reshape(blocks, ROW_BLOCK, groups).transpose(0, 2, 1)
        return cls(name, kind.type, shape, data, np.ascontiguousarray(laid_scales), kind.group_size)

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
