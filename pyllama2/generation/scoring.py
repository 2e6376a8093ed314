"""How likely given tokens are. They have a cache of their own. Memory is bounded for any vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Backend, Batch
from ..backend.kv_cache import KVCache
from ..errors import NumericalError
from ..sampling import sample
from ..sampling.sampler import log_probabilities_of

# Logits (n, vocab_size) of n consecutive tokens, and the position of the first.
LogitRows = tuple[int, NDArray[np.float32]]


def logits_of(backend: Backend, cache: KVCache, ids: list[int], start: int = 0) -> NDArray[np.float32]:
    """Compute logits of consecutive tokens.

    Args:
        backend: what computes them.
        cache: has the tokens before start in row 0.
        ids: the tokens.
        start: position of the first.

    Returns:
        Logits (len(ids), vocab_size) float32, a row after each token.

    Raises:
        NumericalError: logits are NaN or infinite.
    """
    logits = backend.forward(Batch.of_sequence(ids, start=start, outputs="all"), cache)
    for i, of_token in enumerate(logits):
        highest, lowest = sample.extremes(of_token)
        if not -math.inf < lowest <= highest < math.inf:
            raise NumericalError(f"the model computed NaN or infinite logits at position {start + i}")
    return logits


def logit_pieces(backend: Backend, cache: KVCache, ids: list[int], first: int, n_tokens: int) -> Iterator[LogitRows]:
    """Yield logits after each of ids from position first on, n_tokens at a time.

    Drop each piece before asking for the next, or both are in memory.
    """
    if first:
        backend.forward(Batch.of_sequence(ids[:first], outputs="none"), cache)
    for start in range(first, len(ids), n_tokens):
        yield start, logits_of(backend, cache, ids[start : start + n_tokens], start)


def scores_of(pieces: Iterable[LogitRows], ids: list[int], first: int = 0) -> NDArray[np.float32]:
    """Compute natural log-probabilities of ids.

    Args:
        pieces: logits after each of ids but the last, from position first on.
        ids: the tokens.
        first: position before the first token to score.

    Returns:
        Log-probabilities (len(ids) - 1 - first,) float32.
    """
    scores = np.empty(len(ids) - 1 - first, np.float32)
    for start, logits in pieces:
        for position, of_token in enumerate(logits, start):
            scores[position - first] = log_probabilities_of(of_token, [ids[position + 1]])[0]
        del logits, of_token
    return scores
