"""Sampler: samples the next token from the logits of the model, as SamplingParams say.

The order of the steps:

    logits processors    f(token_ids, logits), on the raw logits
    repetition penalty   divides positive logits, multiplies negative ones; every token counts once
    presence, frequency  logit -= presence + frequency * count, for generated tokens
    logit_bias           logit += bias
    constraint           logit = -inf for tokens that json_schema, regex or grammar do not allow
    temperature          p_i ~ exp(logit_i / temperature); 0 is greedy: the largest logit, of equal ones the lowest id
    top_k                keeps the k largest, of equal ones the lowest ids
    top_p                drops a token when the mass before it, largest first, exceeds top_p (arXiv:1904.09751)
    min_p                drops a token that has less than min_p times the largest probability

The loops over the vocabulary are compiled: sample.pyx.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import refuse
from ..errors import ConstraintError, NumericalError
from . import sample
from .constraint import TokenMask
from .params import LogitsProcessor, SamplingParams


@dataclass(frozen=True)
class Draw:
    """How one token is sampled from its logits by the steps from temperature on.

    Attributes:
        temperature: as in SamplingParams.
        top_k: as in SamplingParams.
        top_p: as in SamplingParams.
        min_p: as in SamplingParams.
        uniform: the random number, in [0, 1).
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0


def _made_by(factory: Callable[[], LogitsProcessor]) -> LogitsProcessor:
    """Make a logits processor. Raises TypeError if it is none."""
    processor = factory()
    if not callable(processor):
        refuse("what a function in logits_processor_factories returns", "a function", processor)
    return processor


class Sampler:
    """Samples the tokens of one text, with random numbers of its own, so that no other text changes them.

    Args:
        params: its seed is not used.
        seed: seed of the random numbers. None: from the system.
        constraint: says which tokens may come next. None: all.
    """

    def __init__(self, params: SamplingParams, seed: int | None, constraint: TokenMask | None = None) -> None:
        self._params = params
        self._constraint = constraint
        self._random = random.Random(seed)
        self._uniforms: deque[float] = deque()  # random numbers that were drawn early
        self._biased, self._bias = params.bias_arrays
        self._processors = [*params.logits_processors, *map(_made_by, params.logits_processor_factories)]

    def sample(self, logits: NDArray[np.float32], token_ids: Sequence[int], n_prompt: int) -> int:
        """Sample the next token.

        Args:
            logits: (vocab_size,) float32. They are not changed.
            token_ids: the tokens before it.
            n_prompt: how many of these are the prompt.

        Raises:
            NumericalError: logits are not finite, or no token is left after processors and biases.
            ConstraintError: no token is left that the constraint allows.
        """
        logits = np.ascontiguousarray(logits, np.float32)
        highest, lowest = sample.extremes(logits)
        if not -math.inf < lowest <= highest < math.inf:
            raise _not_finite(len(token_ids))
        adjusted = self._adjust(logits, token_ids, n_prompt)
        if adjusted is not logits:
            highest, lowest = sample.extremes(adjusted)
            if not -math.inf < highest < math.inf:
                raise NumericalError(
                    f"no token can follow position {len(token_ids) - 1}: logits_processors or logit_bias made the "
                    "logits NaN, +inf or all of them -inf"
                )
        if self._constraint is not None:
            adjusted = adjusted.copy() if adjusted is logits else adjusted
            any_allowed = sample.forbid(adjusted, self._constraint.mask())
            highest, _ = sample.extremes(adjusted)
            if highest == -math.inf:
                kind = "the constraint" if self._params.constraint is None else self._params.constraint.kind
                why = (
                    "logits_processors or logit_bias forbid all that" if any_allowed else "the model has no token that"
                )
                raise ConstraintError(f"no token can follow position {len(token_ids) - 1}: {why} {kind} allows")
        params = self._params
        if params.temperature == 0:
            return int(adjusted.argmax())
        uniform = self._uniforms.popleft() if self._uniforms else self._random.random()
        return sample.sample(adjusted, highest, params.temperature, params.top_k, params.top_p, params.min_p, uniform)

    def draws(self, n: int) -> list[Draw] | None:
        """How to sample the next n tokens. None if that takes more than their logits, or if logprobs are wanted."""
        params = self._params
        if (
            self._constraint is not None or params.has_processors or params.repetition_penalty != 1
            or params.presence_penalty != 0 or params.frequency_penalty != 0 or self._biased.size
            or params.logprobs is not None
        ):  # fmt: skip
            return None
        if params.temperature == 0:
            return [Draw(0.0)] * n
        while len(self._uniforms) < n:
            self._uniforms.append(self._random.random())
        cuts = (params.temperature, params.top_k, params.top_p, params.min_p)
        return [Draw(*cuts, uniform) for uniform in islice(self._uniforms, n)]

    def accept(self, token: int, n_tokens: int) -> int:
        """Take the token that the first of draws() gave.

        Args:
            token: its id, or -1 for logits that are not finite.
            n_tokens: how many tokens come before it.

        Returns:
            token.

        Raises:
            NumericalError: token is -1.
        """
        if token < 0:
            raise _not_finite(n_tokens)
        if self._uniforms:
            self._uniforms.popleft()
        return token

    def _adjust(self, raw: NDArray[np.float32], token_ids: Sequence[int], n_prompt: int) -> NDArray[np.float32]:
        """Logits after processors, penalties and biases; raw itself if there are none."""
        params = self._params
        logits = raw
        for process in self._processors:
            given = raw.copy() if logits is raw else logits
            result = process(list(token_ids), given)
            logits = given if result is None else _processed(result, raw.shape)
        window_start = max(0, len(token_ids) - params.repetition_window)
        repeats = params.repetition_penalty != 1 and window_start < len(token_ids)
        counts = (params.presence_penalty != 0 or params.frequency_penalty != 0) and len(token_ids) > n_prompt
        if not (repeats or counts or self._biased.size):
            return logits
        logits = logits.copy()
        if repeats or counts:
            sample.penalize(
                logits,
                token_ids,
                window_start if repeats else len(token_ids),
                n_prompt if counts else len(token_ids),
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            )
        if self._biased.size:
            with np.errstate(all="ignore"):  # sample() sees what overflows
                logits[self._biased] += self._bias
        return logits


