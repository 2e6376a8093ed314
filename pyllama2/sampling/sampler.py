"""How the next token is sampled from the logits of the model.

    SamplingParams   what a user may set
    Sampler          logits -> token id; each text has its own

The order of the steps:

    logits processors    f(token_ids, logits), on the raw logits
    repetition penalty   divides positive logits, multiplies negative ones; every token counts once
    presence, frequency  logit -= presence + frequency * count, for generated tokens
    logit_bias           logit += bias
    temperature          p_i ~ exp(logit_i / temperature); 0 is greedy: the largest logit, of equal ones the lowest id
    top_k                keeps the k largest, of equal ones the lowest ids
    top_p                drops a token when the mass before it, largest first, exceeds top_p (arXiv:1904.09751)
    min_p                drops a token that has less than min_p times the largest probability

The loops over the vocabulary are compiled: choose.pyx.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import boolean, integer, real, refuse, sequence, string
from ..errors import NumericalError
from ..shown import shown_value
from . import choose
from .stop_strings import StopStrings

LogitsProcessor = Callable[[list[int], NDArray[np.float32]], "NDArray[np.float32] | None"]

SEED_LIMIT = 1 << 64

# Names of other libraries -> ours.
_OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "temp": "temperature",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "n_probs": "logprobs",
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when a text ends.

    Attributes:
        temperature: 0 is greedy. Below 1 sharpens the distribution, above 1 flattens it.
        top_p: keep the most likely tokens up to this mass, in (0, 1]. 1 is off.
        top_k: keep this many of the most likely tokens. 0 is off.
        min_p: drop tokens with less than this share of the largest probability, in [0, 1]. 0 is off.
        repetition_penalty: divides positive logits of tokens that appeared before, multiplies negative ones. Above 0;
            1 is off.
        repetition_window: how many of the last tokens, prompt included, the repetition penalty is for.
        presence_penalty: subtracted from the logit of every token that was generated before.
        frequency_penalty: subtracted from the logit of a token once for each time that it was generated.
        max_tokens: most tokens to generate. None: up to the end of the context.
        stop: a string or strings that end the text. They are not part of it.
        stop_token_ids: tokens that end the text. They are not part of it.
        ignore_eos: go on after the model's own end of the text.
        logprobs: how many of the most likely tokens to report with each token. None: no log-probabilities.
        echo: begin Completion.text with the prompt.
        seed: seed of the random numbers, in [0, 2**64). None: a new one each time.
        logit_bias: {token id: number added to its logit}. -inf forbids the token.
        logits_processors: functions f(token_ids, logits) that return logits, or None after changing them in place.
            They run in the thread that asks for the text. They may use the same model, or wait for others that do.

    Raises:
        TypeError: a parameter has the wrong type, or its name is unknown. The message names it.
        ValueError: a parameter is out of range. The message names it.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = 256
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    logits_processors: Sequence[LogitsProcessor] = ()

    def __new__(cls, **sampling: Any) -> SamplingParams:
        """Refuse unknown names here, with a suggestion, which a dataclass's own __init__ does not give."""
        known = [field.name for field in fields(cls)]
        for name in sampling:
            if name not in known:
                raise TypeError(f"unknown sampling parameter {shown_value(name)}{_suggestion(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "temperature": real("temperature", self.temperature, 0),
            "top_p": real("top_p", self.top_p, 0, 1),
            "top_k": _count("top_k", self.top_k),
            "min_p": real("min_p", self.min_p, 0, 1),
            "repetition_penalty": real("repetition_penalty", self.repetition_penalty, 0),
            "repetition_window": _count("repetition_window", self.repetition_window),
            "presence_penalty": real("presence_penalty", self.presence_penalty),
            "frequency_penalty": real("frequency_penalty", self.frequency_penalty),
            "max_tokens": None if self.max_tokens is None else _count("max_tokens", self.max_tokens),
            "stop": _stop_strings(self.stop),
            "stop_token_ids": tuple(
                _count("stop_token_ids", token_id) for token_id in _items("stop_token_ids", self.stop_token_ids)
            ),
            "logprobs": None if self.logprobs is None else _count("logprobs", self.logprobs),
            "seed": None if self.seed is None else check_seed(self.seed),
            "logit_bias": None if self.logit_bias is None else _biases(self.logit_bias),
            "ignore_eos": boolean("ignore_eos", self.ignore_eos),
            "echo": boolean("echo", self.echo),
            "logits_processors": _items("logits_processors", self.logits_processors),
        }
        for name in ("top_p", "repetition_penalty"):
            if checked[name] == 0:
                raise ValueError(f"{name} must be greater than 0")
        for process in checked["logits_processors"]:
            if not callable(process):
                refuse("logits_processors", "functions", process)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @cached_property
    def bias_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The token ids and the numbers of logit_bias, prepared once for all texts."""
        biases = self.logit_bias or {}
        return np.fromiter(biases, np.int64), np.fromiter(biases.values(), np.float64)

    @cached_property
    def stop_strings(self) -> StopStrings:
        """The strings of stop, prepared once for all texts."""
        return StopStrings(self.stop)

    @classmethod
    def of(cls, params: SamplingParams | None = None, **sampling: Any) -> SamplingParams:
        """Return params with the fields that sampling names replaced.

        Args:
            params: None: the defaults.
            sampling: fields and their new values.

        Raises:
            TypeError: params is of another type, or a field has the wrong type or an unknown name.
            ValueError: a field is out of range.
        """
        if params is None:
            return cls(**sampling)
        if not isinstance(params, SamplingParams):
            refuse("params", "SamplingParams", params)
        return replace(params, **sampling) if sampling else params


@dataclass(frozen=True)
class Draw:
    """How one token is sampled from its logits by the steps from temperature on.

    Attributes:
        temperature: as in SamplingParams, like the next three.
        uniform: the random number, in [0, 1).
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0


