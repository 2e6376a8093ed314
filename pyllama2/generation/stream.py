"""The iterator that stream() gives. Made by llama.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

from .chunk import Chunk
from .completion import Completion
from .generation import Generation
from .job import Job
from .scheduler import Scheduler


class Stream(Iterator[Chunk]):
    """The chunks of one text as they come.

    close() ends the generation early, as dropping the stream does: its place is free at the next step of the
    model. Generation that fails with an exception has ended. Nothing is generated before the first chunk is asked
    for, and only a few chunks ahead: while other texts are generated, or when guesses came true (prompt_lookup.py).
    """

    def __init__(self, scheduler: Scheduler, text: Generation) -> None:
        self._scheduler = scheduler
        self._job = Job(text)

    def __next__(self) -> Chunk:
        update = self._scheduler.next(self._job)
        if update is None:
            raise StopIteration
        return update.chunk

    @property
    def completion(self) -> Completion:
        """All that has come so far, also after an exception; its finish_reason is "cancelled" until the last chunk."""
        return self._job.text.completion()

    def close(self) -> None:
        """End the generation."""
        self._job.cancelled = True

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self._job.cancelled = True  # and no more: this runs at any moment, also while a lock is held


async def pulled_in_threads(stream: Stream) -> AsyncGenerator[Chunk, None]:
    """The chunks of a stream for an event loop, which goes on while they are computed. Its end closes the stream."""
    import asyncio  # as long to import as the rest of the package

    try:
        while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
            yield chunk
    finally:
        stream.close()
