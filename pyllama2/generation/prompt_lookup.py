"""Guesses of a text's next tokens: what followed the last time that its newest tokens appeared, in the prompt or since.

    guess() -> tokens that scheduler.py feeds with the newest one -> how many came true -> learn()

A text says the same with guesses as without: each token is sampled from logits that were computed for exactly its
context, and a guess only decides whether they are at hand already. What it costs is the time of wrong guesses, so they
are rationed: a text may lose a few steps' worth, and win those back before it guesses again.

Known as prompt lookup decoding; the verification in one forward pass is that of arXiv:2211.17192.
"""

from __future__ import annotations

from collections.abc import Sequence

# Newest tokens that must have appeared before, in this order.
_MATCH = 3
# Guesses at a time: at first, and at most.
_FIRST, _MOST = 3, 11
# Time that one more token takes in a pass of a single one, as a part of that pass; what the ration reckons with.
_COST = 0.3
# Passes that a text may lose to wrong guesses: from the start, with each token, and at most what it may lay by.
_START, _PER_TOKEN, _SAVED = 1.5, 0.01, 6.0


class PromptLookup:
    """The guesses of one text. ids are its tokens, prompt and generated, which the caller appends to."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._after: dict[tuple[int, ...], int] = {}  # _MATCH tokens -> where their last appearance ended
        self._indexed = _MATCH  # the first end that is not in it yet
        self._length = _FIRST
        self._ration = _START

    def guess(self, most: int) -> list[int]:
        """Up to most tokens that may come next."""
        ids = self._ids
        for end in range(self._indexed, len(ids)):  # not the newest tokens themselves
            self._after[tuple(ids[end - _MATCH : end])] = end
        self._indexed = max(self._indexed, len(ids))
        at = self._after.get(tuple(ids[-_MATCH:]))
        n = min(most, self._length, int(self._ration / _COST))
        return [] if at is None or n <= 0 else list(ids[at : at + n])

    def learn(self, n_guessed: int, n_true: int) -> None:
        """Of the last n_guessed guesses, n_true came true before the first wrong one."""
        self._ration = min(_SAVED, self._ration + _PER_TOKEN * (n_true + 1) + n_true - _COST * n_guessed)
        if n_guessed:
            self._length = min(_MOST, 2 * n_guessed) if n_true == n_guessed else max(_FIRST, n_true + 1)
