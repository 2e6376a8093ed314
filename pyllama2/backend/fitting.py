"""What an error says about memory: sizes, and the nearest context that would fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

USUAL_CONTEXT = 2048  # in tokens; a model is loaded only if there is memory for so many, unless n_ctx says another
LEAST_CONTEXT = 128  # in tokens; a suggestion with less would be of no use


def gib(n_bytes: int) -> str:
    """Return a size in GiB."""
    return f"{n_bytes / (1 << 30):.2f} GiB"


def largest_context(fits: Callable[[int], bool], most: int, step: int = 1) -> int:
    """Return the largest multiple of step up to most that fits, 0 if none does.

    Args:
        fits: whether a context of so many tokens fits. If one does, all smaller ones must.
        most: largest number of tokens.
        step: what the number is to be a multiple of.
    """
    return step * bisect_left(range(step, most + 1, step), True, key=lambda n: not fits(n))
