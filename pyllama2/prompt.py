"""Prompts and token ids as users give them, checked. Used by llama.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import ContextLengthError
from .sampling import SamplingParams

Prompt = str | Sequence[int]


def is_list_of_prompts(prompt: Any) -> bool:
    """Whether it is a list of prompts rather than one: [] is one of no prompts, [1, 2] is one of two tokens."""
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, bytes) or not isinstance(prompt, (Sequence, np.ndarray)):
        raise TypeError(f"a prompt must be a string or a list of token ids, not {type(prompt).__name__}")
    return len(prompt) == 0 or isinstance(prompt[0], (str, Sequence, np.ndarray))


def checked_ids(tokens: Sequence[int], vocab_size: int, n_ctx: int) -> list[int]:
    """tokens as ints. Raises ValueError outside the vocabulary and ContextLengthError beyond n_ctx."""
    ids = []
    for token in tokens:
        if isinstance(token, (bool, str)) or not isinstance(token, (int, np.integer)):
            raise TypeError(f"token ids must be integers, not {token!r}")
        if not 0 <= token < vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {vocab_size} tokens")
        ids.append(int(token))
    if len(ids) > n_ctx:
        raise ContextLengthError(f"{len(ids)} tokens do not fit in a context of {n_ctx}")
    return ids


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise ValueError when a parameter names a token outside the vocabulary."""
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(params, name) or ():
            if token >= vocab_size:
                raise ValueError(f"{name} has token id {token}, outside the vocabulary of {vocab_size} tokens")
