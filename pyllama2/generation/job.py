"""A text in the scheduler, what a step feeds of it, and how it takes the step's results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Backend, Batch
from ..backend.kv_cache import KVCache
from ..sampling.sampler import Draw
from .completion import Completion
from .generation import Generation, Update
from .prefix_cache import CacheRow, common_prefix

# What a step computes for each output: logits (m, vocab_size), or m tokens that the device sampled.
Results = NDArray[np.float32] | list[int]
# Most updates that wait for a text's consumer.
AHEAD = 4


@dataclass
class SamplingTime:
    """Seconds of sampling and text.

    Attributes:
        single: of steps that feed one token of each text.
        prompts: of other steps.
    """

    single: float = 0.0
    prompts: float = 0.0

    def add(self, seconds: float, *, has_prompt: bool) -> None:
        """Count the time of one step."""
        if has_prompt:
            self.prompts += seconds
        else:
            self.single += seconds


class Job:
    """A text in a scheduler.

    Args:
        text: what is generated.
        ahead: the text pauses when this many updates wait for its consumer. None: it never pauses.
    """

    def __init__(self, text: Generation, ahead: int | None = AHEAD) -> None:
        self.text = text
        self.queue: deque[Update] = deque()
        self.row: CacheRow | None = None
        self.in_vain = False  # it wants a row, and there was none when last one became free
        self.error: BaseException | None = None
        self.cancelled = False
        self.arrival: int | None = None  # its place in the order of arrival; None before its first update was asked for
        self.pulled = 0  # the scheduler's clock when an update was last asked for
        self.handover: Handover | None = None  # until it is sampled, the text is in no step
        self.ahead = ahead
        self.advancing = False  # it is taking a token
        # In a Background: when its first update came, and when it was in a step last, by time.monotonic().
        self.first_at: float | None = None
        self.last_at: float | None = None
        # The thread that waits: in run() for its end, in next() for an update.
        self.waiting = threading.get_ident() if ahead is None else None
        update = text.start()
        if update is not None:
            self.queue.append(update)

    @property
    def ended(self) -> bool:
        """Whether no more updates will be made, and all are in the queue."""
        finished = self.text.finish_reason is not None and not self.advancing
        return self.cancelled or self.error is not None or finished

    @property
    def paused(self) -> bool:
        """Whether it must wait until its consumer takes an update."""
        return self.ahead is not None and len(self.queue) >= self.ahead

    @property
    def wants_row(self) -> bool:
        """Whether it waits for a row. A text that lost its row while paused waits until its consumer has caught up."""
        caught_up = self.ahead is None or not self.queue
        return self.row is None and not self.ended and caught_up and self.handover is None

    @property
    def may_lose_row(self) -> bool:
        """Whether a text that waits for a row may have its row."""
        return self.paused or (self.handover is not None and self.handover.stalled)

    @property
    def may_step(self) -> bool:
        """Whether the next step may feed something of it."""
        return self.row is not None and not self.ended and not self.paused and self.handover is None

    @property
    def may_join(self) -> bool:
        """Whether a step that it is not in may be followed by one that it is in."""
        return self.may_step or (self.wants_row and not self.in_vain) or self.handover is not None

    @property
    def surely_goes_on(self) -> bool:
        """Whether it is in the step after the next one, too, unless it is cancelled or its token ends it."""
        waits = self.ahead is not None and len(self.queue) + 1 >= self.ahead
        return not self.ended and not waits and self.text.room_for_guesses > 0

    @property
    def n_left(self) -> int:
        """How many of its tokens the model has not read yet."""
        return 0 if self.row is None else len(self.text.context) - len(self.row.ids)

    def completion(self) -> Completion:
        """Deliver all updates and return the completion."""
        for update in self.queue:
            self.text.deliver(update)
        return self.text.completion()


@dataclass
class StepInput:
    """What a step feeds of a text.

    Attributes:
        job: the text.
        row: where keys and values go.
        start: position of the first token.
        tokens: the tokens to feed.
        context: all tokens of the text that the model is to see.
        guesses: guesses of what follows, if tokens are the last of context.
        drafted: whether a draft made them.
        n_true: how many came true.
    """

    job: Job
    row: CacheRow
    start: int
    tokens: list[int]
    context: list[int]
    guesses: list[int] = field(default_factory=list)
    drafted: bool = False
    n_true: int = 0

    @property
    def n_outputs(self) -> int:
        """How many logits are wanted: after the text's last token, and after each guess."""
        at_end = self.start + len(self.tokens) == len(self.job.text.context)
        return 1 + len(self.guesses) if at_end else 0


