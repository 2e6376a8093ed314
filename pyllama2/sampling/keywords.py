"""Sampling: the fields of SamplingParams as keywords of a function, which editors complete and type checkers check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from .params import LogitsProcessor


class Sampling(TypedDict, total=False):
    """Fields of SamplingParams, which says what they mean."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    repetition_window: int
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    echo: bool
    seed: int | None
    logit_bias: Mapping[int, float] | None
    logits_processors: Sequence[LogitsProcessor]
    logits_processor_factories: Sequence[Callable[[], LogitsProcessor]]
    json_schema: Mapping[str, Any] | str | bool | None
    regex: str | None
    grammar: str | None