class Sampler:
    """Samples the tokens of one text, with random numbers of its own, so that no other text changes them.

    Args:
        params: its seed is not used.
        seed: seed of the random numbers. None: from the system.
    """

    def __init__(self, params: SamplingParams, seed: int | None) -> None:
        self._params = params
        self._random = random.Random(seed)
        self._uniforms: deque[float] = deque()  # random numbers that were drawn early
        self._biased, self._bias = params.bias_arrays

    def sample(self, logits: NDArray[np.float32], token_ids: Sequence[int], n_prompt: int) -> int:
        """Sample the next token.

        Args:
            logits: (vocab_size,) float32. They are not changed.
            token_ids: the tokens before it.
            n_prompt: how many of these are the prompt.

        Raises:
            NumericalError: logits are not finite, or no token is left after processors and biases.
        """
        logits = np.ascontiguousarray(logits, np.float32)
        highest, lowest = choose.extremes(logits)
        if not -math.inf < lowest <= highest < math.inf:
            raise _not_finite(len(token_ids))
        adjusted = self._adjust(logits, token_ids, n_prompt)
        if adjusted is not logits:
            highest, lowest = choose.extremes(adjusted)
            if not -math.inf < highest < math.inf:
                raise NumericalError(
                    f"no token can follow position {len(token_ids) - 1}: logits_processors or logit_bias made the "
                    "logits NaN, +inf or all of them -inf"
                )
        params = self._params
        if params.temperature == 0:
            return int(adjusted.argmax())
        uniform = self._uniforms.popleft() if self._uniforms else self._random.random()
        return choose.choose(adjusted, highest, params.temperature, params.top_k, params.top_p, params.min_p, uniform)

    def draws(self, n: int) -> list[Draw] | None:
        """How to sample the next n tokens. None if that takes more than their logits, or if logprobs are wanted."""
        params = self._params
        if (
            params.logits_processors or params.repetition_penalty != 1 or params.presence_penalty != 0
            or params.frequency_penalty != 0 or self._biased.size or params.logprobs is not None
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
        for process in params.logits_processors:
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
            choose.penalize(
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


def log_probabilities_of(logits: NDArray[np.float32], ids: Sequence[int]) -> list[float]:
    """Natural logarithms of softmax(logits) at ids; logits (vocab_size,) are finite."""
    highest, log_sum = log_normalizer(logits)
    return [float(logits[token_id]) - highest - log_sum for token_id in ids]


def log_normalizer(logits: NDArray[np.float32]) -> tuple[float, float]:
    """The highest of finite logits (vocab_size,), and the natural logarithm of the sum of e^(logit - highest)."""
    logits = np.ascontiguousarray(logits, np.float32)
    highest, _ = choose.extremes(logits)
    return highest, choose.log_sum(logits, highest)


def largest(logits: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Ids of the n largest of logits (vocab_size,), none NaN; largest first, of equal ones the lowest id first."""
    n = min(n, logits.size)
    if n == 0:
        return np.empty(0, np.int64)
    ids = choose.largest(np.ascontiguousarray(logits, np.float32), n)
    return ids[np.argsort(-logits[ids], kind="stable")]


def check_seed(seed: Any) -> int:
    """Return seed as an int. Raises TypeError unless it is an integer, ValueError unless it is in [0, 2**64)."""
    return integer("seed", seed, 0, SEED_LIMIT - 1)


def _not_finite(n_tokens: int) -> NumericalError:
    return NumericalError(f"the model computed NaN or infinite logits at position {n_tokens - 1}")


def _processed(result: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    logits = np.array(result, np.float32)  # a copy: the next processor may change it in place
    if logits.shape != shape:
        raise ValueError(f"a logits processor gave an array of shape {logits.shape} for logits of shape {shape}")
    return logits


def _suggestion(name: str, known: list[str]) -> str:
    close = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _count(name: str, value: Any) -> int:
    return integer(name, value, 0)


def _items(name: str, value: Any) -> tuple[Any, ...]:
    return tuple(value if isinstance(value, (set, frozenset)) else sequence(name, value))


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops: tuple[Any, ...] = (value,) if isinstance(value, str) else _items("stop", value)
    for stop in stops:
        if not string("stop", stop):
            raise ValueError("stop must be strings of at least one character, not ''")
    return stops


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        refuse("logit_bias", "a mapping of token ids to numbers", value)
    biases = {}
    for token_id, bias in value.items():
        name = f"logit_bias of token {shown_value(token_id)}"
        forbids = isinstance(bias, (float, np.floating)) and bias == -math.inf
        biases[_count("a token id in logit_bias", token_id)] = -math.inf if forbids else real(name, bias)
    return biases
