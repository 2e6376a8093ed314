"""How well a model predicts a text, and how close it is to another model.

    perplexity      exp(-mean(log p(token | the tokens before it))), natural logarithms
    bits per byte   -sum(log2 p) / bytes of UTF-8: compares models whose vocabularies differ
    KL divergence   sum over the vocabulary of p_against * (log p_against - log p_model), a mean over tokens

The text is cut into windows of at most `window` tokens. Each begins with BOS if the model has one. The first window
scores all of its tokens. Each later window moves on by `stride` tokens and scores only these, with the rest of the
window as their context. The first token of the text is not scored. Several texts are scored one by one, and together.

The standard error of a mean counts windows, whose tokens are alike, rather than tokens:

    sqrt(sum over windows of n_i^2 (mean_i - mean)^2) / n        with n_i tokens in window i, n in all
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..arguments import function, integer, path, string
from ..convert import Progress
from ..generation.scoring import scores_of
from ..llama import Llama
from ..memory import piece_tokens
from ..sampling.sampler import log_normalizer, log_probabilities_of
from ..storage.calibration_record import START_TOKENS, window_hash
from ..tokenizer.compare import check_same_vocabulary

log = logging.getLogger("pyllama2")

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
        kl_standard_error: the standard error of that mean, over windows; None for a single window too.
        kl_divergence_p99: its 99th percentile; None without a model to compare with.
        top_1_agreement: share of tokens for which both models rank the same token first; None without a model to
            compare with.
        perplexity_ratio: perplexity over that of the model to compare with; None without one.
        documents: what the same is for each of several texts; None for a single text.
    """

    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int
    window: int
    stride: int
    kl_divergence: float | None = None
    kl_standard_error: float | None = None
    kl_divergence_p99: float | None = None
    top_1_agreement: float | None = None
    perplexity_ratio: float | None = None
    documents: tuple[Perplexity, ...] | None = None