def sampled(logits: NDArray[np.float32], draw: Draw) -> int:
    """Sample a token from logits (vocab_size,) as a draw says. Returns its id, or -1 for logits that are not finite."""
    logits = np.ascontiguousarray(logits, np.float32)
    highest, lowest = sample.extremes(logits)
    if not -math.inf < lowest <= highest < math.inf:
        return -1
    if draw.temperature == 0:
        return int(logits.argmax())
    return sample.sample(logits, highest, draw.temperature, draw.top_k, draw.top_p, draw.min_p, draw.uniform)


def log_probabilities_of(logits: NDArray[np.float32], ids: Sequence[int]) -> list[float]:
    """Natural logarithms of softmax(logits) at ids; logits (vocab_size,) are finite."""
    highest, log_sum = log_normalizer(logits)
    return [float(logits[token_id]) - highest - log_sum for token_id in ids]


def log_normalizer(logits: NDArray[np.float32]) -> tuple[float, float]:
    """The highest of finite logits (vocab_size,), and the natural logarithm of the sum of e^(logit - highest)."""
    logits = np.ascontiguousarray(logits, np.float32)
    highest, _ = sample.extremes(logits)
    return highest, sample.log_sum(logits, highest)


def largest(logits: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Ids of the n largest of logits (vocab_size,), none NaN; largest first, of equal ones the lowest id first."""
    n = min(n, logits.size)
    if n == 0:
        return np.empty(0, np.int64)
    ids = sample.largest(np.ascontiguousarray(logits, np.float32), n)
    return ids[np.argsort(-logits[ids], kind="stable")]


def _not_finite(n_tokens: int) -> NumericalError:
    return NumericalError(f"the model computed NaN or infinite logits at position {n_tokens - 1}")


def _processed(result: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    logits = np.array(result, np.float32)  # a copy: the next processor may change it in place
    if logits.shape != shape:
        raise ValueError(f"a logits processor gave an array of shape {logits.shape} for logits of shape {shape}")
    return logits
