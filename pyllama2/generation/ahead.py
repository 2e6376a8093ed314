"""The step that a device begins before the texts have the tokens of the step before it.

    compute() -> Backend.sample(..., following) -> texts take their tokens, while the device goes on
    parts()   -> what that step feeds of the texts that go on; what it computed of others is left

What will be fed is known beforehand only while texts are decoded one token at a time, and sampled by the device. So a
text that may guess, and one that waits to join, end it. Nothing of it is noted in the rows: a text that ends, or is
cancelled, never had the token that was computed too much, and its random number is still the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backend.base import Backend, Batch
from ..backend.kv_cache import KVCache
from ..sampling.sampler import Draw
from .feeding import cheap_guesses
from .job import Job, Results, StepInput, compute


class StepAhead:
    """The step ahead of one scheduler, whose driver alone calls it.

    Args:
        backend: what computes.
        wanted: whether steps may be begun, if the backend can do it.
    """

    def __init__(self, backend: Backend, *, wanted: bool) -> None:
        self._backend = backend
        self._wanted = wanted and backend.goes_ahead
        self._begun: list[StepInput] = []  # what the step before it fed
        self._has_shrunk = False  # parts() gave fewer: the device has no step that goes on with these alone

    def compute(self, parts: Sequence[StepInput], batch: Batch, cache: KVCache, jobs: Sequence[Job]) -> Results:
        """Compute a step, and have the next one begun if all that it will feed are the tokens of this one.

        Args:
            parts: what the step feeds.
            batch: the same as a batch.
            cache: the cache of their rows.
            jobs: all texts, also those that wait.
        """
        following = self._following(parts, jobs) if self._wanted else None
        results = compute(self._backend, parts, batch, cache, following)
        self._begun = list(parts) if following and isinstance(results, list) else []
        return results

    def parts(self) -> list[StepInput]:
        """Return what the step that was begun feeds of the texts that go on, without guesses; nothing if none was."""
        begun, self._begun = self._begun, []
        going_on = [
            StepInput(part.job, part.row, len(part.row.ids), part.context[-1:], part.context)
            for part in begun
            if part.job.row is part.row
            and part.job.may_step
            and part.job.text.context is part.context
            and part.job.n_left == 1
        ]
        self._has_shrunk = len(going_on) < len(begun)
        return going_on

    def forget(self) -> None:
        """Forget what was begun: it is not asked for any more."""
        self._begun = []

    def _following(self, parts: Sequence[StepInput], jobs: Sequence[Job]) -> list[Draw] | None:
        """How the step after parts samples; None if it may feed anything but the tokens that these get."""
        fed = {part.job for part in parts}
        if self._has_shrunk or any(job.may_join for job in jobs if job not in fed):
            return None
        draws: list[Draw] = []
        for part in parts:
            text = part.job.text
            next_two = text.draws(2) if len(part.tokens) == part.n_outputs == 1 and part.job.surely_goes_on else None
            if next_two is None or text.guess(cheap_guesses(self._backend, len(parts))):
                return None
            draws.append(next_two[1])
        return draws
