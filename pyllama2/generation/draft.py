"""Guesses by a draft: a smaller model of the same vocabulary, or the same model in fewer bits.

    guess() -> the tokens that the draft would sample next -> scheduler.py feeds them with each text's newest token
            -> how many came true -> learn()

The output is unchanged. Each token is sampled from logits that the model itself computed for exactly its context. The
draft uses the random numbers that the text is going to use, so that it guesses what sampling would choose.

The number of guesses is the one that makes most tokens a second, from times that were measured and the share of guesses
that came true. A few steps may be lost to wrong guesses, and must be won back before there are others.

Speculative decoding is from arXiv:2211.17192; there, tokens are accepted at random by the ratio of both models'
probabilities. Here they must be equal, so that a text is the same with a draft and without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..backend.base import Backend, Batch
from ..errors import Pyllama2Error
from ..memory import rows_that_fit
from ..process.interrupts import Interrupts
from ..sampling.sampler import Draw, sampled
from .job import Job, StepInput
from .prefix_cache import CacheRow, PrefixCache, common_prefix

log = logging.getLogger("pyllama2")

_MOST = 8  # guesses at a time
_UNREAD = 16  # tokens that the draft reads together with guessing; what is more, it reads in pieces, one for each step
_PIECE, _PIECE_BESIDE_OTHERS = 512, 128
# Time, in steps without guesses, that all texts together may lose: at the start, more with each step, and the most that
# may be saved.
_START, _PER_STEP, _SAVED = 3.0, 0.01, 8.0
_NEW = 0.1  # weight of a new measurement in a mean
_PRIOR = 0.6  # share of guesses that come true, before any did
_WORTH_READING = 4  # tokens that the draft may have to read first, for each token that the text may have
_COLUMN = 0.15  # time of one more token in a step, as a share of a step's, before it was measured


@dataclass
class DraftState:
    """What the draft knows of one text.

    Attributes:
        row: its row in the draft's cache; None before the first guess.
        true_share: of the guesses, those that came true, newer ones weighing more.
    """

    row: CacheRow | None
    true_share: float


class StepTimes:
    """Mean times of steps: of the model by their number of tokens, of the draft by their number of texts."""

    def __init__(self) -> None:
        self._model: dict[int, float] = {}
        self._draft: dict[int, float] = {}

    def add_model(self, n_tokens: int, seconds: float) -> None:
        """Take the time of a step of the model without prompts. Other times change with it, as the context grows."""
        old, seconds = self._model.get(n_tokens), max(seconds, 1e-9)
        if old is not None:
            seconds = min(seconds, 3 * old)  # something else had the processor
            change = 1 + _NEW * (seconds / old - 1) / 2
            self._model = {n: other * change for n, other in self._model.items()}
            self._model[n_tokens] = old
        _mix(self._model, n_tokens, seconds)

    def add_draft(self, n_texts: int, seconds: float) -> None:
        """Take the time of a step of the draft that reads one token of each text."""
        _mix(self._draft, n_texts, seconds)

    def of_model(self, n_tokens: int) -> float:
        """Return the time of a step of the model: measured, or from the nearest that were. 0 before any was."""
        known = self._model
        if n_tokens in known or not known:
            return known.get(n_tokens, 0.0)
        below = max((n for n in known if n < n_tokens), default=None)
        above = min((n for n in known if n > n_tokens), default=None)
        if below is not None and above is not None:
            part = (n_tokens - below) / (above - below)
            return known[below] + part * (known[above] - known[below])
        nearest = below if below is not None else above
        assert nearest is not None
        return known[nearest] * (1 + _COLUMN * n_tokens) / (1 + _COLUMN * nearest)

    def of_draft(self, n_texts: int) -> float:
        """Return the time of a step of the draft; before any was measured, a third of the model's."""
        if not self._draft:
            return self.of_model(n_texts) / 3
        nearest = min(self._draft, key=lambda n: abs(n - n_texts))
        return self._draft[nearest]


