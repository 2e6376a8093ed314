"""Streams that a thread of their own generates, for programs that must not wait, such as an event loop's.

    start(stream), wake()     any thread -> the thread: Scheduler.step() for all streams together -> updated(...)
    take(stream)              the program, after updated(): the chunks that have come

The thread lives as long as there is something to generate: an idle program has none. updated() only says that something
may have changed, so a program that is slower than the model is told once and takes several chunks at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..process.forking import renew_after_fork
from .chunk import Chunk
from .job import Job
from .scheduler import Scheduler
from .stream import Stream


class Background:
    """The streams of one program. All methods may be called from any thread, and none of them waits for the model.

    Args:
        scheduler: what generates the streams.
        updated: called in the background's thread after each step of the model, with True if a stream has begun or
            ended in it. It must not raise or wait.
    """

    def __init__(self, scheduler: Scheduler, updated: Callable[[bool], None]) -> None:
        self._scheduler = scheduler
        self._updated = updated
        self._lock = threading.Lock()  # guards the next two
        self._jobs: list[Job] = []
        self._thread: threading.Thread | None = None
        renew_after_fork(self, Background._renew_in_child)

    def _renew_in_child(self) -> None:
        """End all streams: their thread is in the parent."""
        self._lock = threading.Lock()
        for job in self._jobs:
            job.cancelled = True
        self._jobs, self._thread = [], None

    def start(self, stream: Stream, ahead: int | None) -> None:
        """Generate a stream.

        Args:
            stream: one of which no chunk was asked for.
            ahead: it pauses when this many updates wait to be taken. None: it never pauses.
        """
        stream.job.ahead = ahead
        with self._lock:
            self._jobs.append(stream.job)
        self.wake()

    def take(self, stream: Stream) -> list[Chunk]:
        """Return the chunks of a stream that have come since the last call.

        Raises:
            Exception: what ended the stream, after its last chunk was taken.
        """
        chunks = stream.take()
        if stream.job.ahead is not None:
            self.wake()  # it may have paused since this call began; or another thread, which tells nobody, has ended it
        return chunks

    def wake(self) -> None:
        """Go on with streams that paused, and free the cache of those that were closed."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pyllama2-background", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (active := self._active()) is not None:
            for job in active:
                job.waiting = threading.get_ident()
            try:
                self._scheduler.step(active)
            except BaseException as error:  # of the model, so it concerns all of them
                for job in active:
                    job.error = job.error or error
            self._updated(self._note_times(active))
        if self._jobs:  # all paused, perhaps since the last word, by a step that another thread drove
            self._updated(False)

    def _note_times(self, active: list[Job]) -> bool:
        """Note when streams began and ended. Returns whether any did now."""
        now, urgent = time.monotonic(), False
        for job in active:
            job.last_at = now
            if job.first_at is None and job.queue:
                job.first_at, urgent = now, True
            urgent = urgent or job.ended
        return urgent

    def _active(self) -> list[Job] | None:
        """The streams to advance; none when closed ones are to be retired only. None: there is nothing to do."""
        with self._lock:
            running = [job for job in self._jobs if not job.ended]
            active = [job for job in running if not job.paused]
            if not active and len(running) == len(self._jobs):
                self._thread = None
                return None
            self._jobs = running
            return active
