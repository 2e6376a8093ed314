"""A strict reader of the header of GGUF files: metadata, and places of tensors. All numbers are little-endian.

    "GGUF"    uint32 version   uint64 number of tensors   uint64 number of keys
    keys      string, uint32 type of the value, value
    tensors   string, uint32 number of dimensions, uint64 dimensions (that of a row first), uint32 type, uint64 offset
    data      at the next multiple of general.alignment; offsets count from its first byte

    string    uint64 length, UTF-8
    array     uint32 type of the elements, uint64 count, elements

Values are read on demand, so that a key that is not used takes no memory.
Versions 2 and 3 differ only in that a file of version 3 may be big-endian, which is not supported.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from ..storage.tensor_info import TensorInfo
from .gguf_blocks import BLOCK_TYPES
from .gguf_cursor import Cursor

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # unless general.alignment says otherwise
# Published files have some 40 keys and at most 1,200 tensors.
_MAX_ENTRIES = 1 << 16
_MAX_DIMENSIONS = 4
# The largest texts that are read, in bytes: a chat template, and the tokens of a vocabulary with their lengths.
_MAX_TEXT = 1 << 20
_MAX_TEXTS = 12 << 20

_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_KINDS = {int: (0, 1, 2, 3, 4, 5, 10, 11), float: (6, 12), bool: (7,), str: (_STRING,)}
# In the order of their numbers, including types that newer programs no longer write.
_TENSOR_TYPES = (
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16",
    "I32", "I64", "F64", "IQ1_M", "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4",
    "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4",
)  # fmt: skip
# Numbers in a block, and its bytes.
_BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2)} | {
    name: (block.size, block.layout.itemsize) for name, block in BLOCK_TYPES.items()
}

# Types that are not supported, by how their names begin, and the nearest that is.
_NEAREST = {
    "IQ1": "Q2_K", "IQ2": "Q2_K", "IQ3": "Q3_K", "TQ": "Q2_K", "Q4_0_": "Q4_0", "IQ4_NL_": "IQ4_NL", "MXFP4": "Q4_K",
    "NVFP4": "Q4_K", "Q8_": "Q8_0", "Q4_": "Q4_0",
}  # fmt: skip

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        metadata: the keys and their values.
        tensors: the tensors by name, in the order of the file's list; their dtypes are "F32", "F16", "BF16" and the
            keys of BLOCK_TYPES.
    """

    metadata: Metadata
    tensors: dict[str, TensorInfo]


@dataclass(frozen=True)
class _Field:
    """A value in the file: count elements in bytes start .. end - 1. A value that is not an array has one element."""

    kind: int  # a number of the format, such as _STRING
    is_array: bool
    count: int
    start: int
    end: int


