"""How well a model predicts a text, and how close it is to another model.

    perplexity      exp(-mean(log p(token | the tokens before it))), natural logarithms
    bits per byte   -sum(log2 p) / bytes of UTF-8: compares models whose vocabularies differ
    KL divergence   sum over the vocabulary of p_against * (log p_against - log p_model), a mean over tokens

The text is cut into windows of at most `window` tokens. Each begins with BOS if the model has one. The first window
scores all of its tokens. Each later window moves on by `stride` tokens and scores only these, with the rest of the
window as their context. The first token of the text is not scored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arguments import function, integer, path, string
from ..convert import Progress
from ..generation.scoring import scores_of
from ..llama import Llama
from ..memory import piece_tokens
from ..sampling.sampler import log_normalizer, log_probabilities_of
from ..shown import shown_value

Model = Llama | str | os.PathLike[str]

_DEFAULT_WINDOW = 1024
_SLICE = 1 << 16  # tokens of the vocabulary whose probabilities are in memory as float64 at a time


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean negative log-probability per token.
        bits_per_byte: the negative log-probability in bits, per byte of UTF-8.
        n_tokens: tokens that were scored: all but the first.
        n_bytes: bytes of UTF-8 of these tokens.
        window: tokens of a window, BOS included.
        stride: tokens that each window after the first scores.
        kl_divergence: mean over tokens of KL(against || model), in nats; None without a model to compare with.
        kl_divergence_p99: its 99th percentile; None without a model to compare with.
        top_1_agreement: share of tokens for which both models rank the same token first; None without a model to
            compare with.
    """

    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int
    window: int
    stride: int
    kl_divergence: float | None = None
    kl_divergence_p99: float | None = None
    top_1_agreement: float | None = None


