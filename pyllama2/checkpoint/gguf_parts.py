"""Opens the files of a GGUF model: one, or the parts of one that was cut.

    NAME-00001-of-00003.gguf     split.no 0, split.count 3, the metadata of the model, and some tensors
    NAME-00002-of-00003.gguf     split.no 1, split.count 3, more tensors

Source: https://github.com/ggml-org/llama.cpp (tools/gguf-split).
"""

from __future__ import annotations

import os
import re

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from .gguf_header import Header, read_header

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 1000


def open_parts(path: str | os.PathLike[str]) -> list[tuple[MappedFile, Header]]:
    """Map a model's files and read their headers.

    Args:
        path: the only file, or any of the parts.

    Returns:
        Each file with its header, the first part first.

    Raises:
        CheckpointError: a file is damaged, or the parts do not belong together.
    """
    file = MappedFile(path)
    header = read_header(file)
    count = header.metadata.find("split.count", int) or 1
    if count == 1:
        return [(file, header)]
    match = _NAME.fullmatch(file.path)
    if match is None or int(match[3]) != count or not count <= _MOST_PARTS:
        raise CheckpointError(
            f"{file.path} is one of {count} parts of a model, and must have its name: NAME-00001-of-{count:05}.gguf"
        )
    parts = [_open_part(f"{match[1]}-{i + 1:05}-of-{match[3]}.gguf", i, count) for i in range(count)]
    names: set[str] = set()
    for part, other in parts:
        if both := names & other.tensors.keys():
            raise CheckpointError(f"{part.path}: tensor {min(both)[:80]!r} is in another part, too")
        names |= other.tensors.keys()
    announced = parts[0][1].metadata.find("split.tensors.count", int)
    if announced not in (None, len(names)):
        raise CheckpointError(f"{file.path}: the parts have {len(names)} tensors instead of {announced}")
    return parts


def _open_part(path: str, number: int, count: int) -> tuple[MappedFile, Header]:
    if not os.path.exists(path):
        raise CheckpointError(f"{path} is missing: the model has {count} parts")
    file = MappedFile(path)
    header = read_header(file)
    found = header.metadata.find("split.no", int), header.metadata.find("split.count", int)
    if found != (number, count):
        raise CheckpointError(f"{path} says that it is part {found[0]} of {found[1]}, counted from 0")
    return file, header
