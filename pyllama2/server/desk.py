"""Which texts run, which wait, and how what they say gets from the scheduler's thread into the event loop.

    enter()  a place in the queue, or 429        work  ->  waiting  -- a slot is free -->  running  -->  ended
    Background's thread: after each step of the model -> one call in the loop, which tells the requests that have news

Texts wait in order of their requests' arrival. A text needs its slot until its last token is there, not until a slow
reader has taken it: what waits for the reader is at most AHEAD updates, and a text that is that far ahead pauses
(scheduler.py) and lends its slot meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from ..generation.chunk import Chunk
from ..llama import Llama
from .answers import Part
from .errors import ApiError, closing_error, failed_in_model
from .work import Choice, Work

# Updates of a streamed text that may wait for its reader.
AHEAD = 512
# Up to so many texts, what each step of the model gives is sent at once. Of more, only beginnings and ends are: the
# rest waits for so many seconds times the texts, so that sending takes a small share of the time that the model needs.
_FEW = 4
_PAUSE_S = 0.0015


class Desk:
    """Runs the texts of one model. It belongs to one event loop.

    Args:
        llm: the model.
        max_concurrent: texts that run at a time.
        max_queue: requests that may wait.
    """

    def __init__(self, llm: Llama, max_concurrent: int, max_queue: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._background = llm.background(self._updated)
        self._max_concurrent = max_concurrent
        self._max_queue = max_queue
        self._works: set[Work] = set()
        self._waiting: deque[tuple[Work, Choice]] = deque()
        self._running: dict[Choice, Work] = {}
        self._n_entering = 0
        self._called = False  # whether _look() will run at once
        self._timer: asyncio.TimerHandle | None = None  # when it will run anyway
        self._closing = False
        self._seconds_a_text = 1.0  # a moving average

    @property
    def n_running(self) -> int:
        """Texts that are generated now."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Requests of which no text was begun yet."""
        begun = {id(work) for work, _ in self._waiting if any(choice.started for choice in work.choices)}
        return self._n_entering + len({id(work) for work, _ in self._waiting} - begun)

    @property
    def closing(self) -> bool:
        """Whether no request is taken any more."""
        return self._closing

    @property
    def idle(self) -> bool:
        """Whether there is no request."""
        return not self._works and not self._n_entering

    def enter(self) -> None:
        """Take a place in the queue for a request that is being prepared. start() or leave_early() gives it up.

        Raises:
            ApiError: the queue is full (429), or the server is ending (503).
        """
        if self._closing:
            raise closing_error()
        if len(self._running) + self._n_entering >= self._max_concurrent and self.n_waiting >= self._max_queue:
            wait = self._seconds_a_text * (1 + len(self._waiting)) / self._max_concurrent
            raise ApiError(
                429,
                f"{self.n_waiting} requests are waiting, and no more may",
                code="queue_full",
                headers={"Retry-After": str(min(60, max(1, round(wait))))},
            )
        self._n_entering += 1

    def leave_early(self) -> None:
        """Give up the place of a request that was not begun."""
        self._n_entering -= 1

    def start(self, work: Work) -> None:
        """Put the texts of a request that has entered into the queue."""
        self._n_entering -= 1
        self._works.add(work)
        if self._closing:
            work.fail(closing_error())
            return
        self._waiting.extend((work, choice) for choice in work.choices)
        self._fill()

    def leave(self, work: Work) -> None:
        """Forget a request. Texts that still run or wait are cancelled."""
        self._works.discard(work)
        for choice in work.choices:
            choice.stream.close()
        if not all(choice.started for choice in work.choices):
            self._waiting = deque(pair for pair in self._waiting if pair[0] is not work)
        self._look()
        self._background.wake()  # to free their rows

    def take(self, choice: Choice) -> list[Part]:
        """Return what has come of a text. Raises ApiError when the model fails."""
        if not choice.started:
            return []
        try:
            chunks = self._background.take(choice.stream)
        except Exception as error:
            raise failed_in_model(error) from error
        return [self._part(choice, chunks)] if chunks else []

    def close(self) -> None:
        """Take no more requests. Those under way go on."""
        self._closing = True

    def end(self, error: ApiError) -> None:
        """End all requests."""
        for work in list(self._works):
            work.fail(error)

    def _updated(self, urgent: bool) -> None:
        """In the background's thread."""
        if not self._called and (urgent or self._timer is None):
            self._called = True
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Tell requests what is new, and let those that wait begin."""
        self._called = False  # before looking: what comes meanwhile is looked at again
        if self._timer is not None:
            self._timer.cancel()
        n = len(self._running)
        self._timer = self._loop.call_later(n * _PAUSE_S, self._look) if n > _FEW else None
        for choice, work in list(self._running.items()):
            job = choice.stream.job
            if work.figures.first is None:
                work.figures.first = job.first_at
            if job.ended:
                self._retire(choice)
            if job.ended or (job.queue and work.live):
                work.tell()
        self._fill()

    def _retire(self, choice: Choice) -> None:
        work, job = self._running.pop(choice), choice.stream.job
        if job.first_at is not None and job.last_at is not None:
            work.figures.ended = max(job.last_at, work.figures.ended or 0.0)
            self._seconds_a_text += 0.1 * (job.last_at - job.first_at - self._seconds_a_text)

    def _fill(self) -> None:
        """Begin texts while there are slots. A text that waits for its reader needs none."""
        while self._waiting:
            if len(self._running) >= self._max_concurrent:
                n_active = sum(not choice.stream.job.paused for choice in self._running)
                if n_active >= self._max_concurrent:
                    return
            work, choice = self._waiting.popleft()
            if work.error is not None:
                continue
            choice.started = True
            self._running[choice] = work
            self._background.start(choice.stream, AHEAD if work.live else None)
            if choice.stream.job.ended:  # it may not generate anything
                self._updated(True)

    def _part(self, choice: Choice, chunks: list[Chunk]) -> Part:
        logprobs = None
        if chunks[0].logprobs is not None:
            logprobs = [*choice.prompt_logprobs, *(entry for chunk in chunks for entry in chunk.logprobs or ())]
            choice.prompt_logprobs = []
        reason = chunks[-1].finish_reason
        choice.ended = reason is not None
        return Part(choice.index, "".join(chunk.text for chunk in chunks), logprobs, reason)
