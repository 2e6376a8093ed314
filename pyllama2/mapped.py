"""A file mapped into memory, read-only, with bounds checked before any view is made.

Used by every reader: modelfile.py and checkpoint/.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import CheckpointError


class MappedFile:
    """The bytes of one regular file. Views stay valid as long as any of them is referenced.

    Raises CheckpointError when the file cannot be read or is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            # O_NONBLOCK: opening a FIFO must fail below rather than wait for a writer.
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CheckpointError(f"cannot open {self.path}: {reason}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{self.path} is not a regular file")
            self.size = status.st_size
            if self.size == 0:
                raise CheckpointError(f"{self.path} is empty")
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def bytes(self, offset: int, length: int) -> bytes:
        """A copy of length bytes at offset. Raises CheckpointError when they are not there."""
        self._check(offset, length)
        return self._map[offset : offset + length]

    def array(self, offset: int, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A read-only view of the file as an array; no bytes are copied."""
        dtype = np.dtype(dtype)
        self._check(offset, prod(shape) * dtype.itemsize)
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(self._map, dtype, prod(shape), offset).reshape(shape)

    def release(self, offset: int, length: int) -> None:
        """Give the pages of a range back to the system; they are read again when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, min(offset + length, self.size) - start)

    def release_view(self, view: NDArray[Any]) -> None:
        """Do so with the range of a contiguous array that array() gave."""
        self.release(view.ctypes.data - np.frombuffer(self._map, np.uint8).ctypes.data, view.nbytes)

    def close(self) -> None:
        """Unmap the file, now or when the last view of it is gone."""
        with contextlib.suppress(BufferError):  # views are alive: the last of them unmaps
            self._map.close()

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"{self.path} is truncated: {length} bytes at {offset} are wanted, the file has {self.size}"
            )
