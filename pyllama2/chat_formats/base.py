"""What every chat format is: messages in, the token ids before the assistant's next answer out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from ..tokenizer.base import utf8

Message = Mapping[str, str]

# Templates write the role between their markers, so it must not be able to end one.
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ChatFormat(ABC):
    """How one model wants a chat to be written.

    name      "llama2", "chatml", ..., or "template" for the model's own
    stop_ids  tokens that end the assistant's turn, besides the model's eos_ids
    """

    name: str
    stop_ids: tuple[int, ...] = ()

    @abstractmethod
    def encode(self, messages: Sequence[Message], *, allow_markers: bool = False) -> list[int]:
        """The tokens of a chat, up to where the assistant's answer begins; BOS is among them if the model has one.

        messages are {"role": ..., "content": ...}. What a message says never becomes special tokens;
        markers of the format that are ordinary text, such as [INST], are refused in a message unless
        allow_markers. Raises TypeError or ValueError for messages that the format cannot express, and
        CheckpointError when the model's own template is at fault.
        """

    def close(self) -> None:  # noqa: B027 (most formats hold nothing)
        """Let go of whatever the format holds; it can still be used."""


def check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A copy of messages. Raises TypeError or ValueError unless they are what ChatFormat.encode() says."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError("messages must be a list of {'role': ..., 'content': ...}")
    if not messages:
        raise ValueError("messages must not be empty")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {i} must be a mapping with role and content, not {type(message).__name__}")
        for name in ("role", "content"):
            if name not in message:
                raise ValueError(f"message {i} has no {name}")
        for name, value in message.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"{name!s:.40} of message {i} must be a string, not {type(value).__name__}")
            utf8(name)
            utf8(value)
        if not _ROLE.fullmatch(message["role"]):
            raise ValueError(f"message {i} has the role {message['role'][:40]!r}")
    return [dict(message) for message in messages]


def out_of_turn(messages: Sequence[Message]) -> tuple[int, str] | None:
    """The first message that is out of turn, and the role that it should have.

    None when user and assistant alternate, after a system prompt or none.
    """
    first = n_system(messages)
    for i, message in enumerate(messages[first:]):
        role = ("user", "assistant")[i % 2]
        if message["role"] != role:
            return first + i, role
    return None


def n_system(messages: Sequence[Message]) -> int:
    """1 if the messages begin with a system prompt, else 0."""
    return int(bool(messages) and messages[0]["role"] == "system")


def refuse_markers(messages: Sequence[Message], markers: Sequence[str]) -> None:
    """Raise ValueError when a message, its names and values, contains one of the markers."""
    for i, message in enumerate(messages):
        for marker in markers:
            if any(marker in text for item in message.items() for text in item):
                raise ValueError(
                    f"message {i} contains {marker}, which has a meaning in the chat format (allow_markers permits it)"
                )
