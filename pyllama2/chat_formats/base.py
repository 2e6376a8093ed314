"""ChatFormat, the interface of every chat format, and checks of messages.

A chat format turns messages into token ids, up to where the assistant's next answer begins.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..shown import shown
from ..tokenizer.base import utf8

Message = Mapping[str, str]

# Templates write the role between their markers, so a role must not contain the end of a marker.
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ChatFormat(ABC):
    """How a chat is written for one model.

    Attributes:
        name: "llama2", "chatml", ..., or "template" for the model's own.
        stop_ids: tokens that end the assistant's turn, besides the model's eos_ids.
    """

    name: str
    stop_ids: tuple[int, ...] = ()

    @abstractmethod
    def encode(
        self,
        messages: Sequence[Message],
        *,
        allow_markers: bool = False,
        answer: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Tokenize a chat, up to where the assistant's answer begins.

        The text of a message never becomes special tokens.

        Args:
            messages: {"role": ..., "content": ...} each.
            allow_markers: accept messages that contain markers of the format that are ordinary text, such as [INST].
            answer: how the answer begins.
            variables: further variables of a template, as JSON values.

        Returns:
            Token ids, BOS included if the model has one.

        Raises:
            TypeError, ValueError: the format cannot express the messages, or they contain markers.
            CheckpointError: the model's own template is at fault.
        """

    def close(self) -> None:  # noqa: B027 (most formats hold nothing)
        """Release resources. The format can still be used; it then acquires them again."""


def split_answer(messages: Sequence[Message], continues: bool) -> tuple[Sequence[Message], str]:
    """Take the beginning of an answer off a conversation.

    Args:
        messages: as a user gave them. What else is wrong with them, check_messages() says.
        continues: whether the last message is the beginning of the assistant's answer.

    Returns:
        The messages to answer, and how the answer begins.

    Raises:
        ValueError: the last message is of the wrong role.
    """
    listed = isinstance(messages, Sequence) and len(messages) > 0 and isinstance(messages[-1], Mapping)
    role = messages[-1].get("role") if listed else None
    if not continues:
        if role in ("assistant", "system"):
            hint = " (continue_final_message=True goes on with it)" if role == "assistant" else ""
            raise ValueError(f"the last message must be the user's, not the {role}'s{hint}")
        return messages, ""
    if role != "assistant":
        raise ValueError("continue_final_message needs a last message of the assistant")
    return messages[:-1], check_messages(messages)[-1]["content"]


def check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Check messages as ChatFormat.encode() takes them.

    Returns:
        A copy of the messages.

    Raises:
        TypeError: a message, or a part of one, has the wrong type.
        ValueError: there are no messages, a role or content is missing, a role is not a short word, or a text is not
            valid Unicode.
    """
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
                raise TypeError(f"{shown(name, 40)} of message {i} must be a string, not {type(value).__name__}")
            utf8(name)
            utf8(value)
        if not _ROLE.fullmatch(message["role"]):
            raise ValueError(f"message {i} has the role {message['role'][:40]!r}")
    return [dict(message) for message in messages]


def check_turns(messages: Sequence[Message]) -> None:
    """Check that user and assistant alternate after an optional system prompt, and that the user begins.

    Args:
        messages: as check_messages() returns them.

    Raises:
        ValueError: a message has another role than it should have at its place.
    """
    first = n_system(messages)
    for i, message in enumerate(messages[first:]):
        role = ("user", "assistant")[i % 2]
        if message["role"] != role:
            raise ValueError(
                f"message {first + i} should be the {role}'s, not the {message['role']}'s: "
                "after an optional system prompt, user and assistant alternate"
            )


def n_system(messages: Sequence[Message]) -> int:
    """The number of system prompts that the messages begin with: 1 or 0."""
    return int(bool(messages) and messages[0]["role"] == "system")


def refuse_markers(messages: Sequence[Message], markers: Sequence[str]) -> None:
    """Refuse messages that contain markers.

    Raises:
        ValueError: a field of a message, its name or its value, contains one of the markers.
    """
    for i, message in enumerate(messages):
        for marker in markers:
            if any(marker in text for item in message.items() for text in item):
                raise ValueError(
                    f"message {i} contains {shown(marker)}, which has a meaning in the chat format "
                    "(allow_markers permits it)"
                )
