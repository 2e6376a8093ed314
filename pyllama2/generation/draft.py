"""Guesses by a draft: a smaller model of the same vocabulary, or the same model in fewer bits.

    guess() -> the tokens that the draft would sample next -> scheduler.py feeds them with each text's newest token
            -> how many came true -> learn()

The output is unchanged. Each token is sampled from logits that the model itself computed for exactly its context. The
draft uses the random numbers that the text is going to use, so that it guesses what sampling would choose.

The number of guesses is the one that makes most tokens a second, from times that were measured and the share of guesses
that came true. A text may lose a few steps to wrong guesses, and must win them back before it guesses again.

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
from ..sampling.sampler import Draw, sampled
from .job import Job, StepInput
from .prefix_cache import CacheRow, PrefixCache, common_prefix

log = logging.getLogger("pyllama2")

_MOST = 8  # guesses at a time
_FEED = 512  # tokens that the draft reads at a time
# Time, in steps of the text without guesses, that it may lose: at the start, more with each token, and the most it may
# save.
_START, _PER_TOKEN, _SAVED = 3.0, 0.01, 8.0
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
        ration: time that it may lose, in steps.
    """

    row: CacheRow | None
    true_share: float
    ration: float = _START


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

    def guess(self, parts: Sequence[StepInput], most: int) -> None:
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
        self._states: dict[Job, DraftState] = {}
        self._broken = False

    def guess(self, parts: Sequence[StepInput], most: int) -> None:
        """Give guesses to the texts that have none.

        Args:
            parts: what the next step feeds: the newest token of each text.
            most: guesses of each text that a step may have.
        """
        if self._broken or not parts:
            return
        wanted = [(part, n) for part in parts if not part.guesses and (n := self._number(part, len(parts), most))]
        if not wanted:
            return
        try:
            self._guess([part for part, _ in wanted], [n for _, n in wanted])
        except (Pyllama2Error, MemoryError) as error:
            log.warning("the draft is left out from now on: %s", error)
            self._broken = True
            for part, _ in wanted:
                part.guesses = []

    def learn(self, parts: Sequence[StepInput], seconds: float) -> None:
        """Learn how long a step of the model without prompts took, and how many guesses came true."""
        n_tokens = sum(1 + len(part.guesses) for part in parts)
        self._times.add_model(n_tokens, seconds)
        plain = self._times.of_model(len(parts))
        for part in parts:
            state = self._states.get(part.job)
            if state is None:
                continue
            state.ration += _PER_TOKEN
            if part.drafted:
                for i in range(min(len(part.guesses), part.n_true + 1)):  # those after a wrong one say nothing
                    true = float(i < part.n_true)
                    state.true_share += _NEW * (true - state.true_share)
                    self._true_share += _NEW / 4 * (true - self._true_share)
                longer = self._times.of_model(n_tokens) - plain + len(part.guesses) * self._times.of_draft(len(parts))
                state.ration += part.n_true * (1 + _PER_TOKEN) - max(0.0, longer / plain)
            state.ration = min(_SAVED, state.ration)

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
        state = self._states.setdefault(part.job, DraftState(None, self._true_share))
        n_read = 0 if state.row is None else len(state.row.ids)
        if len(part.context) - n_read > _WORTH_READING * text.room_for_guesses:
            return 0
        best, best_rate, tokens, likely = 0, 1 / plain, 1.0, 1.0
        for n in range(1, most + 1):
            likely *= state.true_share
            tokens += likely
            seconds = times.of_model(n_texts * (n + 1)) + n * times.of_draft(n_texts)
            if tokens / seconds > best_rate and seconds - plain <= state.ration * plain:
                best, best_rate = n, tokens / seconds
        return best if best and text.draws(best) is not None else 0

    def _guess(self, parts: list[StepInput], numbers: list[int]) -> None:
        """Run the draft, for all texts together, one token after the other."""
        rows, news = [], []
        for part in parts:
            row = self._row(part.job, len(parts))
            del row.ids[common_prefix(row.ids, part.context, len(part.context) - 1) :]
            rows.append(row)
            news.append(self._read(row, part.context[len(row.ids) :]))
        draws = [part.job.text.draws(n) or [] for part, n in zip(parts, numbers, strict=True)]
        active = list(range(len(parts)))
        for i in range(max(numbers)):
            before = time.perf_counter()
            tokens = self._step([rows[j] for j in active], [news[j] for j in active], [draws[j][i] for j in active])
            if all(len(news[j]) == 1 for j in active):
                self._times.add_draft(len(active), time.perf_counter() - before)
            going_on = []
            for j, token in zip(active, tokens, strict=True):
                if token < 0:  # its logits are not finite
                    continue
                parts[j].guesses.append(token)
                news[j] = [token]
                if i + 1 < numbers[j] and not parts[j].job.text.would_end(token):
                    going_on.append(j)
            active = going_on
            if not active:
                break
        for part in parts:
            part.drafted = bool(part.guesses)

    def _row(self, job: Job, n_texts: int) -> CacheRow:
        """The text's row in the draft's cache, long enough for it."""
        state = self._states[job]
        if state.row is None:
            if not self._rows.provide_row(n_texts, min(self._n_ctx, job.text.n_positions)):
                raise MemoryError("there is no room for its cache")
            state.row = self._rows.acquire(job.text.context)
        return state.row

    def _read(self, row: CacheRow, new: list[int]) -> list[int]:
        """Feed new tokens but the last few. Returns those, at least one."""
        assert self._rows.cache is not None
        while len(new) > _MOST + 1:
            head, new = new[: min(_FEED, len(new) - 1)], new[min(_FEED, len(new) - 1) :]
            self.backend.forward(_batch([row], [head], wants_last=False), self._rows.cache)
            row.ids += head
        return new

    def _step(self, rows: list[CacheRow], news: list[list[int]], draws: list[Draw]) -> list[int]:
        """Feed new tokens of each text, and sample what follows the last."""
        cache = self._rows.cache
        assert cache is not None
        batch = _batch(rows, news, wants_last=True)
        found = self.backend.sample(batch, cache, draws)
        if found is None:
            logits = self.backend.forward(batch, cache)
            tokens = [sampled(row, draw) for row, draw in zip(logits, draws, strict=True)]
        else:
            tokens = found.tolist()
        for row, new in zip(rows, news, strict=True):
            row.ids += new
        return tokens


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
