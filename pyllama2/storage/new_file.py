"""Files that appear whole or not at all.

    with Interrupts() as interrupts, NewFile(path, interrupts) as file, interrupts.allowed():
        file.write(...)

Signals are held back around the block and allowed inside it, so that Ctrl-C at any point leaves no temporary file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from types import TracebackType
from typing import IO

from ..errors import CheckpointError
from ..process.interrupts import Interrupts
from ..shown import shown_value

_NAME = 20  # characters of the file's name that the temporary name repeats; file names have a limited length


class NewFile:
    """A file with a temporary name. It is renamed to path when the block ends, and removed when the block fails.

    Renaming replaces an existing file: a process that has the old file open or mapped keeps it as it was. The new
    file is on the disk before it gets its name, and has the permissions of any new file. Only a process that is killed
    leaves a temporary file; its name is random, so that it does not get in the way of another.

    Args:
        path: the file to write.
        interrupts: signals that the caller holds back; they are allowed while the finished file is flushed to the disk.

    Raises:
        CheckpointError: the file cannot be written. path is unchanged.
    """

    def __init__(self, path: str | os.PathLike[str], interrupts: Interrupts | None = None) -> None:
        self.path = os.fspath(path)
        self._interrupts = interrupts
        self._temporary = ""
        self._file: IO[bytes] | None = None

    def __enter__(self) -> NewFile:
        check_replaceable(self.path)
        folder, name = os.path.split(self.path)
        try:
            while self._file is None:
                self._temporary = os.path.join(folder, f".{name[:_NAME]}.{secrets.token_hex(8)}.part")
                with contextlib.suppress(FileExistsError):
                    self._file = open(self._temporary, "xb")
        except ValueError:
            raise CheckpointError(f"{shown_value(self.path)} is not the name of a file") from None
        except OSError as error:
            raise self._error(error) from error
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            CheckpointError: they cannot be written.
        """
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            raise self._error(error) from error

    def fill_to(self, offset: int) -> None:
        """Append zeros up to an offset, which is where the next write starts.

        Raises:
            CheckpointError: they cannot be written.
        """
        assert self._file is not None
        self.write(bytes(offset - self._file.tell()))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                with contextlib.nullcontext() if self._interrupts is None else self._interrupts.allowed():
                    self._file.flush()
                    os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._error(error) from error
        finally:
            with contextlib.suppress(OSError):  # closing writes what is buffered, which fails on a full disk
                self._file.close()
            with contextlib.suppress(OSError):  # after a success there is no temporary file any more
                os.unlink(self._temporary)

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self.path}: {error.strerror}")


def check_replaceable(path: str) -> None:
    """Check that a new file may get a name: that it would replace a file, if anything.

    Raises:
        CheckpointError: path is a directory or a special file, such as a device.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(f"cannot write {path}: it is a {'directory' if os.path.isdir(path) else 'special file'}")
