"""The chat format of a model that has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import ChatFormat, Message


class NoChat(ChatFormat):
    """Refuses every chat, and says which formats there are.

    Args:
        names: the names of chat formats, as the message lists them.
    """

    name = "none"

    def __init__(self, names: str) -> None:
        self._names = names

    def encode(
        self,
        messages: Sequence[Message],
        *,
        allow_markers: bool = False,
        answer: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Raise ValueError, with the names of chat formats."""
        raise ValueError(f"the model has no chat template; choose a chat format: {self._names}")