class NoDraft:
    """What a scheduler has without a draft: it guesses nothing."""

    def guess(self, parts: Sequence[StepInput], most: int, interrupts: Interrupts) -> None:
        """Guess nothing."""

    def learn(self, parts: Sequence[StepInput], seconds: float) -> None:
        """Learn nothing."""

    def release(self, job: Job) -> None:
        """Nothing is kept."""

    def trim(self) -> None:
        """Nothing is kept."""

    def forget(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""


class DraftModel(NoDraft):
    """The draft of one scheduler. Only its driver may use it.

    Args:
        backend: what runs the draft.
        n_ctx: longest sequence in tokens. Longer texts get no guesses.
    """

    def __init__(self, backend: Backend, n_ctx: int) -> None:
        self.backend = backend
        self._n_ctx = n_ctx
        self._rows = PrefixCache(
            backend.new_cache, partial(rows_that_fit, backend), n_ctx, partial(backend.kv_cache_bytes, 1)
        )
        self._times = StepTimes()
        self._true_share = _PRIOR  # of all texts
        self._ration = _START  # time that may be lost, in steps
        self._states: dict[Job, DraftState] = {}
        self._broken = False

    def guess(self, parts: Sequence[StepInput], most: int, interrupts: Interrupts) -> None:
        """Give guesses to the texts that have none.

        Args:
            parts: what the next step feeds: the newest token of each text.
            most: guesses of each text that a step may have.
            interrupts: those of the driver, which are allowed while the draft computes.
        """
        if self._broken or not parts:
            return
        wanted = [(part, n) for part in parts if not part.guesses and (n := self._number(part, len(parts), most))]
        if not wanted:
            return
        try:
            self._guess([part for part, _ in wanted], [n for _, n in wanted], interrupts)
        except (Pyllama2Error, MemoryError) as error:
            log.warning("the draft is left out from now on: %s", error)
            self._broken = True
            self.forget()
            for part, _ in wanted:
                part.guesses = []

    def learn(self, parts: Sequence[StepInput], seconds: float) -> None:
        """Learn how long a step of the model without prompts took, and how many guesses came true."""
        n_tokens = sum(1 + len(part.guesses) for part in parts)
        self._times.add_model(n_tokens, seconds)
        plain = self._times.of_model(len(parts))
        drafted = [part for part in parts if part.drafted]
        for part in drafted:
            state = self._states[part.job]
            for i in range(min(len(part.guesses), part.n_true + 1)):  # those after a wrong one say nothing
                true = float(i < part.n_true)
                state.true_share += _NEW * (true - state.true_share)
                self._true_share += _NEW / 4 * (true - self._true_share)
        gain = sum(part.n_true for part in drafted) / len(parts)
        n_steps = max((len(part.guesses) for part in drafted), default=0)
        longer = self._times.of_model(n_tokens) - plain + n_steps * self._times.of_draft(len(parts)) if drafted else 0.0
        self._ration = min(_SAVED, self._ration + _PER_STEP * (1 + gain) + gain - max(0.0, longer / plain))

    def release(self, job: Job) -> None:
        """Give up what is kept for a text that has ended."""
        state = self._states.pop(job, None)
        if state is not None and state.row is not None:
            self._rows.release(state.row)

    def trim(self) -> None:
        """Give back memory while nothing is generated."""
        self._rows.trim()

    def forget(self) -> None:
        """Drop the cache, and what is known of all texts."""
        self._states.clear()
        self._rows.close()

    def close(self) -> None:
        """Give the memory back."""
        self.forget()
        self.backend.close()

    def _number(self, part: StepInput, n_texts: int, most: int) -> int:
        """How many guesses of a text pay."""
        text, times = part.job.text, self._times
        most = min(most, _MOST, text.room_for_guesses, self._n_ctx - len(part.context))
        plain = times.of_model(n_texts)
        if most <= 0 or plain == 0:  # the first step of all is measured without guesses
            return 0
        state = self._states.get(part.job)
        if state is None:
            self._true_share += _NEW * (_PRIOR - self._true_share)  # so that after bad texts it is tried again
            state = self._states[part.job] = DraftState(None, self._true_share)
        n_read = 0 if state.row is None else len(state.row.ids)
        if len(part.context) - n_read > _WORTH_READING * text.room_for_guesses:
            return 0
        best, best_rate, tokens, likely = 0, 1 / plain, 1.0, 1.0
        for n in range(1, most + 1):
            likely *= state.true_share
            tokens += likely
            seconds = times.of_model(n_texts * (n + 1)) + n * times.of_draft(n_texts)
            if tokens / seconds > best_rate and seconds - plain <= self._ration * plain:
                best, best_rate = n, tokens / seconds
        return best if best and text.draws(best) is not None else 0

    def _guess(self, parts: list[StepInput], numbers: list[int], interrupts: Interrupts) -> None:
        """Run the draft, for all texts together, one token after the other."""
        rows, draws, guessing = [], [], []
        for part, n in zip(parts, numbers, strict=True):
            row = self._row(part.job, parts)
            if row is not None:
                del row.ids[common_prefix(row.ids, part.context, len(part.context) - 1) :]
                rows.append(row)
                draws.append(part.job.text.draws(n) or [])
                guessing.append(part)
        self._read(guessing, rows, interrupts)
        active = [i for i, row in enumerate(rows) if len(guessing[i].context) - len(row.ids) <= _UNREAD]
        news = [part.context[len(row.ids) :] for part, row in zip(guessing, rows, strict=True)]
        n_done = 0
        while active:
            before = time.perf_counter()
            tokens = self._step(
                [rows[i] for i in active], [news[i] for i in active], [draws[i][n_done] for i in active], interrupts
            )
            if all(len(news[i]) == 1 for i in active):
                self._times.add_draft(len(active), time.perf_counter() - before)
            n_done += 1
            going_on = []
            for i, token in zip(active, tokens, strict=True):
                if token < 0:  # its logits are not finite
                    continue
                part, news[i] = guessing[i], [token]
                part.guesses.append(token)
                part.drafted = True
                if n_done < len(draws[i]) and not part.job.text.would_end(token):
                    going_on.append(i)
            active = going_on

    def _row(self, job: Job, parts: list[StepInput]) -> CacheRow | None:
        """The row of a text in the draft's cache, if necessary one of a text that is not among parts; None without."""
        state = self._states[job]
        if state.row is None:
            jobs = {part.job for part in parts}
            while not self._rows.provide_row(len(self._states), min(self._n_ctx, job.text.n_positions)):
                idle = next((s for j, s in self._states.items() if s.row is not None and j not in jobs), None)
                if idle is None or idle.row is None:
                    return None
                self._rows.release(idle.row)
                idle.row = None
            state.row = self._rows.acquire(job.text.context)
        return state.row

    def _read(self, parts: list[StepInput], rows: list[CacheRow], interrupts: Interrupts) -> None:
        """Feed a piece of the first text that has more to read than a few tokens; the others wait for later steps."""
        cache = self._rows.cache
        for part, row in zip(parts, rows, strict=True):
            new = part.context[len(row.ids) : -1]
            if len(new) >= _UNREAD and cache is not None:
                piece = new[: _PIECE if len(parts) == 1 else _PIECE_BESIDE_OTHERS]
                with interrupts.allowed():
                    self.backend.forward(_batch([row], [piece], wants_last=False), cache)
                row.ids += piece
                return

    def _step(
        self, rows: list[CacheRow], news: list[list[int]], draws: list[Draw], interrupts: Interrupts
    ) -> list[int]:
        """Feed new tokens of each text, and sample what follows the last."""
        cache = self._rows.cache
        assert cache is not None
        batch = _batch(rows, news, wants_last=True)
        with interrupts.allowed():
            found = self.backend.sample(batch, cache, draws)
            logits = self.backend.forward(batch, cache) if found is None else None
        for row, new in zip(rows, news, strict=True):
            row.ids += new
        if logits is None:
            assert found is not None
            return [int(token) for token in found]
        return [sampled(row, draw) for row, draw in zip(logits, draws, strict=True)]


def _batch(rows: list[CacheRow], news: list[list[int]], *, wants_last: bool) -> Batch:
    """New tokens of each row behind those that it has."""
    tokens = [token for new in news for token in new]
    indices = [row.index for row, new in zip(rows, news, strict=True) for _ in new]
    positions = [len(row.ids) + i for row, new in zip(rows, news, strict=True) for i in range(len(new))]
    lasts = np.cumsum([len(new) for new in news]) - 1 if wants_last else np.empty(0)
    return Batch(*(np.asarray(column, np.int32) for column in (tokens, indices, positions, lasts)))


def _mix(means: dict[int, float], key: int, value: float) -> None:
    old = means.get(key)
    means[key] = value if old is None else old + _NEW * (value - old)
