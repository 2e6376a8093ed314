"""What a fuzzing target is, and files in memory to call readers with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from .mutation import mutate_bytes

_CORPUS = Path(__file__).parent / "corpus"
# No message is longer, so that a file cannot flood a terminal or a log with what it says of itself.
_MAX_MESSAGE = 2000


@dataclass(frozen=True)
class Target:
    """A function that is called with bytes from outside.

    name       of the target, and of its folder in corpus/
    call       takes the bytes; whatever it raises is a finding, unless it is one of
    promised   the exceptions that it may raise, with one sentence as their message
    make_seeds inputs to begin with, at least one of which is accepted
    mutate     damages an input so that the damage gets past the first checks
    """

    name: str
    call: Callable[[bytes], object]
    promised: tuple[type[Exception], ...]
    make_seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[bytes, Random], bytes] = mutate_bytes

    def run(self, data: bytes) -> bool:
        """Call the function; whether it accepted the bytes. Raises what is a finding."""
        try:
            self.call(data)
        except self.promised as error:
            message = str(error)
            if not message or "\n" in message or len(message) > _MAX_MESSAGE:
                raise AssertionError(f"not one sentence: {message[:300]!r}") from error
            return False
        return True

    @cached_property
    def seeds(self) -> list[bytes]:
        """The inputs to begin with."""
        return list(self.make_seeds())

    @property
    def regressions(self) -> dict[str, bytes]:
        """Inputs that once showed a defect, by the name of their file."""
        folder = _CORPUS / self.name
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


@contextmanager
def file_of(data: bytes) -> Iterator[str]:
    """The path of a file in memory that holds data. It is a new one each time: what is mapped must not shrink."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class Folder:
    """A directory in memory whose file called name is written anew each time; the others stay as they are."""

    def __init__(self, name: str, others: dict[str, bytes]) -> None:
        memory = "/dev/shm"
        self._temporary = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
        self.path = Path(self._temporary.name)
        self._file = self.path / name
        for other, data in others.items():
            (self.path / other).write_bytes(data)

    def holding(self, data: bytes) -> Path:
        """The directory, with data in the file."""
        self._file.unlink(missing_ok=True)
        self._file.write_bytes(data)
        return self.path
