"""What a step feeds of each text: a part of its prompt, or its newest token and guesses of what follows."""

from __future__ import annotations

from collections.abc import Sequence

from ..backend.base import Backend
from .job import Job, StepInput
from .prefix_cache import PrefixCache

# Most prompt tokens in a step; fewer while other texts are decoded, which wait for the step.
_PROMPT_TOKENS = 512
_PROMPT_TOKENS_BESIDE_OTHERS = 128
# A prompt waits for an earlier one that is computing the same tokens, if they are at least this many.
_WORTH_WAITING = 32


def parts_of(jobs: Sequence[Job], rows: PrefixCache, backend: Backend) -> list[StepInput]:
    """Return what the next step feeds of each text: its newest token, or a part of its prompt as far as there is room.

    Args:
        jobs: the texts in order of arrival. Those that have no row, pause, or are being sampled wait.
        rows: the cache, in which a prompt may find more of its tokens.
        backend: what will run the step.
    """
    active = [job for job in jobs if job.may_step]
    room = _PROMPT_TOKENS_BESIDE_OTHERS if any(job.n_left == 1 for job in active) else _PROMPT_TOKENS
    parts: list[StepInput] = []
    prompts: list[list[int]] = []  # those that are being computed, or wait
    for job in active:
        row, ids = job.row, job.text.context
        assert row is not None
        if job.n_left > 1:
            job.text.add_cached(rows.extend(row, ids))
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
            part.guesses = part.job.text.guess(cheap_guesses(backend, len(parts)))
    return parts


def cheap_guesses(backend: Backend, n_texts: int) -> int:
    """Return how many guesses each of n_texts may have so that a step does not take much longer."""
    return (backend.cheap_tokens - n_texts) // n_texts
