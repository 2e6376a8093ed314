"""Many texts through one model at once: whoever calls, they are decoded together.

    next(job), run(texts)      callers, in any threads
         |  one of them at a time is the driver, the others wait for it; no thread of its own
    _step: admit texts to rows -> one forward pass: a piece of each prompt that is not in the cache yet, and the
           newest token of every other text, with guesses of what follows it (prompt_lookup.py)
           -> each samples its next token, and further ones while they were guessed -> updates in the jobs' queues;
           texts with logits processors are sampled by their own callers (handover.py)

Texts join and leave at any step, in order of their arrival when rows are short. A text whose consumer is elsewhere
runs at most AHEAD updates ahead of it; then it pauses, and gives up its row to a text that waits for one. Of a long
list only the texts whose turn comes soon exist: a step costs the same whatever the length of the list.
The driver alone changes rows and cache; it holds Ctrl-C back except where that harms its own caller's texts only.

Used by llama.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Backend, Batch, KVCache
from ..errors import NumericalError, Pyllama2Error
from ..process.forking import renew_after_fork
from ..process.interrupts import Interrupts
from ..sampling.sampler import Draw
from .completion import Completion
from .generation import Generation, Update
from .handover import Handovers
from .job import Job, StepInput, advance, batch_of, settle
from .prefix_cache import MAX_ROWS, PrefixCache

# Texts of one list that are generated or next in turn. While other callers drive, so many more rows may become free
# before this one sees it.
_AT_ONCE = 2 * MAX_ROWS
# Prompt tokens a step; fewer while texts are decoded, which wait for it.
_PROMPT_TOKENS = 512
_PROMPT_TOKENS_BESIDE_OTHERS = 128
# A prompt waits for an earlier one that is just computing the same tokens, if there are this many.
_WORTH_WAITING = 32

_FORKED = "the process was forked while this text took a token; generate it anew"

T = TypeVar("T")


class Scheduler:
    """Drives the texts of one backend. All methods may be called from any thread, close() at any time."""

    def __init__(self, backend: Backend, rows: PrefixCache) -> None:
        self._backend = backend
        self._rows = rows
        self._lock = threading.Lock()  # held for moments only; it guards the next five
        self._driver: int | None = None  # identity of the thread that has the driver's role
        self._waiters: list[threading.Lock] = []
        self._arrivals: list[Job] = []
        self._clock = 0
        self._closed = False
        self._jobs: list[Job] = []  # the driver's, in order of arrival
        self.sampling_s = [0.0, 0.0]  # spent on sampling and text in steps of single tokens, and in others
        self._handovers = Handovers(self._lock, advance, self.sampling_s)
        renew_after_fork(self, Scheduler._renew_in_child)

    def _renew_in_child(self) -> None:
        """Texts that threads of the parent waited for end here; streams go on, and compute their prompts anew.

        Whatever the parent's driver was changing cannot be trusted: the rows, and a text that was just taking a token.
        """
        here = threading.get_ident()
        self._lock = threading.Lock()
        self._waiters = []
        for job in (*self._jobs, *self._arrivals):
            if job.waiting not in (None, here):
                job.cancelled |= job.ahead is None
                job.waiting = None
        for job in self._handovers.renew(self._lock):
            job.error = Pyllama2Error(_FORKED)
        if self._driver in (None, here) and self._backend.survives_fork:
            return  # nobody was in a step; or this thread is in one, and goes on with it
        self._driver = None
        self._rows.close()
        for job in self._jobs:
            job.row = None
            if job.advancing and job.handover is None:
                job.error = Pyllama2Error(_FORKED)

    def next(self, job: Job) -> Update | None:
        """The next update of a text; None after its end. An exception ends it."""
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
        """Generate texts to their ends; they are asked for when their turn comes. An exception of one ends them all."""
        self._check_not_inside([])
        coming = enumerate(texts)
        jobs: dict[int, Job] = {}
        found: dict[int, Completion] = {}
        with Interrupts() as interrupts:
            try:
                while True:
                    jobs.update((i, Job(text, ahead=None)) for i, text in islice(coming, _AT_ONCE - len(jobs)))
                    if not jobs:
                        break
                    for i in self._drive(jobs.values(), lambda: self._ended(jobs), interrupts):
                        found[i] = jobs.pop(i).completion()
            finally:  # also when Ctrl-C comes again
                for job in jobs.values():
                    job.cancelled = True
        return [found[i] for i in range(len(found))]

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes that keys and values take now."""
        cache = self._rows.cache
        return 0 if cache is None else cache.resident_bytes

    @contextmanager
    def rows(self, interrupts: Interrupts) -> Iterator[PrefixCache]:
        """The cache, to oneself between two steps. Raises ValueError when closed.

        interrupts are held back by the caller, who may allow them inside where the cache is only read.
        """
        self._check_not_inside([])
        while not self._become_driver([], interrupts):
            pass
        try:
            if self._closed:
                raise ValueError("this Llama is closed")
            yield self._rows
        finally:
            self._leave()

    def close(self) -> None:
        """End all texts, whose callers get ValueError, and give the memory back after the step that is under way."""
        self._closed = True
        if self._driven_here():
            return  # the end of the step does it
        with Interrupts() as interrupts:
            while not self._become_driver([], interrupts):
                pass
            self._leave()

    def _pop(self, job: Job) -> tuple[Update | None] | None:
        """What next() returns, or None when there is nothing yet."""
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
        """Those of jobs that have ended, None when there are none yet."""
        for job in jobs.values():
            if job.error is not None:
                raise job.error
        ended = [i for i, job in jobs.items() if job.ended]
        if not ended:
            self._check_open()
        return ended or None

    def _driven_here(self) -> bool:
        return self._driver == threading.get_ident()

    def _check_not_inside(self, jobs: Collection[Job]) -> None:
        """Raise ValueError where the calling thread would wait for itself."""
        if self._driven_here():
            raise ValueError("a signal's handler cannot wait for the step of the model that it interrupts")
        if any(handover.sampler == threading.get_ident() for handover in self._handovers.of(jobs)):
            raise ValueError("a logits processor cannot wait for the text that it works for")

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this Llama is closed")

    def _drive(self, jobs: Collection[Job], outcome: Callable[[], T | None], interrupts: Interrupts) -> T:
        """Take part in driving until there is an outcome of these jobs."""
        own = set(map(id, jobs))
        while True:
            self._handovers.sample(own, interrupts)
            interrupts.call_pending()  # before the next update is taken
            with self._lock:
                result = outcome()
            if result is not None:
                return result
            if self._become_driver(jobs, interrupts):
                try:
                    self._step(own, interrupts)
                finally:
                    self._leave()

    def _become_driver(self, jobs: Collection[Job], interrupts: Interrupts) -> bool:
        """Whether this thread is the driver now; if not, another was, and jobs may have got further meanwhile."""
        with self._lock:
            for job in jobs:
                if job.arrival is None:
                    self._clock += 1
                    job.arrival = self._clock
                    self._arrivals.append(job)
            unsampled = self._handovers.of(jobs)
            if any(handover.sampler is None for handover in unsampled):
                return False  # this thread is to sample first
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
        """The driver lets others drive."""
        if self._closed:
            self._jobs.clear()
            self._rows.close()
        with self._lock:
            self._driver = None
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()

    def _step(self, own: Collection[int], interrupts: Interrupts) -> None:
        """Advance all texts that may advance; own are id() of the driving caller's jobs. It alone gets an exception."""
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
        self._admit()
        started = time.perf_counter()
        parts = self._parts()
        if parts:
            assert self._rows.cache is not None
            batch = batch_of(parts)
            with interrupts.allowed():
                results = self._compute(parts, batch, self._rows.cache)
            elapsed = time.perf_counter() - started
            sampling, first = [], 0
            for part in parts:
                last = first + part.n_outputs
                if last > first:
                    sampling.append((part, results[first:last]))
                part.row.ids += part.tokens + part.guesses
                part.job.text.add_time(elapsed)
                first = last
            self._sample(sampling, own, interrupts)
            has_prompt = any(len(part.tokens) > 1 for part in parts)
            self.sampling_s[has_prompt] += time.perf_counter() - started - elapsed
        self._retire()
        if not self._jobs:
            self._rows.trim()

    def _compute(self, parts: Sequence[StepInput], batch: Batch, cache: KVCache) -> NDArray[np.float32] | list[int]:
        """Logits of the batch's outputs (m, vocab_size), or m tokens where all texts leave the choice to the device."""
        draws: list[Draw] = []
        for part in parts:
            if part.n_outputs:
                of_part = part.job.text.draws(part.n_outputs)
                if of_part is None:
                    return self._backend.forward(batch, cache)
                draws += of_part
        tokens = self._backend.sample(batch, cache, draws)
        return self._backend.forward(batch, cache) if tokens is None else tokens.tolist()

    def _sample(
        self,
        sampling: list[tuple[StepInput, NDArray[np.float32] | list[int]]],
        own: Collection[int],
        interrupts: Interrupts,
    ) -> None:
        """Sample the tokens of each text, or leave that to its caller."""
        now = []
        for part, results in sampling:
            if part.job.text.has_processors and not isinstance(results, list):
                self._handovers.give(part, results)
            elif id(part.job) in own:
                now.append((part, results))
            else:
                advance(part, results)
                settle(part)
        # Nothing is left undone now if Ctrl-C raises anywhere below: the caller's texts end with it.
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
        if any(isinstance(job.error, NumericalError) for job in self._jobs):
            self._rows.forget()  # a sequence that was kept, or loaded, may be why
        self._jobs = [job for job in self._jobs if not job.ended]

    def _admit(self) -> None:
        """Give rows to the texts that wait for one, none before an earlier one has its own."""
        for job in self._jobs:
            if not job.wants_row:
                continue
            try:
                if not self._find_room(job):
                    return
                row = self._rows.acquire(job.text.context)
            except Exception as error:
                job.error = error
                continue
            job.row = row
            job.text.add_cached(len(row.ids))

    def _find_room(self, job: Job) -> bool:
        """Whether there is a row for a text, if need be one that a paused text had."""
        while True:
            n_texts = sum(job.row is not None or job.wants_row for job in self._jobs)
            if self._rows.make_room(n_texts, job.text.n_positions):
                return True
            idle = [other for other in self._jobs if other.row is not None and other.may_lose_row]
            if not idle:
                return False
            longest_ago = min(idle, key=lambda other: other.pulled)
            assert longest_ago.row is not None
            self._rows.release(longest_ago.row)
            longest_ago.row = None

    def _parts(self) -> list[StepInput]:
        """What the next step feeds of each text: its newest token, or a part of its prompt if there is room."""
        active = [job for job in self._jobs if job.row is not None and not job.paused and job.handover is None]
        room = _PROMPT_TOKENS_BESIDE_OTHERS if any(job.n_left == 1 for job in active) else _PROMPT_TOKENS
        parts: list[StepInput] = []
        prompts: list[list[int]] = []  # of texts that are computing one, or waiting to
        for job in active:
            row, ids = job.row, job.text.context
            assert row is not None
            if job.n_left > 1:
                job.text.add_cached(self._rows.extend(row, ids))
            start = len(row.ids)
            end = start + 1
            if end < len(ids):
                shared = start + _WORTH_WAITING
                waits = any(len(ids) > shared and ids[:shared] == other[:shared] for other in prompts)
                prompts.append(ids)
                end = start if waits else min(len(ids), start + room)
                room -= end - start
            if end > start:
                parts.append(StepInput(job, row, start, ids[start:end], ids))
        if not prompts:
            for part in parts:
                part.guesses = part.job.text.guess((self._backend.cheap_tokens - len(parts)) // len(parts))
        return parts
