"""The choice of a chat format: by name, else the model's own template, else Llama-2's."""

from __future__ import annotations

from collections.abc import Sequence

from ..shown import shown_value
from ..tokenizer.base import Tokenizer
from .base import ChatFormat, Message
from .jinja import JinjaChat
from .llama2 import Llama2Chat
from .templates import TEMPLATES

__all__ = ["CHAT_FORMATS", "ChatFormat", "Message", "make_chat_format"]

CHAT_FORMATS = ("llama2", *TEMPLATES)


def make_chat_format(tokenizer: Tokenizer, template: str | None, name: str | None = None) -> ChatFormat:
    """The chat format called name, else that of the model's template (Jinja source).

    A model without a template has the "llama2" format if its vocabulary is Llama-2's kind: Meta's
    files carry no template. For others, the format's encode() raises ValueError and lists the names.
    Raises ValueError for an unknown name.
    """
    if name is not None and name not in CHAT_FORMATS:
        raise ValueError(f"unknown chat format {shown_value(name)}; there are {_choices()}")
    if name is None and template is not None:
        return JinjaChat(tokenizer, template, "template")
    if name == "llama2" or (name is None and _has_llama2_vocabulary(tokenizer)):
        return Llama2Chat(tokenizer)
    return NoChat() if name is None else JinjaChat(tokenizer, TEMPLATES[name], name)


class NoChat(ChatFormat):
    """Stands in for the chat format of a model that has none."""

    name = "none"

    def encode(self, messages: Sequence[Message], *, allow_markers: bool = False) -> list[int]:
        """Raise ValueError."""
        raise ValueError(f"the model has no chat template; choose a chat format: {_choices()}")


def _choices() -> str:
    return ", ".join(CHAT_FORMATS[:-1]) + " or " + CHAT_FORMATS[-1]


def _has_llama2_vocabulary(tokenizer: Tokenizer) -> bool:
    """Whether it is SentencePiece with BOS, EOS and a piece for INST, as in Llama-2's vocabulary and no smaller one."""
    return (
        tokenizer.spec.kind == "sentencepiece"
        and tokenizer.bos_id is not None
        and bool(tokenizer.eos_ids)
        and len(tokenizer.encode("[INST]")) == 3
    )
