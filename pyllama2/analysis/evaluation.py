"""How well a model predicts a text, and how close it is to another model.

    perplexity      exp(-mean(log p(token | the tokens before it))), natural logarithms
    bits per byte   -sum(log2 p) / bytes of UTF-8: compares models whose vocabularies differ
    KL divergence   sum over the vocabulary of p_against * (log p_against - log p_model), a mean over tokens

The text is cut into windows of at most `window` tokens, each begun with BOS where the model has one. The first window
scores all of its tokens; every later one moves on by `stride` tokens and scores these alone, with the rest of the
window as their context. The first token of the text is not counted.

Used by perplexity.py, the command line.
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
_SLICE = 1 << 16  # tokens of the vocabulary whose probabilities are in memory as float64 at once


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    perplexity           exp of the mean negative log-probability per token
    bits_per_byte        the same in bits, per byte of UTF-8 instead of per token
    n_tokens, n_bytes    what was scored: the text without its first token
    window, stride       in tokens, as they were used
    kl_divergence        mean over tokens of KL(against || model), in nats; None without a model to compare with
    kl_divergence_p99    its 99th percentile
    top_1_agreement      share of tokens before which both models find the same next token likeliest
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
    """Perplexity of a model on a text, in windows; with against also the divergence from that model.

    model, against  a Llama, or anything that Llama() opens; both must have the same vocabulary
    window          tokens of a window, BOS included; None: the models' context, but at most 1024
    stride          tokens that each window after the first scores, below window; None: half the window
    progress        called as progress(tokens done, tokens in all, "")

    The first window scores all of its tokens but the text's first; a later one its last stride tokens, with the
    rest as context. Memory beside the models: that of score() for each. Raises TypeError and ValueError for wrong
    arguments, different vocabularies, and a text of fewer than two tokens; else what Llama() and Llama.logits() raise.
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
        """Token ids of each window, BOS included, and how many of its last tokens it scores; in sum len(ids) - 1."""
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
    """Log-probability of every token but the first, and, with against, divergence and agreement before each."""
    total = len(windows.ids) - 1
    scores = np.empty(total)
    divergences = np.empty(total if against else 0)
    agreements = np.empty(total if against else 0, np.bool_)
    done = 0
    for ids, n in windows:
        part, first = slice(done, done + n), len(ids) - 1 - n  # after its token is the first distribution
        if against is None:
            scores[part] = scores_of(llm._logit_pieces(ids[:-1], first), ids, first)
        else:
            scores[part], divergences[part], agreements[part] = _compare(against, llm, ids, first)
        done += n
        if progress is not None:
            progress(done, total, "")
    return scores, divergences, agreements


def _compare(
    exact: Llama, found: Llama, ids: list[int], first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Of each of ids after position first: its score by found, KL(exact || found), and whether both agree before it."""
    n = len(ids) - 1 - first
    scores, divergences, agreements = np.empty(n), np.empty(n), np.empty(n, np.bool_)
    n_tokens = min(piece_tokens(exact.config), piece_tokens(found.config))
    others = found._logit_pieces(ids[:-1], first, n_tokens)
    for start, of_exact in exact._logit_pieces(ids[:-1], first, n_tokens):
        _, of_found = next(others)
        for i in range(len(of_found)):
            p, q, at = of_exact[i], of_found[i], start + i - first
            scores[at] = log_probabilities_of(q, [ids[start + i + 1]])[0]
            divergences[at] = _divergence(p, q)
            agreements[at] = p.argmax() == q.argmax()
        del of_exact, of_found, p, q  # before the next are computed
    return scores, divergences, agreements


def _divergence(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """KL(exact || found) of two vectors of logits (vocab_size,)."""
    exact_highest, exact_sum = log_normalizer(exact)
    found_highest, found_sum = log_normalizer(found)
    total = 0.0
    for start in range(0, len(exact), _SLICE):
        p = exact[start : start + _SLICE].astype(np.float64) - exact_highest - exact_sum
        q = found[start : start + _SLICE].astype(np.float64) - found_highest - found_sum
        total += float((np.exp(p) * (p - q)).sum())
    return total


def _opened(name: str, model: Model, window: int | None, stack: ExitStack) -> Llama:
    """model itself, or the Llama of a path, which ends with stack."""
    if isinstance(model, Llama):
        return model
    return stack.enter_context(Llama(model if model is None else path(name, model), n_ctx=window))


def _check_same_vocabulary(llm: Llama, other: Llama) -> None:
    sizes = llm.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models have different vocabularies, of {sizes[0]} and {sizes[1]} tokens")
    mine, theirs = llm.tokenizer, other.tokenizer
    for id in range(sizes[0]):
        if mine.piece(id) != theirs.piece(id):
            raise ValueError(
                f"the models have different vocabularies: token {id} is {shown_value(mine.piece(id))} "
                f"and {shown_value(theirs.piece(id))}"
            )
    if llm.tokenize("") != other.tokenize(""):
        raise ValueError("the models have different vocabularies: their texts begin with different tokens")
