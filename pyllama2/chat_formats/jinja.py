"""Chat formats given by a Jinja template: the model's own, or one of templates.py.

The text of a message must not become a special token, whatever the template does with it. Therefore special tokens
are not looked for in the rendered text. They come only from the template's own text, and from bos_token and eos_token.
There, the names of special tokens are replaced by stand-ins before any message is rendered (template_environment.py).
No message can contain a stand-in (stand_ins.py). The rendered text is split at the stand-ins. These become token ids;
the text between them is encoded as plain text, which never gives special tokens.

Markers that are ordinary text, such as [INST] in many vocabularies, have stand-ins too, unless messages may contain
them. So markers that the template wrote are told apart from markers in messages, which are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..arguments import refuse
from ..shown import shown
from ..tokenizer.base import Tokenizer
from .base import ChatFormat, Message, check_messages, refuse_markers
from .renderer import TemplateRenderer
from .stand_ins import StandIns
from .templates import END_OF_TURN, MARKERS


class JinjaChat(ChatFormat):
    """A template, rendered with the variables of transformers' apply_chat_template."""

    def __init__(self, tokenizer: Tokenizer, template: str, name: str) -> None:
        """Prepare the template; it is compiled with the first chat.

        Args:
            tokenizer: the model's tokenizer.
            template: Jinja source.
            name: the name of the format.
        """
        special = tokenizer.special_tokens
        self.name = name
        self.stop_ids = tuple(
            special[marker]
            for marker in END_OF_TURN
            if marker in special and marker in template and special[marker] not in tokenizer.eos_ids
        )
        self._tokenizer = tokenizer
        self._text_markers = [marker for marker in MARKERS if marker in template and marker not in special]
        self._renderer = TemplateRenderer(template, stand_ins=StandIns([*special, *self._text_markers]))
        self._lenient_renderer = TemplateRenderer(template, stand_ins=StandIns(special))

    def encode(
        self,
        messages: Sequence[Message],
        *,
        allow_markers: bool = False,
        answer: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """See ChatFormat.encode(). The template decides which roles there are, and in which order."""
        dialog = check_messages(messages)
        if not allow_markers:
            refuse_markers([*dialog, {"role": "assistant", "content": answer}], self._text_markers)
        tokenizer = self._tokenizer
        renderer = self._lenient_renderer if allow_markers and self._text_markers else self._renderer

        def stand_in(token_id: int | None) -> str:
            piece = "" if token_id is None else tokenizer.piece(token_id)
            return renderer.stand_ins.by_name.get(piece, piece)

        text = renderer.render(
            {
                "tools": None,
                "documents": None,
                **_checked_variables(variables),
                "messages": dialog,
                "bos_token": stand_in(tokenizer.bos_id),
                "eos_token": stand_in(tokenizer.eos_ids[0] if tokenizer.eos_ids else None),
                "add_generation_prompt": True,
            }
        )
        ids: list[int] = []
        run = ""  # ordinary text since the last special token
        for i, part in enumerate(renderer.stand_ins.split(text)):
            if i % 2 and part in tokenizer.special_tokens:
                ids += [*self._encode_text(run), tokenizer.special_tokens[part]]
                run = ""
                continue
            if i % 2 == 0 and not allow_markers:
                self._refuse_markers(part)
            run += part
        return tokenizer.with_bos([*ids, *self._encode_text(run + answer)])

    def close(self) -> None:
        """End the process that renders the template."""
        self._renderer.close()
        self._lenient_renderer.close()

    def _encode_text(self, text: str) -> list[int]:
        if self._tokenizer.prepends_space:  # encode() adds the space that the template wrote
            text = text.removeprefix(" ")
        return self._tokenizer.encode(text) if text else []

    def _refuse_markers(self, text: str) -> None:
        """Raise ValueError if text that comes from messages contains a marker."""
        for marker in self._text_markers:
            if marker in text:
                raise ValueError(
                    f"the chat template makes {shown(marker)} of a message, which has a meaning in the chat format "
                    "(allow_markers permits it)"
                )


def _checked_variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further variables of a template. Raises TypeError unless they are JSON, ValueError for those that it has."""
    if variables is None:
        return {}
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        refuse("template_kwargs", "a mapping of names to values", variables)
    for name in ("messages", "bos_token", "eos_token", "add_generation_prompt"):
        if name in variables:
            raise ValueError(f"template_kwargs must not have {name}, which the messages and the model decide")
    try:
        json.dumps(dict(variables), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"template_kwargs must be JSON values: {shown(error)}") from None
    return dict(variables)
