"""A position in the header of a GGUF file, which moves forward and stays inside the file."""

from __future__ import annotations

import struct

import numpy as np

from ..errors import CheckpointError
from ..storage.mapped import MappedFile

# Published files have names of 40 characters and 700,000 strings in arrays.
_MAX_NAME = 256
_MAX_STRINGS = 1 << 22
_LENGTH = struct.Struct("<Q")


class Cursor:
    """A position in the file that moves forward and stays inside. where is what is being read, for error messages."""

    def __init__(self, file: MappedFile, position: int) -> None:
        self.path = file.path
        self.size = file.size
        self.position = position
        self.where = "its first bytes"
        self._bytes = file.array(0, np.uint8, (file.size,)).data
        self._strings_left = _MAX_STRINGS

    def number(self, size: int) -> int:
        """Read an unsigned number of size bytes."""
        start = self.skip(size)
        return int.from_bytes(self._bytes[start : self.position], "little")

    def name(self) -> str:
        """Read a short string."""
        length = self.number(8)
        if not 1 <= length <= _MAX_NAME:
            raise CheckpointError(f"{self.path}: {self.where} has a name of {length} bytes, not 1 to {_MAX_NAME}")
        start = self.skip(length)
        try:
            return str(self._bytes[start : self.position], "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {self.where} has a name that is not UTF-8") from error

    def skip(self, length: int) -> int:
        """Move over length bytes; returns where they start."""
        start = self.position
        if length > self.size - start:
            raise self._truncated(start, length)
        self.position += length
        return start

    def skip_strings(self, count: int) -> int:
        """Move over count strings; returns where they start. The number of strings in the whole file is limited."""
        self.check_count(count, "strings", self._strings_left, 8)
        self._strings_left -= count
        position, last, length_at = self.position, self.size - 8, _LENGTH.unpack_from
        for _ in range(count):
            if position > last:
                raise self._truncated(position, 8)
            position += 8 + length_at(self._bytes, position)[0]
        return self.skip(position - self.position)

    def check_count(self, count: int, what: str, limit: int, size: int) -> None:
        """Raise CheckpointError unless count items of at least size bytes each fit into the rest of the file."""
        if count > limit or count * size > self.size - self.position:
            raise CheckpointError(
                f"{self.path}: {self.where} should have {count} {what}, but {self.size - self.position} bytes "
                f"are left in the file, and at most {limit} are read"
            )

    def _truncated(self, position: int, length: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is truncated or damaged in {self.where}: {length} bytes are wanted at {position}, "
            f"the file has {self.size}"
        )