class Metadata:
    """Typed access to the keys of a file.

    Attributes:
        path: the file's path, for error messages.
    """

    def __init__(self, file: MappedFile, fields: dict[str, _Field]) -> None:
        self.path = file.path
        self._file = file
        self._fields = fields

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def find(self, key: str, kind: type[T]) -> T | None:
        """Return the value of a key, None when it is absent.

        Args:
            key: its name.
            kind: the type expected: int, float, bool or str.

        Returns:
            The value. A float32 becomes the shortest decimal number that rounds to it, since that is what the writer
            meant: 1e-5, not 0.000009999999747.

        Raises:
            CheckpointError: the value is of another type, or a text is too long or not UTF-8.
        """
        field = self._field(key, kind, is_array=False)
        if field is None:
            return None
        value: Any
        if field.kind == _STRING:
            value = self._texts(key, field, _MAX_TEXT)[0]
        elif kind is bool:
            value = self._file.bytes(field.start, 1)[0]
            if value > 1:
                raise CheckpointError(f"{self.path}: {key} should be true or false, not {value}")
        else:
            number = self._array(field)[0]
            value = float(str(number)) if kind is float else int(number)
        return kind(value)

    def get(self, key: str, kind: type[T]) -> T:
        """Return the value of a key that must exist; see find().

        Raises:
            CheckpointError: the key is absent, or its value is not valid.
        """
        value = self.find(key, kind)
        if value is None:
            raise CheckpointError(f"{self.path} lacks the key {key}")
        return value

    def uniform(self, key: str, default: int | None = None) -> int:
        """Return an integer that may also be stored as an array with the same number for each layer.

        Args:
            key: its name.
            default: the number when the key is absent; None: the key must exist.

        Raises:
            CheckpointError: the key is absent, not of integers, or layers have different numbers.
        """
        field = self._fields.get(key)
        if field is None and default is not None:
            return default
        if field is None or not field.is_array:
            return self.get(key, int)
        numbers = self.array(key, int)
        if not 1 <= len(numbers) <= _MAX_ENTRIES:
            raise CheckpointError(f"{self.path}: {key} has {len(numbers)} numbers instead of one for each layer")
        if (numbers != numbers[0]).any():
            raise CheckpointError(f"{self.path}: {key} differs between layers, which is not supported")
        return int(numbers[0])

    def array(self, key: str, kind: type[int] | type[float]) -> NDArray[Any]:
        """Return the numbers of an array.

        Args:
            key: its name.
            kind: the type of its elements: int or float.

        Returns:
            A view of the file, (count,), of the stored type.

        Raises:
            CheckpointError: the key is absent, or not an array of that type.
        """
        return self._array(self._required_array(key, kind))

    def texts(self, key: str, max_count: int) -> list[str]:
        """Return the strings of an array.

        Args:
            key: its name.
            max_count: the most strings that it may have.

        Raises:
            CheckpointError: the key is absent, not an array of strings, too large, or not UTF-8.
        """
        field = self._required_array(key, str)
        if field.count > max_count:
            raise CheckpointError(f"{self.path}: {key} has {field.count} strings, at most {max_count} are possible")
        return self._texts(key, field, _MAX_TEXTS)

    def _field(self, key: str, kind: type[int] | type[float] | type[bool] | type[str], is_array: bool) -> _Field | None:
        field = self._fields.get(key)
        if field is not None and (field.is_array != is_array or field.kind not in _KINDS[kind]):
            expected = "an array of type" if is_array else "of type"
            raise CheckpointError(f"{self.path}: {key} should be {expected} {kind.__name__}")
        return field

    def _required_array(self, key: str, kind: type[int] | type[float] | type[str]) -> _Field:
        field = self._field(key, kind, is_array=True)
        if field is None:
            raise CheckpointError(f"{self.path} lacks the key {key}")
        return field

    def _array(self, field: _Field) -> NDArray[Any]:
        return self._file.array(field.start, _SCALARS[field.kind], (field.count,))

    def _texts(self, key: str, field: _Field, max_bytes: int) -> list[str]:
        if field.end - field.start > max_bytes:
            raise CheckpointError(f"{self.path}: {key} has {field.end - field.start} bytes, more than {max_bytes}")
        data = self._file.bytes(field.start, field.end - field.start)
        texts = []
        end = 0
        try:
            for _ in range(field.count):
                start = end + 8
                end = start + int.from_bytes(data[end:start], "little")
                texts.append(data[start:end].decode())
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: string {len(texts)} of {key} is not UTF-8") from error
        return texts


def is_gguf(file: MappedFile) -> bool:
    """Whether a mapped file begins like a GGUF file."""
    return file.size >= len(_MAGIC) and file.bytes(0, len(_MAGIC)) == _MAGIC


def read_header(file: MappedFile) -> Header:
    """Parse and check the header of a mapped file.

    Raises:
        CheckpointError: the file is no GGUF file, of an unsupported version or type, truncated or damaged.
    """
    if not is_gguf(file):
        raise CheckpointError(f"{file.path} is not a GGUF file")
    cursor = Cursor(file, len(_MAGIC))
    version = cursor.number(4)
    if version in [v << 24 for v in _VERSIONS]:
        raise CheckpointError(f"{file.path} is a big-endian GGUF file, which is not supported")
    if version not in _VERSIONS:
        raise CheckpointError(f"{file.path} has version {version} of GGUF; versions 2 and 3 are supported")
    n_tensors, n_keys = cursor.number(8), cursor.number(8)
    metadata = Metadata(file, _read_fields(cursor, n_keys))
    alignment = metadata.find("general.alignment", int)
    if alignment is None:
        alignment = _ALIGNMENT
    if alignment < 8 or alignment & (alignment - 1):
        raise CheckpointError(f"{file.path}: general.alignment is {alignment}, not a power of two of at least 8")
    return Header(metadata, _read_tensors(cursor, n_tensors, alignment))


