"""Texts with logits processors: the thread that asked for a text samples it, and no other thread waits for that.

A processor may do anything: take long, use the same model, or wait for another thread that uses it. So the driver of
scheduler.py runs no processor. It hands the logits over, and the text is in no step until its caller has sampled.

    driver: a step of the model -> give()                     -> the next steps, without the text -> collect()
    caller:                        sample(), in its own thread -> updates in the job's queue

A driver waits a moment for texts that are being sampled, since a step of many texts takes hardly longer than of one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from ..process.interrupts import Interrupts
from ..process.locks import Lock
from .job import Handover, Job, SamplingTime, StepInput

# How long a step waits for texts that are being sampled. It never waits twice for the same token.
_PATIENCE_S = 0.01


class Handovers:
    """The handovers of one scheduler. Only its driver calls give(), wait() and collect(), any thread the rest.

    Args:
        lock: the scheduler's lock, which is held only for moments.
        advance: samples the tokens of a StepInput from logits.
        sampling_time: the scheduler's, which is added to.
    """

    def __init__(
        self,
        lock: Lock,
        advance: Callable[[StepInput, NDArray[np.float32]], None],
        sampling_time: SamplingTime,
    ) -> None:
        self._lock = lock
        self._advance = advance
        self._sampling_time = sampling_time
        self._open: list[Handover] = []
        self._waiters: list[threading.Lock] = []

    def give(self, part: StepInput, logits: NDArray[np.float32]) -> None:
        """Hand the logits (1 + guesses, vocab_size) of a step to the text's caller."""
        handover = Handover(part, logits)
        with self._lock:
            self._open.append(handover)
            part.job.handover = handover

    def sample(self, jobs: Collection[int], interrupts: Interrupts) -> None:
        """Sample what was handed over for jobs, given by id(), in the calling thread."""
        while self._open and (handover := self._claim(jobs)) is not None:
            started = time.perf_counter()
            try:
                with interrupts.allowed():
                    self._advance(handover.part, handover.logits)
            finally:
                self._finish(handover, time.perf_counter() - started)

    def of(self, jobs: Collection[Job]) -> list[Handover]:
        """Return the handovers of jobs that have not been sampled."""
        if not self._open:
            return []
        return [job.handover for job in jobs if job.handover is not None and not job.handover.sampled]

    def waiter(self) -> threading.Lock:
        """Return a lock that is held until a text has been sampled. The scheduler's lock must be held."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        return waiter

    def wait(self, interrupts: Interrupts) -> None:
        """Wait a moment for texts that are being sampled, or will be at once."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._open:
            with self._lock:
                missing = [h for h in self._open if not (h.sampled or h.stalled or h.part.job.ended)]
                for handover in missing:  # this thread samples it, which cannot end before this step
                    handover.late = handover.sampler == threading.get_ident()
                if all(handover.late for handover in missing):
                    return
                waiter = self.waiter()
            with interrupts.allowed():
                if waiter.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    continue
            for handover in missing:
                handover.late = True

    def collect(self) -> list[StepInput]:
        """Return the inputs whose texts were sampled since the last call, and may be in a step again."""
        if not self._open:
            return []
        with self._lock:
            closed = [h for h in self._open if h.sampled or h.part.job.ended]
            self._open = [h for h in self._open if h not in closed]
        for handover in closed:
            handover.part.job.handover = None
        return [handover.part for handover in closed if handover.sampled]

    def renew(self) -> list[Job]:
        """Go on in a forked child. Returns the jobs that a lost thread was sampling."""
        self._release_waiters()
        here = threading.get_ident()
        return [h.part.job for h in self._open if h.sampler not in (None, here) and not h.sampled]

    def _claim(self, jobs: Collection[int]) -> Handover | None:
        with self._lock:
            for handover in self._open:
                if handover.sampler is None and id(handover.part.job) in jobs:
                    handover.sampler = threading.get_ident()
                    return handover
        return None

    def _finish(self, handover: Handover, seconds: float) -> None:
        with self._lock:
            handover.sampled = True
            self._sampling_time.add(seconds, has_prompt=len(handover.part.tokens) > 1)
            self._release_waiters()

    def _release_waiters(self) -> None:
        """Have the waiting threads look again. The lock must be held."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()
