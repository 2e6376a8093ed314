"""SamplingParams: what a user may set about sampling and the end of a text, and the checks of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import boolean, integer, real, refuse, sequence, string
from ..shown import shown_value
from .constraint import Constraint, Kind, checked_schema, checked_text
from .other_names import HINTS, OTHER_NAMES
from .stop_strings import StopStrings

LogitsProcessor = Callable[[list[int], NDArray[np.float32]], "NDArray[np.float32] | None"]

SEED_LIMIT = 1 << 64

_CONSTRAINTS: tuple[Kind, ...] = ("json_schema", "regex", "grammar")


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
        logits_processor_factories: functions without arguments that return such a function. Each text gets its own, so
            it may keep state. They come after logits_processors.
        json_schema: the text is JSON that is valid by this schema. A mapping, or JSON of one; kept as JSON. At most one
            of json_schema, regex and grammar may be given. They need the extra "constraints".
        regex: the whole text matches this regular expression, in the syntax of Rust's regex package.
        grammar: the text is one of this grammar, in llguidance's dialect of Lark, or in llama.cpp's GBNF.

    Raises:
        TypeError: a parameter has the wrong type, or its name is unknown. The message names it.
        ValueError: a parameter is out of range. The message names it. ConstraintError, which is one, is raised for a
            json_schema that is not JSON, or is too large. Whether it can be used is known when a text begins.
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
    logits_processor_factories: Sequence[Callable[[], LogitsProcessor]] = ()
    json_schema: Mapping[str, Any] | str | bool | None = None
    regex: str | None = None
    grammar: str | None = None

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
            "logits_processor_factories": _items("logits_processor_factories", self.logits_processor_factories),
            "json_schema": None if self.json_schema is None else checked_schema(self.json_schema),
            "regex": None if self.regex is None else checked_text("regex", self.regex),
            "grammar": None if self.grammar is None else checked_text("grammar", self.grammar),
        }
        for name in ("top_p", "repetition_penalty"):
            if checked[name] == 0:
                raise ValueError(f"{name} must be greater than 0")
        for name in ("logits_processors", "logits_processor_factories"):
            for function in checked[name]:
                if not callable(function):
                    refuse(name, "functions", function)
        given = [name for name in _CONSTRAINTS if checked[name] is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined: a text keeps to one of them")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def has_processors(self) -> bool:
        """Whether functions of the user change the logits."""
        return bool(self.logits_processors or self.logits_processor_factories)

    def check_for_several(self) -> None:
        """Refuse an object as a logits processor of several texts: it may keep the state of one. Raises ValueError."""
        for process in self.logits_processors:
            if not isinstance(process, (FunctionType, BuiltinFunctionType, MethodType, partial, np.ufunc, type)):
                raise ValueError(
                    f"a {type(process).__name__:.80} in logits_processors would get the tokens of several texts: "
                    "give a function, or logits_processor_factories=[lambda: ...], of which each text gets its own"
                )

    @cached_property
    def bias_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The token ids and the numbers of logit_bias, prepared once for all texts."""
        biases = self.logit_bias or {}
        return np.fromiter(biases, np.int64), np.fromiter(biases.values(), np.float64)

    @cached_property
    def constraint(self) -> Constraint | None:
        """What the text must be, by json_schema, regex or grammar. None: anything."""
        for kind in _CONSTRAINTS:
            if (text := getattr(self, kind)) is not None:
                return Constraint(kind, text)
        return None

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


def check_seed(seed: Any) -> int:
    """Return seed as an int. Raises TypeError unless it is an integer, ValueError unless it is in [0, 2**64)."""
    return integer("seed", seed, 0, SEED_LIMIT - 1)


def _suggestion(name: str, known: list[str]) -> str:
    if name in HINTS:
        return f": {HINTS[name]}"
    close = [OTHER_NAMES[name]] if name in OTHER_NAMES else get_close_matches(name, known, 1)
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
