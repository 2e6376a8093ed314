"""Writes the format of GGUF files; checkpoint/gguf_header.py, which reads them, describes it.

The tensors are written one at a time, in the order in which they were announced.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod

from ..storage.new_file import NewFile

Value = bool | int | float | str | Sequence[str] | Sequence[float] | Sequence[int]

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
# Type -> its number in a file, numbers in a block, bytes of a block.
_TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34)}


class GgufFile:
    """A GGUF file that is being written.

    Args:
        file: where it goes.
        keys: the metadata. Integers are stored in 32 bits, and floats too.
        tensors: type and shape of each tensor, by its name, in the order in which they are written.
    """

    def __init__(
        self, file: NewFile, keys: Mapping[str, Value], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        self._file = file
        self._pending = list(tensors.items())[::-1]
        header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
        header += [_string(key) + _typed(value) for key, value in keys.items()]
        offset = 0
        for name, (kind, shape) in tensors.items():
            entry = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], _TYPES[kind][0], offset)
            header.append(_string(name) + entry)
            offset += _padded(nbytes_of(kind, shape))
        head = b"".join(header)
        self._place = _padded(len(head))
        file.write(head)
        file.fill_to(self._place)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Append the next tensor.

        Raises:
            CheckpointError: the file cannot be written.
            ValueError: it is not the next tensor, or not of the size that was announced.
        """
        expected, (kind, shape) = self._pending.pop()
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if name != expected or size != nbytes_of(kind, shape):
            raise ValueError(f"{name} of {size} bytes is not the next tensor, {expected}")
        self._file.write(data)
        self._place += _padded(size)
        self._file.fill_to(self._place)


def nbytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Its rows are whole blocks."""
    _, size, nbytes = _TYPES[kind]
    return prod(shape) // size * nbytes


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    """A value with its type before it. All elements of an array are of one type."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, map(str, value)))
    kind, letter = (_FLOAT32, "f") if value and isinstance(value[0], float) else (_INT32, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", _ARRAY, kind, len(value), *value)
