"""Checks of prompts and token ids that users give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..arguments import refuse, sequence
from ..chat_formats.template_worker import MAX_CHARS
from ..errors import ContextLengthError
from ..sampling.params import SamplingParams
from ..shown import shown_value

Prompt = str | Sequence[int]


def is_list_of_prompts(prompt: Any) -> bool:
    """Whether it is a list of prompts rather than one prompt.

    [] is a list of no prompts, [1, 2] is a prompt of two tokens. Raises TypeError when it is neither.
    """
    if isinstance(prompt, str):
        return False
    is_list = isinstance(prompt, Sequence) or (isinstance(prompt, np.ndarray) and prompt.ndim > 0)
    if not is_list or isinstance(prompt, (bytes, bytearray, memoryview)):
        refuse("a prompt", "a string or a list of token ids", prompt)
    return len(prompt) == 0 or isinstance(prompt[0], (str, Sequence, np.ndarray))


@contextmanager
def naming_prompt(index: int) -> Iterator[None]:
    """A block whose errors of wrong arguments begin with the number of the prompt."""
    try:
        yield
    except (ContextLengthError, TypeError, ValueError) as error:
        kind = next(kind for kind in (ContextLengthError, TypeError, ValueError) if isinstance(error, kind))
        raise kind(f"prompt {index}: {error}") from error


def checked_ids(name: str, tokens: Any, vocab_size: int) -> list[int]:
    """Check token ids.

    Args:
        name: the argument's name, for errors.
        tokens: what the user gave.
        vocab_size: of the model.

    Returns:
        tokens as ints.

    Raises:
        TypeError: tokens is not a list of integers.
        ValueError: a token is outside the vocabulary.
    """
    ids = []
    for token in sequence(name, tokens):
        if isinstance(token, (bool, str)) or not isinstance(token, (int, np.integer)):
            refuse(name, "token ids, which are integers", token)
        if not 0 <= token < vocab_size:
            raise ValueError(f"token id {shown_value(int(token))} is outside the vocabulary of {vocab_size} tokens")
        ids.append(int(token))
    return ids


def check_length(ids: Sequence[int], n_ctx: int) -> None:
    """Raise ContextLengthError for more than n_ctx tokens."""
    if len(ids) > n_ctx:
        raise ContextLengthError(f"{len(ids)} tokens do not fit in a context of {n_ctx}")


def check_chat_length(messages: Any, n_ctx: int) -> None:
    """Raise ContextLengthError for more text than any context holds, before a template has to render it."""
    mappings = messages if isinstance(messages, Sequence) else ()  # other things are refused later
    contents = [message.get("content") for message in mappings if isinstance(message, Mapping)]
    n_chars = sum(len(content) for content in contents if isinstance(content, str))
    if n_chars > MAX_CHARS:
        raise ContextLengthError(f"messages of {n_chars} characters do not fit in a context of {n_ctx} tokens")


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise ValueError when a parameter names a token outside the vocabulary."""
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(params, name) or ():
            if token >= vocab_size:
                raise ValueError(
                    f"{name} has token id {shown_value(token)}, outside the vocabulary of {vocab_size} tokens"
                )
