"""How likely given tokens are, in a cache of their own. Used by llama.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Batch, KVCache
from .errors import NumericalError
from .sampling import log_probabilities

_CHUNK = 256  # tokens whose logits are in memory at once


def logits_of(backend: Backend, cache: KVCache, ids: list[int], start: int = 0) -> NDArray[np.float32]:
    """Logits (len(ids), vocab_size) after each of ids, at positions from start on in row 0 of cache.

    Raises NumericalError for NaN.
    """
    logits = backend.forward(Batch.of_sequence(ids, start=start, outputs="all"), cache)
    finite = np.isfinite(logits).all(-1)
    if not finite.all():
        raise NumericalError(f"the model computed NaN or infinite logits at position {start + int(finite.argmin())}")
    return logits


def scores_of(backend: Backend, cache: KVCache, ids: list[int]) -> NDArray[np.float32]:
    """Natural log-probabilities (len(ids) - 1,) of each of ids after the first."""
    scores = np.empty(len(ids) - 1, np.float32)
    for start in range(0, len(scores), _CHUNK):
        part = ids[start : min(start + _CHUNK, len(scores))]
        logits = logits_of(backend, cache, part, start)
        following = ids[start + 1 : start + 1 + len(part)]
        scores[start : start + len(part)] = log_probabilities(logits)[np.arange(len(part)), following]
    return scores
