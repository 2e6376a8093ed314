"""Log-probabilities of tokens with the most likely alternatives, for generated tokens and for those of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..sampling.sampler import largest, log_probabilities_of
from ..tokenizer.base import Tokenizer
from .chunk import TokenLogprob
from .scoring import LogitRows


def token_logprob(tokenizer: Tokenizer, token: int, logits: NDArray[np.float32], n_top: int) -> TokenLogprob:
    """Return how likely a token is by logits (vocab_size,), with the n_top most likely ones."""
    best = largest(logits, n_top).tolist()
    logprob, *others = log_probabilities_of(logits, [token, *best])
    top = tuple((token_id, tokenizer.piece(token_id), other) for token_id, other in zip(best, others, strict=True))
    return TokenLogprob(token, tokenizer.piece(token), logprob, top)


def logprobs_of(
    tokenizer: Tokenizer, pieces: Iterable[LogitRows], ids: Sequence[int], n_top: int
) -> Iterator[list[TokenLogprob]]:
    """Yield the log-probabilities of ids after the first, in lists that join to all of them.

    Args:
        tokenizer: has the tokens' texts.
        pieces: logits after each of ids but the last.
        ids: the tokens.
        n_top: how many of the most likely tokens to give with each.
    """
    for start, logits in pieces:
        yield [token_logprob(tokenizer, ids[i + 1], of_token, n_top) for i, of_token in enumerate(logits, start)]
        del logits
