"""Files that appear whole or not at all.

    with Interrupts() as interrupts, NewFile(path, interrupts) as file, interrupts.allowed():
        file.write(...)

With signals held back around the block, Ctrl-C ends it anywhere and leaves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from types import TracebackType
from typing import IO

from ..errors import CheckpointError
from ..process.interrupts import Interrupts

_NAME = 20  # characters of the file's name in the temporary one, which must not be too long itself


class NewFile:
    """A file under a temporary name, which becomes path when the block ends, and is removed when the block fails.

    What is at path is replaced by renaming: whoever has it open or mapped keeps it as it was. The new file is on the
    disk before it gets the name, and has the permissions of any new file. A temporary file is left only by a process
    that was killed; its name is never used again, so that it is in nobody's way.

    interrupts  held back by the caller; they are allowed while the file is written to the disk in the end

    Everything but the block's own exceptions is a CheckpointError, caused by an OSError; path is untouched then.
    """

    def __init__(self, path: str | os.PathLike[str], interrupts: Interrupts | None = None) -> None:
        self.path = os.fspath(path)
        self._interrupts = interrupts
        self._temporary = ""
        self._file: IO[bytes] | None = None

    def __enter__(self) -> NewFile:
        if os.path.isdir(self.path):
            raise CheckpointError(f"{self.path} is a directory") from _os_error(errno.EISDIR)
        if os.path.exists(self.path) and not os.path.isfile(self.path):  # a device would be replaced by a file
            raise CheckpointError(f"cannot write {self.path}: it is a special file") from _os_error(errno.EINVAL)
        folder, name = os.path.split(self.path)
        try:
            while self._file is None:
                self._temporary = os.path.join(folder, f".{name[:_NAME]}.{secrets.token_hex(8)}.part")
                with contextlib.suppress(FileExistsError):
                    self._file = open(self._temporary, "xb")
        except ValueError:
            raise CheckpointError(f"{self.path!r} is not the name of a file") from _os_error(errno.EINVAL)
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
                with contextlib.nullcontext() if self._interrupts is None else self._interrupts.allowed():
                    self._file.flush()
                    os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._error(error) from error
        finally:
            with contextlib.suppress(OSError):  # of what is left to write on a full disk
                self._file.close()
            with contextlib.suppress(OSError):  # it is not there any more if all went well
                os.unlink(self._temporary)

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self.path}: {error.strerror}")


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
