"""A file mapped into memory, read-only. Bounds are checked before any view is made.

Another process may change the file while it is mapped. When a file is replaced by renaming another over it, as this
package does (new_file.py), the mapping is not affected: the old file stays as long as it is mapped. When the file is
truncated or overwritten, as by `cp new.bin model.bin`, check() finds out: it compares the file's size and modification
time with those at the start. Pages that are gone read as zeros until then (bus_errors.h).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import CheckpointError, ClosedError
from .mapping import Mapping


class MappedFile(Mapping):
    """The bytes of one regular file. The file stays mapped as long as any view of it is referenced.

    Attributes:
        path: the path that the file was opened by.

    Raises:
        CheckpointError: the file cannot be read, is not a regular file, or is empty.
        ClosedError: it is used after close().
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
            if status.st_size == 0:
                raise CheckpointError(f"{self.path} is empty")
            self._written = status.st_mtime_ns
            super().__init__(descriptor, status.st_size)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def bytes(self, offset: int, length: int) -> bytes:
        """Copy length bytes at offset.

        Raises:
            CheckpointError: the file does not have these bytes, or has changed.
        """
        self._check_range(offset, length)
        with memoryview(self) as view:
            copy = bytes(view[offset : offset + length])
        if self.damaged:
            self.check()
        return copy

    def array(self, offset: int, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """View a part of the file as an array, without copying.

        Args:
            offset: byte of the first element.
            dtype: type of the elements.
            shape: shape of the array, row-major.

        Returns:
            A read-only array.

        Raises:
            CheckpointError: the array does not fit into the file.
        """
        dtype = np.dtype(dtype)
        self._check_range(offset, prod(shape) * dtype.itemsize)
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(memoryview(self), dtype, prod(shape), offset).reshape(shape)

    def check(self) -> None:
        """Raise CheckpointError if the file has changed since it was mapped: what was read may be wrong."""
        if self.descriptor < 0:
            raise ClosedError("the file is closed")
        try:
            status = os.fstat(self.descriptor)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read any more: {error.strerror}; load it again") from error
        if status.st_size != self.size:
            what = f"had {self.size} bytes and has {status.st_size}"
        elif status.st_mtime_ns != self._written:
            what = "was written to"
        elif self.damaged:
            what = "could not be read from its disk"
        else:
            return
        raise CheckpointError(f"{self.path} changed while it was in use: it {what}; load it again")

    def release(self, offset: int, length: int) -> None:
        """Give the pages of a range of bytes back to the operating system, which reads them again when needed.

        Raises:
            CheckpointError: the file has changed since it was mapped.
        """
        super().release(offset, length)
        self.check()

    def release_view(self, view: NDArray[Any]) -> None:
        """Release the pages of a contiguous array that array() returned; see release()."""
        self.release(view.ctypes.data - np.frombuffer(memoryview(self), np.uint8).ctypes.data, view.nbytes)

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"{self.path} is truncated: {length} bytes at {offset} are wanted, the file has {self.size}"
            )


def files_under(arrays: Iterable[NDArray[Any]]) -> list[MappedFile]:
    """Return the mapped files that arrays are views of, each once."""
    files: dict[int, MappedFile] = {}
    for array in arrays:
        base: Any = array
        while base is not None and not isinstance(base, MappedFile):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None:
            files[id(base)] = base
    return list(files.values())
