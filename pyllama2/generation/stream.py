"""The iterator that stream() returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

from .chunk import Chunk
from .completion import Completion
from .generation import Generation
from .job import Job
from .scheduler import Scheduler


class Stream(Iterator[Chunk]):
    """The chunks of one text as they come.

    close() ends the generation early, and so does dropping the stream. Its row of the cache is free at the next step of
    the model. An exception ends the generation too. Nothing is generated before the first chunk is asked for. Later, a
    few chunks may be generated ahead: while other texts are generated, or when guesses came true (prompt_lookup.py).

    Args:
        scheduler: what generates it.
        text: what is generated.

    Attributes:
        job: the text in the scheduler.
    """

    def __init__(self, scheduler: Scheduler, text: Generation) -> None:
        self._scheduler = scheduler
        self.job = Job(text)

    def __next__(self) -> Chunk:
        update = self._scheduler.next(self.job)
        if update is None:
            raise StopIteration
        return update.chunk

    def take(self) -> list[Chunk]:
        """Return the chunks that are there, without generating any. For streams that others generate.

        Raises:
            Exception: what ended the stream, once there are no chunks left.
        """
        chunks = []
        while self.job.queue and not self.job.cancelled:
            update = self.job.queue.popleft()
            self.job.text.deliver(update)
            chunks.append(update.chunk)
        if self.job.error is not None and not chunks and not self.job.cancelled:
            raise self.job.error
        return chunks

    @property
    def completion(self) -> Completion:
        """All that has come so far, also after an exception. finish_reason is "cancelled" until the last chunk."""
        return self.job.text.completion()

    def _repr_html_(self) -> str:
        """HTML for IPython: what has come so far. Nothing is generated for it."""
        completion = self.completion
        goes_on = completion.finish_reason == "cancelled" and not self.job.cancelled
        return completion.html_with("more to come" if goes_on else completion.finish_reason)

    def close(self) -> None:
        """End the generation."""
        self.job.cancelled = True

    def __del__(self) -> None:
        if hasattr(self, "job"):
            self.job.cancelled = True  # and nothing else: this may run at any moment, even while a lock is held


async def pulled_in_threads(stream: Stream) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks of a stream without blocking the event loop. The end of the generator closes the stream."""
    import asyncio  # its import takes as long as that of the package

    try:
        while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
            yield chunk
    finally:
        stream.close()
