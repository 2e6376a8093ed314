"""make_chat_format(): by name, else the model's own template, else Llama-2's."""

from __future__ import annotations

from ..shown import shown_value
from ..tokenizer.base import Tokenizer
from .base import ChatFormat
from .jinja import JinjaChat
from .llama2 import Llama2Chat
from .no_chat import NoChat
from .templates import TEMPLATES

CHAT_FORMATS = ("llama2", *TEMPLATES)
_LIST = ", ".join(CHAT_FORMATS[:-1]) + " or " + CHAT_FORMATS[-1]


def make_chat_format(tokenizer: Tokenizer, template: str | None, name: str | None = None) -> ChatFormat:
    """Make the chat format of a model.

    Without a name, the model's template is used. A model without a template has the "llama2" format if its vocabulary
    looks like Llama-2's, since Meta's files have no template. For other models, encode() of the returned format raises
    ValueError and lists the names of formats.

    Args:
        tokenizer: the model's tokenizer.
        template: the model's template, Jinja source; None: it has none.
        name: one of CHAT_FORMATS, which overrides the template; None: as above.

    Raises:
        ValueError: the name is unknown, or the format needs tokens that the tokenizer does not have.
    """
    if name is not None and name not in CHAT_FORMATS:
        raise ValueError(f"unknown chat format {shown_value(name)}; there are {_LIST}")
    if name is None and template is not None:
        return JinjaChat(tokenizer, template, "template")
    if name == "llama2" or (name is None and _has_llama2_vocabulary(tokenizer)):
        return Llama2Chat(tokenizer)
    return NoChat(_LIST) if name is None else JinjaChat(tokenizer, TEMPLATES[name], name)


def _has_llama2_vocabulary(tokenizer: Tokenizer) -> bool:
    """Whether it is SentencePiece with BOS, EOS and a piece for INST, which smaller vocabularies do not have."""
    return (
        tokenizer.spec.kind == "sentencepiece"
        and tokenizer.bos_id is not None
        and bool(tokenizer.eos_ids)
        and len(tokenizer.encode("[INST]")) == 3
    )
