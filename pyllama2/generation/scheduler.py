"""Many texts through one model: texts of all callers are decoded together.

    next(job), run(texts)      callers, in any threads
         |  one caller at a time is the driver, the others wait for it; there is no separate thread
    _step: admit texts to rows -> one forward pass: a part of each prompt that is not in the cache yet, and the newest
           token of every other text, with guesses of what follows it (prompt_lookup.py)
           -> each text samples its next token, and more while guesses were right -> updates in the jobs' queues;
           texts with logits processors are sampled by their own callers (handover.py)
           a device may compute the next step meanwhile, which is taken before anything else is begun (ahead.py)

Texts join and leave at any step, in order of arrival when there are too few rows. A text runs at most AHEAD updates
ahead of its consumer. Then it pauses, and gives up its row if another text waits for one. Of a long list, only the
texts that come next exist, so the cost of a step does not depend on the length of the list.
Only the driver changes rows and cache. It delays Ctrl-C, except where that can harm only its own caller's texts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from ..backend.base import AMID_A_STEP, Backend
from ..errors import ClosedError, NumericalError, Pyllama2Error
from ..process.forking import renew_after_fork
from ..process.interrupts import Interrupts
from ..process.locks import Lock
from .ahead import StepAhead
from .completion import Completion
from .draft import DraftModel, NoDraft
from .feeding import cheap_guesses, parts_of
from .generation import Generation, Update
from .handover import Handovers
from .job import Job, Results, SamplingTime, StepInput, advance, batch_of, settle, split_results
from .prefix_cache import MAX_ROWS, PrefixCache

# Texts of one list that exist at a time: those in rows, and as many that come next, since rows may become free while
# another caller drives.
_AT_ONCE = 2 * MAX_ROWS
_FORKED = "the process was forked while this text took a token; generate it anew"

T = TypeVar("T")


class Scheduler:
    """Runs the texts of one backend. All methods may be called from any thread, close() at any time.

    Args:
        backend: what computes logits.
        rows: its cache.
        draft: what guesses tokens (draft.py); None: nothing does but the texts themselves.

    Attributes:
        sampling_time: seconds of sampling and text.
    """

    def __init__(self, backend: Backend, rows: PrefixCache, draft: DraftModel | None = None) -> None:
        self._backend = backend
        self._rows = rows
        self._draft = NoDraft() if draft is None else draft
        self._lock = Lock()  # held only for moments; it guards the next five
        self._driver: int | None = None  # identity of the thread that is the driver
        self._waiters: list[threading.Lock] = []
        self._arrivals: list[Job] = []
        self._clock = 0
        self._closed = False
        self._jobs: list[Job] = []  # only the driver uses it; in order of arrival
        self.sampling_time = SamplingTime()
        self._handovers = Handovers(self._lock, advance, self.sampling_time)
        self._ahead = StepAhead(backend, wanted=draft is None)
        renew_after_fork(self, Scheduler._renew_in_child)

    def _renew_in_child(self) -> None:
        """End texts that threads of the parent waited for. Streams go on, and compute their prompts anew.

        What the parent's driver was changing cannot be trusted: the rows, and a text that was taking a token.
        """
        here = threading.get_ident()
        self._release_waiters()
        for job in (*self._jobs, *self._arrivals):
            if job.waiting not in (None, here):
                job.cancelled |= job.ahead is None
                job.waiting = None
        for job in self._handovers.renew():
            job.error = Pyllama2Error(_FORKED)
        if self._driver in (None, here) and self._backend.survives_fork:
            return  # no thread was in a step, or this one is and goes on with it
        self._driver = None
        self._rows.close()
        self._draft.forget()
        self._ahead.forget()
        for job in self._jobs:
            job.row = None
            if job.advancing and job.handover is None:
                job.error = Pyllama2Error(_FORKED)

    def next(self, job: Job) -> Update | None:
        """Return the next update of a text; None after its end. An exception ends the text."""
        self._check_not_inside([job])
        job.waiting = threading.get_ident()
        try:
            with Interrupts() as interrupts:
                job.pulled = self._clock
                return self._drive([job], lambda: self._pop(job), interrupts)[0]
        except BaseException:
            job.cancelled = True
            raise
        finally:
            job.waiting = None

    def run(self, texts: Iterable[Generation]) -> list[Completion]:
        """Generate texts to their ends. An exception in one ends them all.

        Args:
            texts: each is taken from it when its turn comes.

        Returns:
            Completions in the order of texts.
        """
        self._check_not_inside([])
        coming = enumerate(texts)
        jobs: dict[int, Job] = {}
        completions: dict[int, Completion] = {}
        with Interrupts() as interrupts:
            try:
                while True:
                    jobs.update((i, Job(text, ahead=None)) for i, text in islice(coming, _AT_ONCE - len(jobs)))
                    if not jobs:
                        break
                    for i in self._drive(jobs.values(), lambda: self._ended(jobs), interrupts):
                        completions[i] = jobs.pop(i).completion()
            finally:  # even when Ctrl-C comes again
                for job in jobs.values():
                    job.cancelled = True
        return [completions[i] for i in range(len(completions))]

    def step(self, jobs: Collection[Job]) -> None:
        """Drive a step of the model with jobs, or wait for one. Rows of texts that have ended become free."""
        self._check_open()
        with Interrupts() as interrupts:
            own = set(map(id, jobs))
            self._handovers.sample(own, interrupts)
            self._step_or_wait(jobs, own, interrupts)

    @contextmanager
    def rows(self, interrupts: Interrupts) -> Iterator[PrefixCache]:
        """A block between two steps in which no other thread uses the cache. Raises ClosedError when closed.

        interrupts are those of the caller, who may allow them in the block while it only reads the cache.
        """
        self._check_not_inside([])
        while not self._become_driver([], interrupts):
            pass
        try:
            self._check_open()
            yield self._rows
        finally:
            self._leave()

    def close(self) -> None:
        """End all texts and give the memory back after the current step. Callers that wait get ClosedError."""
        self._closed = True
        if self._driver == threading.get_ident():
            return  # the end of the step does it
        with Interrupts() as interrupts:
            while not self._become_driver([], interrupts):
                pass
            self._leave()

    def _pop(self, job: Job) -> tuple[Update | None] | None:
        """A tuple of what next() returns, or None while there is nothing."""
        if not job.ended:
            self._check_open()
        if job.queue and not job.cancelled:
            update = job.queue.popleft()
            job.text.deliver(update)
            return (update,)
        if job.error is not None and not job.cancelled:
            raise job.error
        return (None,) if job.ended else None

    def _ended(self, jobs: dict[int, Job]) -> list[int] | None:
        """Indices of the jobs that have ended; None while there are none."""
        for job in jobs.values():
            if job.error is not None:
                raise job.error
        ended = [i for i, job in jobs.items() if job.ended]
        if not ended:
            self._check_open()
        return ended or None

    def _check_not_inside(self, jobs: Collection[Job]) -> None:
        """Raise ValueError if the calling thread would wait for itself."""
        if self._driver == threading.get_ident():
            raise ValueError(AMID_A_STEP)
        if any(handover.sampler == threading.get_ident() for handover in self._handovers.of(jobs)):
            raise ValueError("a logits processor cannot wait for the text that it works for")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Llama is closed")

    def _drive(self, jobs: Collection[Job], outcome: Callable[[], T | None], interrupts: Interrupts) -> T:
        """Drive, or wait for the driver, until there is an outcome of these jobs."""
        own = set(map(id, jobs))
        while True:
            self._handovers.sample(own, interrupts)
            interrupts.call_pending()  # before it takes the next update
            with self._lock:
                result = outcome()
            if result is not None:
                return result
            self._step_or_wait(jobs, own, interrupts)

    def _step_or_wait(self, jobs: Collection[Job], own: Collection[int], interrupts: Interrupts) -> None:
        if self._become_driver(jobs, interrupts):
            try:
                self._step(own, interrupts)
            finally:
                self._leave()

    def _become_driver(self, jobs: Collection[Job], interrupts: Interrupts) -> bool:
        """Become the driver, or wait for the driver's step. Returns whether this thread is the driver now."""
        with self._lock:
            for job in jobs:
                if job.arrival is None:
                    self._clock += 1
                    job.arrival = self._clock
                    self._arrivals.append(job)
            unsampled = self._handovers.of(jobs)
            if any(handover.sampler is None for handover in unsampled):
                return False  # this thread must sample first
            waiter = self._handovers.waiter() if unsampled else None
            if waiter is None and self._driver is None:
                self._driver = threading.get_ident()
                return True
            if waiter is None:
                waiter = threading.Lock()
                waiter.acquire()
                self._waiters.append(waiter)
        with interrupts.allowed():
            waiter.acquire()
        return False

    def _leave(self) -> None:
        """Stop being the driver."""
        if self._closed:
            self._jobs.clear()
            self._rows.close()
            self._draft.close()
            self._ahead.forget()
        with self._lock:
            self._driver = None
            self._release_waiters()

    def _release_waiters(self) -> None:
        """Have the waiting threads look again. The lock must be held."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()

    def _step(self, own: Collection[int], interrupts: Interrupts) -> None:
        """Advance all texts that can advance. own are id() of the driver's jobs. An exception is raised only here."""
        self._handovers.wait(interrupts)
        if self._closed:
            return
        for part in self._handovers.collect():
            settle(part)
        with self._lock:
            self._jobs += self._arrivals
            self._arrivals.clear()
            self._clock += 1
        self._retire()
        parts = self._ahead.parts()
        if not parts:
            self._admit()
        started = time.perf_counter()
        parts = parts or parts_of(self._jobs, self._rows, self._backend)
        if parts:
            assert self._rows.cache is not None
            has_prompt = any(len(part.tokens) > 1 for part in parts)
            decodes = all(len(part.tokens) == 1 and part.n_outputs for part in parts)
            if decodes:
                self._draft.guess(parts, cheap_guesses(self._backend, len(parts)), interrupts)
            batch = batch_of(parts)
            computing = time.perf_counter()
            with interrupts.allowed():
                results = self._ahead.compute(parts, batch, self._rows.cache, self._jobs)
            now = time.perf_counter()
            elapsed, computed = now - started, now - computing
            sampling = list(split_results(parts, results))
            for part in parts:
                part.row.ids += part.tokens + part.guesses
                part.job.text.add_time(elapsed)
            self._sample(sampling, own, interrupts)
            if decodes:
                self._draft.learn(parts, computed)
            self.sampling_time.add(time.perf_counter() - started - elapsed, has_prompt=has_prompt)
        self._retire()
        if not self._jobs:
            self._rows.trim()
            self._draft.trim()
            self._ahead.forget()

    def _sample(
        self,
        sampling: list[tuple[StepInput, Results]],
        own: Collection[int],
        interrupts: Interrupts,
    ) -> None:
        """Sample the tokens of each text, or hand its logits to its caller."""
        now = []
        for part, results in sampling:
            if part.job.text.has_processors and not isinstance(results, list):
                self._handovers.give(part, results)
            elif id(part.job) in own:
                now.append((part, results))
            else:
                advance(part, results)
                settle(part)
        # Ctrl-C may raise anywhere below: all other texts are done, and the caller's own end with it.
        with interrupts.allowed():
            for part, results in now:
                advance(part, results)
                settle(part)

    def _retire(self) -> None:
        """Free the rows of texts that have ended."""
        for job in self._jobs:
            if job.ended and job.row is not None:
                self._rows.release(job.row)
                job.row = None
                for other in self._jobs:
                    other.in_vain = False
            if job.ended:
                self._draft.release(job)
        if any(isinstance(job.error, NumericalError) for job in self._jobs):
            self._rows.forget()  # a kept or loaded sequence may be the cause
        self._jobs = [job for job in self._jobs if not job.ended]

    def _admit(self) -> None:
        """Give rows to the texts that wait for one, in order of arrival."""
        waiting = [job for job in self._jobs if job.wants_row]
        for i, job in enumerate(waiting):
            try:
                if not self._provide_row(job):
                    for other in waiting[i:]:
                        other.in_vain = True
                    return
                row = self._rows.acquire(job.text.context)
            except Exception as error:
                job.error = error
                continue
            job.row = row
            job.text.add_cached(len(row.ids))

    def _provide_row(self, job: Job) -> bool:
        """Provide a free row for a text, if necessary that of a paused text. Returns whether there is one."""
        while True:
            n_texts = sum(job.row is not None or job.wants_row for job in self._jobs)
            if self._rows.provide_row(n_texts, job.text.n_positions):
                return True
            idle = [other for other in self._jobs if other.row is not None and other.may_lose_row]
            if not idle:
                return False
            longest_ago = min(idle, key=lambda other: other.pulled)
            assert longest_ago.row is not None
            self._rows.release(longest_ago.row)
            longest_ago.row = None