@dataclass(eq=False)
class Handover:
    """Logits of one text that its caller is to sample from.

    Attributes:
        part: what was fed.
        logits: (1 + guesses, vocab_size).
        sampler: identity of the thread that samples; None before.
        sampled: whether that is done.
        late: a step was made without the text.
    """

    part: StepInput
    logits: NDArray[np.float32]
    sampler: int | None = None
    sampled: bool = False
    late: bool = False

    @property
    def stalled(self) -> bool:
        """Whether it may take long: its caller does something else, or has not sampled after a while."""
        return self.late or self.part.job.waiting is None


def advance(part: StepInput, results: Results) -> None:
    """Let a text take tokens until one differs from its guess.

    results are logits (1 + guesses, vocab_size), or tokens that the device sampled. An exception ends the text.
    """
    job, text, n_true = part.job, part.job.text, 0
    job.advancing = True
    try:
        for i in range(len(results)):
            job.queue.append(text.advance(results[i]))
            rolled = text.context is not part.context
            if (
                rolled
                or text.finish_reason is not None
                or job.cancelled
                or i == len(part.guesses)
                or text.context[-1] != part.guesses[i]
            ):
                break
            n_true += 1
        part.n_true = n_true
        text.learn(len(part.guesses), n_true, by_draft=part.drafted)
    except BaseException as error:
        job.error = error
    finally:
        job.advancing = False


def settle(part: StepInput) -> None:
    """Remove wrong guesses from the row. If the text has rolled, keep only what its new context begins with."""
    if part.job.row is not part.row:  # another text has it by now
        return
    ids, context = part.row.ids, part.job.text.context
    if context is part.context:
        del ids[max(len(context) - 1, part.start + len(part.tokens)) :]
    else:
        del ids[common_prefix(ids, context, len(context) - 1) :]


def batch_of(parts: Sequence[StepInput]) -> Batch:
    """Make one batch of all inputs."""
    tokens: list[int] = []
    rows: list[int] = []
    positions: list[int] = []
    outputs: list[int] = []
    for part in parts:
        fed = part.tokens + part.guesses
        tokens += fed
        rows += [part.row.index] * len(fed)
        positions += range(part.start, part.start + len(fed))
        outputs += range(len(tokens) - part.n_outputs, len(tokens))
    return Batch(*(np.array(column, np.int32) for column in (tokens, rows, positions, outputs)))


def compute(
    backend: Backend, parts: Sequence[StepInput], batch: Batch, cache: KVCache, following: Sequence[Draw] | None
) -> Results:
    """Logits (m, vocab_size) of the batch's outputs, or m tokens if the device can sample for all texts.

    following: how the next step samples, if it is known, as in Backend.sample().
    """
    draws: list[Draw] = []
    for part in parts:
        if part.n_outputs:
            of_part = part.job.text.draws(part.n_outputs)
            if of_part is None:
                return backend.forward(batch, cache)
            draws += of_part
    tokens = backend.sample(batch, cache, draws, following)
    return backend.forward(batch, cache) if tokens is None else tokens.tolist()


def split_results(parts: Sequence[StepInput], results: Results) -> Iterator[tuple[StepInput, Results]]:
    """Yield the inputs that want results, and their results.

    Args:
        parts: the inputs of one step.
        results: of all outputs of batch_of(parts).
    """
    ends = accumulate(part.n_outputs for part in parts)
    for part, end in zip(parts, ends, strict=True):
        if part.n_outputs:
            yield part, results[end - part.n_outputs : end]
