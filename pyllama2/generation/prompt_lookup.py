"""Guesses of a text's next tokens: what followed when its newest tokens last appeared, in the prompt or since.

    guess() -> tokens that scheduler.py feeds with the newest one -> how many came true -> learn()

The output is unchanged. Each token is sampled from logits that were computed for exactly its context; a guess only
makes them available earlier. Wrong guesses cost time, so they are limited: a text may lose the time of a few steps, and
must win it back before it guesses again.

This is prompt lookup decoding. The verification in one forward pass is from arXiv:2211.17192.
"""

from __future__ import annotations

from collections.abc import Sequence

# Newest tokens that must have appeared before, in this order.
_MATCH = 3
# Number of guesses at a time: at first, and at most.
_FIRST, _MOST = 3, 11
# Assumed time of one more token in a pass, as a part of the time of a pass with a single token.
_COST = 0.3
# Time, in passes, that a text may lose to wrong guesses: at the start, more with each token, and the most it may save.
_START, _PER_TOKEN, _SAVED = 1.5, 0.01, 6.0


class PromptLookup:
    """The guesses of one text.

    Args:
        ids: tokens of the prompt and of the text. The caller appends to them.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._after: dict[tuple[int, ...], int] = {}  # _MATCH tokens -> where their last appearance ended
        self._indexed = _MATCH  # the first end that is not in _after yet
        self._length = _FIRST
        self._ration = _START

    def guess(self, most: int) -> list[int]:
        """Return at most most tokens that may come next."""
        ids = self._ids
        for end in range(self._indexed, len(ids)):  # without the newest tokens themselves
            self._after[tuple(ids[end - _MATCH : end])] = end
        self._indexed = max(self._indexed, len(ids))
        at = self._after.get(tuple(ids[-_MATCH:]))
        n = min(most, self._length, int(self._ration / _COST))
        return [] if at is None or n <= 0 else list(ids[at : at + n])

    def learn(self, n_guessed: int, n_true: int) -> None:
        """Learn that of n_guessed guesses, n_true came true before the first wrong one."""
        self._ration = min(_SAVED, self._ration + _PER_TOKEN * (n_true + 1) + n_true - _COST * n_guessed)
        if n_guessed:
            self._length = min(_MOST, 2 * n_guessed) if n_true == n_guessed else max(_FIRST, n_true + 1)