def _read_fields(cursor: Cursor, count: int) -> dict[str, _Field]:
    cursor.check_count(count, "keys", _MAX_ENTRIES, 13)
    fields: dict[str, _Field] = {}
    for i in range(count):
        cursor.where = f"key {i + 1} of {count}"
        key = cursor.name()
        if key in fields:
            raise CheckpointError(f"{cursor.path}: the key {key!r} appears twice")
        cursor.where = f"the key {key!r}"
        fields[key] = _read_field(cursor)
    return fields


def _read_field(cursor: Cursor) -> _Field:
    kind = cursor.number(4)
    is_array = kind == _ARRAY
    count = 1
    if is_array:
        kind, count = cursor.number(4), cursor.number(8)
    if kind == _STRING:
        start = cursor.skip_strings(count)
    elif kind in _SCALARS:
        start = cursor.skip(count * np.dtype(_SCALARS[kind]).itemsize)
    else:
        problem = "an array of arrays" if kind == _ARRAY else f"of the unknown type {kind}"
        raise CheckpointError(f"{cursor.path}: {cursor.where} is {problem}, which is not supported")
    return _Field(kind, is_array, count, start, cursor.position)


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    cursor.where = "the list of tensors"
    cursor.check_count(count, "tensors", _MAX_ENTRIES, 24)
    tensors: dict[str, TensorInfo] = {}
    for i in range(count):
        cursor.where = f"tensor {i + 1} of {count}"
        name = cursor.name()
        if name in tensors:
            raise CheckpointError(f"{cursor.path}: tensor {name!r} appears twice")
        cursor.where = f"tensor {name!r}"
        tensors[name] = _read_tensor(cursor)
        if tensors[name].offset % alignment:
            raise CheckpointError(
                f"{cursor.path}: {cursor.where} starts at byte {tensors[name].offset} of the data, "
                f"which is no multiple of {alignment}"
            )
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in tensors.items()}
    _check_places(cursor, tensors)
    return tensors


def _read_tensor(cursor: Cursor) -> TensorInfo:
    """Read what follows the name of a tensor. The offset of the result counts from the start of the data."""
    n_dimensions = cursor.number(4)
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.path}: {cursor.where} has {n_dimensions} dimensions instead of 1 to 4")
    shape = tuple(cursor.number(8) for _ in range(n_dimensions))[::-1]
    number, offset = cursor.number(4), cursor.number(8)
    kind = _TENSOR_TYPES[number] if number < len(_TENSOR_TYPES) else f"of the unknown type {number}"
    if kind not in _BLOCKS:
        raise CheckpointError(
            f"{cursor.path}: {cursor.where} is {kind}; supported are {', '.join(_BLOCKS)}{_nearest(kind)}"
        )
    size, nbytes = _BLOCKS[kind]
    if 0 in shape or shape[-1] % size:
        raise CheckpointError(
            f"{cursor.path}: {cursor.where} of shape {shape} has rows that are not made of {kind} blocks of {size}"
        )
    return TensorInfo(kind, shape, offset, prod(shape) // size * nbytes)


def _nearest(kind: str) -> str:
    """The end of a message: which file of the same model has about as many bits and can be read."""
    for start, other in _NEAREST.items():
        if kind.startswith(start):
            return f"; take the {other} file of the same model"
    return ""


def _check_places(cursor: Cursor, tensors: dict[str, TensorInfo]) -> None:
    """Raise CheckpointError unless every tensor ends inside the file and before the next one starts."""
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise CheckpointError(f"{cursor.path}: tensors {before!r} and {name!r} overlap at byte {tensor.offset}")
        end, before = tensor.offset + tensor.nbytes, name
        if end > cursor.size:
            raise CheckpointError(
                f"{cursor.path} is truncated or damaged: tensor {name!r} should end at byte {end}, "
                f"the file has {cursor.size}"
            )
