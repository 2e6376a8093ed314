"""A strict reader of the header of safetensors files, and a writer of it.

    8 bytes   n, little-endian
    n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    the rest  data; offsets count from its first byte, without holes or overlaps

Source: https://github.com/huggingface/safetensors#format. The `safetensors` package itself is not used at run
time, because it offers neither limits on memory nor views of a mapped file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..bounded_json import parse_json
from ..errors import CheckpointError
from .mapped import MappedFile
from .tensor_info import TensorInfo

MAX_HEADER = 100_000_000  # the format's own limit
_MAX_DIMENSIONS = 8

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        metadata: the strings of `__metadata__`.
        tensors: the tensors by name, in the order of their offsets; their dtypes are keys of ITEM_SIZES.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


def make_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], alignment: int = 8) -> bytes:
    """Make the header of a new file.

    Args:
        tensors: the tensors by name; here, their offsets count from the first byte of the data.
        metadata: the strings of `__metadata__`.
        alignment: the length of the header is padded to a multiple of this number of bytes.

    Returns:
        The bytes that the file begins with; the data follows them.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, info in tensors.items():
        offsets = [info.offset, info.offset + info.nbytes]
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def looks_like_safetensors(file: MappedFile) -> bool:
    """Whether the first nine bytes of a mapped file can be those of a safetensors file."""
    return file.size > 9 and file.bytes(8, 1) == b"{" and _header_length(file) <= MAX_HEADER


def read_header(file: MappedFile) -> Header:
    """Parse and check the header of a mapped file.

    Raises:
        CheckpointError: the header is damaged or exceeds a limit, or its tensors do not cover the data exactly.
    """
    if file.size < 8:
        raise CheckpointError(f"{file.path} is truncated: {file.size} bytes are no safetensors file")
    length = _header_length(file)
    if length > MAX_HEADER:
        raise CheckpointError(f"{file.path}: a header of {length} bytes exceeds the limit of {MAX_HEADER}")
    if 8 + length > file.size:
        raise CheckpointError(
            f"{file.path} is truncated: its header should have {length} bytes, the file has {file.size}"
        )
    entries = _parse_json(file.path, file.bytes(8, length))
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file.path}: __metadata__ must map strings to strings")
    start = 8 + length
    tensors = {name: _tensor_info(file.path, name, entry, start) for name, entry in entries.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_cover(file, tensors, start)
    return Header(metadata, tensors)


def _header_length(file: MappedFile) -> int:
    return int.from_bytes(file.bytes(0, 8), "little")


def _parse_json(path: str, text: bytes) -> dict[str, Any]:
    if text[:1] != b"{":
        raise CheckpointError(f"{path}: the header does not start with '{{'")
    try:
        entries = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: the header {error}") from error
    assert isinstance(entries, dict)  # it starts with a brace
    return entries


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _tensor_info(path: str, name: str, entry: Any, start: int) -> TensorInfo:
    where = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise CheckpointError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where} has a bad shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where} has bad data_offsets")
    begin, end = offsets
    nbytes = prod(shape) * ITEM_SIZES[dtype]
    if end - begin != nbytes:
        raise CheckpointError(f"{where}: {dtype} {shape} takes {nbytes} bytes, not {end - begin}")
    return TensorInfo(dtype, tuple(shape), start + begin, nbytes)


def _check_cover(file: MappedFile, tensors: dict[str, TensorInfo], start: int) -> None:
    """Raise CheckpointError unless the tensors, in order, cover the data without holes or overlaps."""
    end = start
    for name, tensor in tensors.items():
        if tensor.offset != end:
            raise CheckpointError(
                f"{file.path}: tensor {name[:80]!r} starts at byte {tensor.offset}, not {end}: a hole or an overlap"
            )
        end = tensor.offset + tensor.nbytes
    if end != file.size:
        problem = "is truncated" if end > file.size else "has bytes after its last tensor"
        raise CheckpointError(f"{file.path} {problem}: its tensors end at byte {end}, the file has {file.size}")
