"""Text out of token ids, one token at a time.

Tokens are bytes, and a character may lie across several of them: bytes wait here until they are
characters for certain, so that no emoji is ever torn. Used by llama.py for streams.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .base import Tokenizer


class Detokenizer:
    """Turns the tokens pushed into it to text; the pieces, joined, are tokenizer.decode() of all ids.

    With prompt_ids the text is a continuation of theirs: it keeps its leading space, so that text of
    prompt + continuation is the text of prompt_ids + ids. A character that the prompt began and did
    not end belongs to the continuation.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        for id in prompt_ids:
            self.push(id)

    def push(self, id: int) -> str:
        """The text that id completes; "" while a character is incomplete. Raises ValueError for an unknown id."""
        data = self._tokenizer.token_bytes(id, first=self._first)
        if self._first and self._tokenizer.token_bytes(id):
            self._first = False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
