"""The chat format of Llama-2-chat, built from token ids as in Meta's generation.py (chat_completion).

    finished turn   BOS encode("[INST] user [/INST] answer ") EOS
    last turn       BOS encode("[INST] user [/INST]"), or with " answer" where the answer has begun
    system prompt   the first user text is "<<SYS>>\\n" system "\\n<</SYS>>\\n\\n" user

Every turn is encoded by itself, so each has BOS, EOS and the space that SentencePiece adds. Encoding one string with
"<s>" in it would give other tokens. User texts and answers are stripped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..tokenizer.base import Tokenizer
from .base import ChatFormat, Message, check_messages, check_turns, n_system, refuse_markers

MARKERS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


class Llama2Chat(ChatFormat):
    """Meta's format for Llama-2-chat models."""

    name = "llama2"

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.bos_id is None or not tokenizer.eos_ids:
            raise ValueError("the llama2 chat format needs a model with BOS and EOS tokens")
        self._tokenizer = tokenizer
        self._bos_id = tokenizer.bos_id
        self._eos_id = tokenizer.eos_ids[0]

    def encode(
        self,
        messages: Sequence[Message],
        *,
        allow_markers: bool = False,
        answer: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """See ChatFormat.encode(). After an optional system prompt, user and assistant alternate; the user is last."""
        dialog = check_messages(messages)
        if variables:
            raise ValueError("the chat format llama2 is no template, so it has no template_kwargs")
        if not allow_markers:
            refuse_markers([*dialog, {"role": "assistant", "content": answer}], MARKERS)
        texts = _texts_in_turn(dialog)
        ids: list[int] = []
        for user, earlier in zip(texts[:-1:2], texts[1::2], strict=True):
            turn = f"[INST] {user.strip()} [/INST] {earlier.strip()} "
            ids += [self._bos_id, *self._tokenizer.encode(turn), self._eos_id]
        last = f"[INST] {texts[-1].strip()} [/INST]" + (f" {answer.lstrip()}" if answer else "")
        return [*ids, self._bos_id, *self._tokenizer.encode(last)]


def _texts_in_turn(dialog: list[dict[str, str]]) -> list[str]:
    """User texts and answers in turn; a system prompt is merged into the first. Raises ValueError for wrong roles."""
    first = n_system(dialog)
    texts = [message["content"] for message in dialog[first:]]
    if not texts:
        raise ValueError("a chat needs a user message, not only a system prompt")
    check_turns(dialog)
    if len(texts) % 2 == 0:
        raise ValueError("the last message must be the user's")
    if first:
        texts[0] = f"<<SYS>>\n{dialog[0]['content']}\n<</SYS>>\n\n{texts[0]}"
    return texts