def perplexity(
    model: Model,
    text: str,
    *,
    against: Model | None = None,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure the perplexity of a model on a text.

    The text is scored in windows. The first window scores all of its tokens but the text's first. A later one scores
    its last stride tokens, with the rest as context. Besides the models this takes the memory of score() for each.

    Args:
        model: a Llama, or anything that Llama() opens.
        text: the text to predict; at least two tokens.
        against: a model to compare with, of the same vocabulary; None: compare with none.
        window: tokens of a window, BOS included; None: the models' context, but at most 1024.
        stride: tokens that each window after the first scores, below window; None: half the window.
        progress: called as progress(tokens done, tokens in all, "").

    Raises:
        TypeError, ValueError: an argument is wrong, the vocabularies differ, or the text has fewer than two tokens.
        Pyllama2Error: what Llama() and Llama.logits() raise.
    """
    string("text", text)
    function("progress", progress)
    window, stride = (
        None if number is None else integer(name, number) for name, number in (("window", window), ("stride", stride))
    )
    with ExitStack() as stack:
        llm = _opened("model", model, window, stack)
        other = None if against is None else _opened("against", against, window, stack)
        n_ctx = llm.n_ctx if other is None else min(llm.n_ctx, other.n_ctx)
        window = min(n_ctx, _DEFAULT_WINDOW) if window is None else integer("window", window, 2, n_ctx)
        stride = max(1, window // 2) if stride is None else integer("stride", stride, 1, window - 1)
        if other is not None:
            _check_same_vocabulary(llm, other)
        ids, bos = llm.tokenize(text, bos=False), llm.tokenize("")
        if len(ids) < 2:
            raise ValueError(f"the text has {len(ids)} tokens, at least 2 are needed")
        scores, divergences, agreements = _score(llm, other, _Windows(ids, bos, window, stride), progress)
        first = llm.tokenizer.token_bytes(ids[0], first=True)
    n_bytes = len(text.encode()) - len(first)
    mean = -float(scores.mean())
    return Perplexity(
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=mean * len(scores) / math.log(2) / n_bytes,
        n_tokens=len(scores),
        n_bytes=n_bytes,
        window=window,
        stride=stride,
        kl_divergence=None if other is None else float(divergences.mean()),
        kl_divergence_p99=None if other is None else float(np.percentile(divergences, 99)),
        top_1_agreement=None if other is None else float(agreements.mean()),
    )


@dataclass(frozen=True)
class _Windows:
    """The token ids of a text, without BOS, in windows."""

    ids: list[int]
    bos: list[int]
    window: int
    stride: int

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        """Yield the token ids of each window, BOS included, and how many of the last ones it scores.

        In all windows together len(ids) - 1 tokens are scored.
        """
        room = self.window - len(self.bos)
        end = min(room, len(self.ids))
        if end > 1:
            yield self.bos + self.ids[:end], end - 1
        while end < len(self.ids):
            n = min(self.stride, len(self.ids) - end)
            end += n
            yield self.bos + self.ids[max(0, end - room) : end], n


def _score(
    llm: Llama, against: Llama | None, windows: _Windows, progress: Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Score every token but the first: log-probability and, with against, divergence and agreement at each."""
    total = len(windows.ids) - 1
    scores = np.empty(total)
    divergences = np.empty(total if against else 0)
    agreements = np.empty(total if against else 0, np.bool_)
    done = 0
    for ids, n in windows:
        part, first = slice(done, done + n), len(ids) - 1 - n  # ids[first] is the last token not scored
        if against is None:
            scores[part] = scores_of(llm._logit_pieces(ids[:-1], first), ids, first)
        else:
            scores[part], divergences[part], agreements[part] = _compare(against, llm, ids, first)
        done += n
        if progress is not None:
            progress(done, total, "")
    return scores, divergences, agreements


def _compare(
    against: Llama, llm: Llama, ids: list[int], first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Score each of ids after position first by llm, and compare the distributions of both models for it.

    Returns the scores, KL(against || llm), and whether both rank the same token first.
    """
    n = len(ids) - 1 - first
    scores, divergences, agreements = np.empty(n), np.empty(n), np.empty(n, np.bool_)
    n_tokens = min(piece_tokens(against.config), piece_tokens(llm.config))
    llm_pieces = llm._logit_pieces(ids[:-1], first, n_tokens)
    for start, against_logits in against._logit_pieces(ids[:-1], first, n_tokens):
        _, llm_logits = next(llm_pieces)
        for i in range(len(llm_logits)):
            p, q, at = against_logits[i], llm_logits[i], start + i - first
            scores[at] = log_probabilities_of(q, [ids[start + i + 1]])[0]
            divergences[at] = _divergence(p, q)
            agreements[at] = p.argmax() == q.argmax()
        del against_logits, llm_logits, p, q  # free them before the next piece is computed
    return scores, divergences, agreements


def _divergence(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> float:
    """KL(p || q) of the distributions of two vectors of logits (vocab_size,)."""
    p_highest, p_sum = log_normalizer(p_logits)
    q_highest, q_sum = log_normalizer(q_logits)
    total = 0.0
    for start in range(0, len(p_logits), _SLICE):
        p = p_logits[start : start + _SLICE].astype(np.float64) - p_highest - p_sum  # log-probabilities
        q = q_logits[start : start + _SLICE].astype(np.float64) - q_highest - q_sum
        total += float((np.exp(p) * (p - q)).sum())
    return total


def _opened(name: str, model: Model, window: int | None, stack: ExitStack) -> Llama:
    """Return a Llama as it is; open the model at a path, and close it with stack."""
    if isinstance(model, Llama):
        return model
    return stack.enter_context(Llama(model if model is None else path(name, model), n_ctx=window))


def _check_same_vocabulary(llm: Llama, other: Llama) -> None:
    sizes = llm.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models have different vocabularies, of {sizes[0]} and {sizes[1]} tokens")
    mine, theirs = llm.tokenizer, other.tokenizer
    for token_id in range(sizes[0]):
        if mine.piece(token_id) != theirs.piece(token_id):
            raise ValueError(
                f"the models have different vocabularies: token {token_id} is {shown_value(mine.piece(token_id))} "
                f"and {shown_value(theirs.piece(token_id))}"
            )
    if llm.tokenize("") != other.tokenize(""):
        raise ValueError("the models have different vocabularies: their texts begin with different tokens")