def perplexity(
    model: Model,
    text: str | Sequence[str],
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
        text: the text to predict, or several; at least two tokens each.
        against: a model to compare with, of the same vocabulary; None: compare with none.
        window: tokens of a window, BOS included; None: the models' context, but at most 1024.
        stride: tokens that each window after the first scores, below window; None: half the window.
        progress: called as progress(tokens done, tokens in all, "").

    Raises:
        TypeError, ValueError: an argument is wrong, the vocabularies differ, or the text has fewer than two tokens.
        Pyllama2Error: what Llama() and Llama.logits() raise.
    """
    texts = [string("text", one) for one in (text if isinstance(text, (list, tuple)) else [text])]
    if not texts:
        raise ValueError("there is no text")
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
            check_same_vocabulary(llm.tokenizer, other.tokenizer)
        encoded = [llm.tokenize(one, bos=False) for one in texts]
        for i, ids in enumerate(encoded):
            if len(ids) < 2:
                which = "the text" if len(texts) == 1 else f"text {i + 1}"
                raise ValueError(f"{which} has {len(ids)} tokens, at least 2 are needed")
            _warn_if_calibrated_on(llm, ids, texts[i])
        counts = _Progress(sum(len(ids) - 1 for ids in encoded), progress)
        scored = []
        for ids, one in zip(encoded, texts, strict=True):
            first = llm.tokenizer.token_bytes(ids[0], first=True)
            n_bytes = len(one.encode()) - len(first)
            scored.append(_score(llm, other, _Windows(ids, llm.tokenize(""), window, stride), n_bytes, counts))
    whole = _summary(scored, window, stride)
    if not isinstance(text, (list, tuple)):
        return whole
    return replace(whole, documents=tuple(_summary([one], window, stride) for one in scored))


def _warn_if_calibrated_on(llm: Llama, ids: list[int], text: str) -> None:
    """Say so if the model's weights were chosen on this text."""
    record = llm._model.calibration
    if record is None:
        return
    same = hashlib.sha256(text.encode()).hexdigest() in record.sha256
    if same or any(window_hash(ids[i:]) in record.starts for i in range(len(ids) - START_TOKENS + 1)):
        log.warning("the model was calibrated on this text, or on a part of it: it seems better here than it is")


@dataclass
class _Progress:
    """Tokens that were scored, of all texts."""

    total: int
    callback: Progress | None
    done: int = 0

    def add(self, n: int) -> None:
        self.done += n
        if self.callback is not None:
            self.callback(self.done, self.total, "")


@dataclass(frozen=True)
class _Scores:
    """Numbers of every token of a text that was scored. Those of a comparison are empty without one.

    Attributes:
        scores: log-probabilities of the tokens.
        others: those of the model that is compared with.
        divergences: KL of the two distributions.
        agreements: whether both rank the same token first.
        windows: tokens that each window scores.
        n_bytes: bytes of UTF-8 of all tokens.
    """

    scores: NDArray[np.float64]
    others: NDArray[np.float64]
    divergences: NDArray[np.float64]
    agreements: NDArray[np.bool_]
    windows: list[int]
    n_bytes: int


def _summary(parts: list[_Scores], window: int, stride: int) -> Perplexity:
    """The result for texts together."""
    scores, others, divergences, agreements = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("scores", "others", "divergences", "agreements")
    )
    n_bytes = sum(part.n_bytes for part in parts)
    mean = -float(scores.mean())
    result = Perplexity(
        perplexity=_exp(mean),
        bits_per_byte=mean * len(scores) / math.log(2) / n_bytes,
        n_tokens=len(scores),
        n_bytes=n_bytes,
        window=window,
        stride=stride,
    )
    if not len(others):
        return result
    return replace(
        result,
        kl_divergence=float(divergences.mean()),
        kl_standard_error=_standard_error(divergences, [n for part in parts for n in part.windows]),
        kl_divergence_p99=float(np.percentile(divergences, 99)),
        top_1_agreement=float(agreements.mean()),
        perplexity_ratio=_exp(mean + float(others.mean())),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _standard_error(values: NDArray[np.float64], windows: list[int]) -> float | None:
    """The standard error of the mean of values that lie in windows of so many."""
    if len(windows) < 2:
        return None
    sizes = np.asarray(windows)
    ends = np.cumsum(sizes)
    sums = np.add.reduceat(values, ends - sizes)
    return float(np.sqrt(np.square(sums - sizes * values.mean()).sum()) / len(values))


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


def _score(llm: Llama, against: Llama | None, windows: _Windows, n_bytes: int, progress: _Progress) -> _Scores:
    """Score every token of a text but the first."""
    total = len(windows.ids) - 1
    scores = np.empty(total)
    others, divergences = (np.empty(total if against else 0) for _ in range(2))
    agreements = np.empty(total if against else 0, np.bool_)
    counts: list[int] = []
    for ids, n in windows:
        part, first = slice(sum(counts), sum(counts) + n), len(ids) - 1 - n  # ids[first] is the last token not scored
        if against is None:
            scores[part] = scores_of(llm._logit_pieces(ids[:-1], first), ids, first)
        else:
            scores[part], others[part], divergences[part], agreements[part] = _compare(against, llm, ids, first)
        counts.append(n)
        progress.add(n)
    return _Scores(scores, others, divergences, agreements, counts, n_bytes)


def _compare(
    against: Llama, llm: Llama, ids: list[int], first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Score each of ids after position first by both models, and compare their distributions for it.

    Returns the scores of llm and of against, KL(against || llm), and whether both rank the same token first.
    """
    n = len(ids) - 1 - first
    scores, others, divergences, agreements = np.empty(n), np.empty(n), np.empty(n), np.empty(n, np.bool_)
    n_tokens = min(piece_tokens(against.config), piece_tokens(llm.config))
    llm_pieces = llm._logit_pieces(ids[:-1], first, n_tokens)
    for start, against_logits in against._logit_pieces(ids[:-1], first, n_tokens):
        _, llm_logits = next(llm_pieces)
        for i in range(len(llm_logits)):
            p, q, at = against_logits[i], llm_logits[i], start + i - first
            scores[at], others[at] = (log_probabilities_of(logits, [ids[start + i + 1]])[0] for logits in (q, p))
            divergences[at] = divergence(p, q)
            agreements[at] = p.argmax() == q.argmax()
        del against_logits, llm_logits, p, q  # free them before the next piece is computed
    return scores, others, divergences, agreements


def divergence(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> float:
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
