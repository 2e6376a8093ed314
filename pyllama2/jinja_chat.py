"""Chat formats given by a Jinja template: the model's own, or one of chat_templates.py.

The rendered text is cut at the names of special tokens, which become ids; the rest is encoded as
plain text. What messages say must not become special tokens on the way: wherever a message has the
name of one, its first character is replaced by a stand-in, a character that occurs nowhere else,
and put back after the text was cut. Made by chat_format.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .chat_base import ChatFormat, Message, check_messages, refuse_markers
from .chat_templates import END_OF_TURN, MARKERS
from .template_renderer import TemplateRenderer
from .tokenizer import Tokenizer


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
        self._template = template
        self._renderer = TemplateRenderer(template)
        self._text_markers = [marker for marker in MARKERS if marker in template and marker not in special]
        # The first character of a special token's name, where the rest of the name follows.
        self._name_start = re.compile("|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in special))

    def encode(self, messages: Sequence[Message], *, allow_markers: bool = False) -> list[int]:
        """See ChatFormat.encode(). Which roles there are, and in which order, is the template's business."""
        dialog = check_messages(messages)
        if not allow_markers:
            refuse_markers(dialog, self._text_markers)
        stand_ins = self._choose_stand_ins(value for message in dialog for value in message.values())
        tokenizer = self._tokenizer
        text = self._renderer.render(
            {
                "messages": [{key: self._shield(m[key], stand_ins) for key in m} for m in dialog],
                "bos_token": "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id),
                "eos_token": tokenizer.piece(tokenizer.eos_ids[0]) if tokenizer.eos_ids else "",
                "add_generation_prompt": True,
                "tools": None,
                "documents": None,
            }
        )
        restore = {ord(stand_in): char for char, stand_in in stand_ins.items()}
        ids: list[int] = []
        for part in tokenizer.split_special(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            if tokenizer.prepends_space:  # a space the template writes itself is the one encode() puts there
                part = part.removeprefix(" ")
            ids += tokenizer.encode(part.translate(restore))
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def close(self) -> None:
        """End the process that renders the template."""
        self._renderer.close()

    def _choose_stand_ins(self, texts: Iterable[str]) -> dict[str, str]:
        """A character for each first character of a special token's name: unused, from the end of Unicode."""
        names = self._tokenizer.special_tokens
        used = set(self._template).union(*names, *texts)
        unused = (char for char in map(chr, range(0x10FFFD, 0, -1)) if char not in used)
        return dict(zip({name[0]: None for name in names}, unused, strict=False))

    def _shield(self, text: str, stand_ins: dict[str, str]) -> str:
        """text without the names of special tokens, nor the beginning of one where it ends."""
        names = self._tokenizer.special_tokens
        chars = list(text)
        if names:
            for match in self._name_start.finditer(text):
                chars[match.start()] = stand_ins[match[0]]
        end = len(text.rstrip())
        for start in range(max(0, end - max(map(len, names), default=0)), end):
            if text[start] in stand_ins and any(name.startswith(text[start:end]) for name in names):
                chars[start] = stand_ins[text[start]]
        return "".join(chars)
