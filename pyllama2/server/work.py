"""One request at work: its texts, what has come of them, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation.chunk import TokenLogprob
from ..generation.completion import Completion
from ..generation.stream import Stream
from .answers import Part, PromptStart
from .errors import ApiError


@dataclass
class Figures:
    """What the log and the metrics say about a request.

    Attributes:
        arrived: when it came, by time.monotonic().
        first: when its first token came. None: none has come.
        ended: when its last token came.
        usage: numbers of tokens, as the answer has them.
        finish_reasons: of the texts that have ended by themselves.
        stream: whether the answer was streamed.
        error: the code of the error that ended the request.
        gone: whether the client has left.
    """

    arrived: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float | None = None
    usage: dict[str, Any] | None = None
    finish_reasons: list[str] = field(default_factory=list)
    stream: bool = False
    error: str | None = None
    gone: bool = False

    @property
    def seconds_per_token(self) -> float | None:
        """Seconds for each token after the first, of all texts together. None for fewer than two tokens."""
        n_tokens = 0 if self.usage is None else self.usage["completion_tokens"] - 1
        if n_tokens < 1 or self.first is None or self.ended is None or self.ended <= self.first:
            return None
        return (self.ended - self.first) / n_tokens


@dataclass(eq=False)
class Choice:
    """One text.

    Attributes:
        index: among the request's choices.
        stream: what generates it.
        prompt_logprobs: entries for the prompt that come before those of its tokens.
        started: whether the desk has begun it.
        ended: whether its last part was given out.
    """

    index: int
    stream: Stream
    prompt_logprobs: list[TokenLogprob | PromptStart] = field(default_factory=list)
    started: bool = False
    ended: bool = False

    def completion(self) -> Completion:
        """All that has come."""
        return self.stream.completion


class Work:
    """The texts of one request. The desk runs them, the request's task reads parts(), anyone may fail() it.

    All methods belong to the event loop.

    Args:
        streams: one for each choice, the choices of a prompt beside each other.
        live: whether parts are wanted as they come. Otherwise each text is one part, when it has ended.
        figures: what is counted.
        ping_s: seconds after which parts() gives nothing, if there is nothing. None: it waits.
    """

    def __init__(self, streams: Sequence[Stream], *, live: bool, figures: Figures, ping_s: float | None = None) -> None:
        self.choices = [Choice(i, stream) for i, stream in enumerate(streams)]
        self.live = live
        self.figures = figures
        self.error: ApiError | None = None
        self._ping_s = None if ping_s is None else ping_s / 2
        self._quiet = 0  # times that _ping() has slept since the last part
        self.timer: asyncio.TimerHandle | None = None  # of the time that the request may take
        self._news = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """End all texts. The first error counts."""
        if self.error is None:
            self.error = error
            for choice in self.choices:
                choice.stream.close()
            self.tell()

    async def parts(self, take: Callable[[Choice], list[Part]]) -> AsyncIterator[list[Part]]:
        """Yield what comes of the texts, up to the end of all. Nothing is yielded for a ping.

        Args:
            take: gives the new parts of a choice; raises ApiError.

        Raises:
            ApiError: the request has failed.
        """
        open_choices = list(self.choices)
        pinger = None if self._ping_s is None else asyncio.ensure_future(self._ping(self._ping_s))
        try:
            while open_choices:
                await self._news.wait()
                self._news.clear()
                if self.error is not None:
                    raise self.error
                parts = [part for choice in open_choices for part in take(choice)]
                open_choices = [choice for choice in open_choices if not choice.ended]
                if parts and any(choice.stream.job.error is not None for choice in open_choices):
                    self._news.set()  # the error is told after what came before it
                if parts or self._quiet > 1:
                    self._quiet = 0
                    yield parts
        finally:
            if pinger is not None:
                pinger.cancel()

    async def _ping(self, seconds: float) -> None:
        """Count how long nothing has come, and tell it after one to two times so many seconds."""
        while True:
            await asyncio.sleep(seconds)
            self._quiet += 1
            if self._quiet > 1:
                self.tell()
