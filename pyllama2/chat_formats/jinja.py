"""Chat formats given by a Jinja template: the model's own, or one of chat_templates.py.

What a message says must not become a special token, whatever the template does with it. So it does
not matter how the rendered text reads. Special tokens are where the template's own text, or bos_token
and eos_token, had their names: these are replaced by stand-ins before a message is there
(template_environment.py), which no message can hold (stand_ins.py). The rendered text is cut at the
stand-ins, which become ids; all between them is encoded as plain text, from which no special token
comes.

Markers that are ordinary text, such as [INST] in many vocabularies, have stand-ins, too, unless messages
may contain them: so those that the template wrote are told from those of messages, which are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..tokenizer.base import Tokenizer
from .base import ChatFormat, Message, check_messages, refuse_markers
from .renderer import TemplateRenderer
from .stand_ins import StandIns
from .templates import END_OF_TURN, MARKERS


class JinjaChat(ChatFormat):
    """A template, rendered with the variables that transformers' apply_chat_template gives it."""

    def __init__(self, tokenizer: Tokenizer, template: str, name: str) -> None:
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

    def encode(self, messages: Sequence[Message], *, allow_markers: bool = False) -> list[int]:
        """See ChatFormat.encode(). Which roles there are, and in which order, is the template's business."""
        dialog = check_messages(messages)
        if not allow_markers:
            refuse_markers(dialog, self._text_markers)
        tokenizer = self._tokenizer
        renderer = self._lenient_renderer if allow_markers and self._text_markers else self._renderer

        def own(id: int | None) -> str:
            piece = "" if id is None else tokenizer.piece(id)
            return renderer.stand_ins.by_name.get(piece, piece)

        text = renderer.render(
            {
                "messages": dialog,
                "bos_token": own(tokenizer.bos_id),
                "eos_token": own(tokenizer.eos_ids[0] if tokenizer.eos_ids else None),
                "add_generation_prompt": True,
                "tools": None,
                "documents": None,
            }
        )
        ids: list[int] = []
        run = ""  # of ordinary text, since the last special token
        for i, part in enumerate(renderer.stand_ins.split(text)):
            if i % 2 and part in tokenizer.special_tokens:
                ids += [*self._encode_text(run), tokenizer.special_tokens[part]]
                run = ""
                continue
            if i % 2 == 0 and not allow_markers:
                self._refuse_markers(part)
            run += part
        return tokenizer.with_bos([*ids, *self._encode_text(run)])

    def close(self) -> None:
        """End the process that renders the template."""
        self._renderer.close()
        self._lenient_renderer.close()

    def _encode_text(self, text: str) -> list[int]:
        if self._tokenizer.prepends_space:  # a space the template writes itself is the one that encode() puts there
            text = text.removeprefix(" ")
        return self._tokenizer.encode(text) if text else []

    def _refuse_markers(self, text: str) -> None:
        """Raise ValueError when text that is not the template's own contains a marker."""
        for marker in self._text_markers:
            if marker in text:
                raise ValueError(
                    f"the chat template makes {marker} of a message, which has a meaning in the chat format "
                    "(allow_markers permits it)"
                )
