"""The file of results: it grows by whole lines, and says what is in it when the batch is started again.

A line begins with {"id":"batch_req_NUMBER_DIGEST": the number of the request's line, and a digest of the request, the
model and the flags. So no request is computed twice, and results of other requests are noticed. What a killed
process wrote of a last line, without its end, is removed.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import os
import re
import time
from types import TracebackType

from ..errors import CheckpointError
from ..shown import shown

_LINE = re.compile(rb'\{"id":"batch_req_([1-9][0-9]{0,14})_([0-9a-f]{16})",.*\}\n', re.DOTALL)
_SYNC_S = 1.0  # seconds between two times that lines are forced to the disk


class Results:
    """A file of results that one process writes.

    Args:
        path: the file. It is made if it is not there.
        n_items: the number of the batch's last item.
        recipe: what else results depend on: the model and the flags.

    Attributes:
        n_before: results that the file had when it was opened.

    Raises:
        CheckpointError: the file is not of this batch, or another process writes it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, n_items: int, recipe: str) -> None:
        self.path = path
        self.n_before = 0
        self._recipe = recipe.encode("utf-8", "surrogatepass")
        self._digests = array.array("Q", bytes(8 * n_items))  # of items that are in the file; else 0
        self._synced = time.monotonic()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._size = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def id_of(self, number: int, source: bytes) -> str:
        """The id of an item's result."""
        return f"batch_req_{number}_{self._digest(number, source):016x}"

    def has(self, number: int, source: bytes) -> bool:
        """Whether an item's result is in the file.

        Raises:
            CheckpointError: the file has a result of another item, model or flag under this number, or there are more
                items than there were at first.
        """
        if number > len(self._digests):
            raise CheckpointError(
                f"request {number} was added after the batch began; start it again, and it goes on with all of them"
            )
        found = self._digests[number - 1]
        if found and found != self._digest(number, source):
            raise CheckpointError(
                f"{shown(self.path)} has a result for line {number}, but the line, the model or the flags have changed "
                "since; give another file for the results (-o)"
            )
        return bool(found)

    def add(self, number: int, source: bytes, line: bytes) -> None:
        """Append an item's result.

        Args:
            number: of the item.
            source: of the item.
            line: begins with the id, and ends with a line break.

        Raises:
            OSError: the line cannot be written. None of it is in the file then.
        """
        try:
            left = memoryview(line)
            while left:
                left = left[os.pwrite(self._file, left, self._size + len(line) - len(left)) :]
        except BaseException:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        self._digests[number - 1] = self._digest(number, source)
        if time.monotonic() > self._synced + _SYNC_S:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _digest(self, number: int, source: bytes) -> int:
        digest = hashlib.blake2b(source, digest_size=8, key=hashlib.blake2b(self._recipe, digest_size=32).digest())
        return int.from_bytes(digest.digest(), "big") or 1

    def _lock(self) -> None:
        """Keep other processes from writing. The system gives the lock back when the process ends, however it does."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another process is writing {shown(self.path)}") from None

    def _read(self) -> int:
        """Note what is in the file. Returns its size without a last line that has no end."""
        size = 0
        with open(self._file, "rb", closefd=False) as file:
            for n, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                match = _LINE.fullmatch(line)
                number = int(match[1]) if match else 0
                if match is None or number > len(self._digests) or self._digests[number - 1]:
                    raise CheckpointError(
                        f"line {n} of {shown(self.path)} is not a result of this batch; give another file for the "
                        "results (-o)"
                    )
                self._digests[number - 1] = int(match[2], 16)
                self.n_before += 1
                size += len(line)
        os.ftruncate(self._file, size)
        return size
