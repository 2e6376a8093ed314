"""The messages of a chat: reading and writing their file, and dropping the oldest turns when the context is full.

A file is a JSON list of {"role": ..., "content": ...}, as Llama.chat() takes them: an optional system prompt, then
questions of the user and answers of the assistant in turn.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable

from ..bounded_json import parse_json
from ..chat_formats.base import check_messages, check_turns, n_system
from ..process.interrupts import Interrupts
from ..shown import shown
from ..storage.new_file import NewFile

Messages = list[dict[str, str]]

_MAX_BYTES = 16 << 20  # far more than any context holds


def write_messages(path: str, messages: Messages) -> None:
    """Write messages to a file.

    An existing file is replaced only when the new one is complete. A symbolic link stays, and its target is replaced.

    Raises:
        CheckpointError: the file cannot be written.
    """
    text = json.dumps(messages, ensure_ascii=False, indent=1) + "\n"
    with Interrupts() as interrupts, NewFile(os.path.realpath(path), interrupts) as file, interrupts.allowed():
        file.write(text.encode())


def read_messages(path: str) -> Messages:
    """Read the messages of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or not in the format described above. The message is one sentence.
    """
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{shown(path)} has more than {_MAX_BYTES} bytes, which is too many for a conversation")
    try:
        values = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{shown(path)} {error}") from error
    try:
        if not isinstance(values, list):
            raise TypeError(f"messages must be a list, not {type(values).__name__}")
        messages = check_messages(values) if values else []
        _check_finished(messages)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{shown(path)} is no conversation: {shown(error)}") from error
    return messages


def without_oldest_turns(messages: Messages, count: Callable[[Messages], int], n_most: int) -> Messages:
    """Drop as few of the oldest turns as make the messages fit.

    The system prompt and the last question always stay, even if they do not fit by themselves.

    Args:
        messages: a conversation that ends with a question.
        count: the number of tokens of some messages.
        n_most: the number of tokens that they may have.
    """
    if count(messages) <= n_most:
        return messages
    first = n_system(messages)
    shorter = [messages[:first] + messages[i:] for i in range(first + 2, len(messages), 2)]
    first_that_fits = bisect_left(shorter, True, key=lambda candidate: count(candidate) <= n_most)
    return shorter[min(first_that_fits, len(shorter) - 1)] if shorter else messages


def _check_finished(messages: Messages) -> None:
    for i, message in enumerate(messages):
        if set(message) != {"role", "content"}:
            raise ValueError(f"message {i} has fields other than role and content")
    check_turns(messages)
    if (len(messages) - n_system(messages)) % 2:
        raise ValueError("the last question has no answer")
