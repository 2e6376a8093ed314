"""TensorInfo: the place of a tensor in a file, as headers say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInfo:
    """The place of one tensor in a file.

    Attributes:
        dtype: the stored type, as the file format spells it: "F32", "BF16", "Q4_K".
        shape: row-major.
        offset: bytes from the start of the file.
        nbytes: bytes of all its elements or blocks.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
