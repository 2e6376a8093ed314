"""Files that appear whole or not at all. Used by modelfile.py and state.py."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import IO

from .errors import CheckpointError


class NewFile:
    """A file under a temporary name, which becomes path when the block ends, and is removed when the block fails.

    Everything but the block's own exceptions is a CheckpointError; path is untouched then.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        folder, name = os.path.split(self.path)
        self._temporary = os.path.join(folder, f".{name}.{os.getpid()}.part")
        self._file: IO[bytes] | None = None

    def __enter__(self) -> NewFile:
        if os.path.isdir(self.path):
            raise CheckpointError(f"{self.path} is a directory")
        try:
            self._file = open(self._temporary, "xb")
        except OSError as error:
            raise self._error(error) from error
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            raise self._error(error) from error

    def fill_to(self, offset: int) -> None:
        """Append zeros, so that what is written next starts at an offset."""
        assert self._file is not None
        self.write(bytes(offset - self._file.tell()))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                self._file.close()
                os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._error(error) from error
        finally:
            with contextlib.suppress(OSError):  # of what is left to write on a full disk
                self._file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self.path}: {error.strerror}")
