"""Token ids to text, one token at a time.

A token is a few bytes, and a character such as an emoji may consist of several tokens. Bytes are kept
here until their character is complete.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .base import Tokenizer


class Detokenizer:
    """Turns tokens into text. The pieces of text, joined, equal tokenizer.decode() of all ids.

    With prompt_ids, the text continues theirs: it keeps its leading space, so that the text of the prompt
    plus the continuation is the text of prompt_ids + ids. A character that begins in the prompt and ends in
    the continuation belongs to the continuation.

    Args:
        tokenizer: has the bytes of each token.
        prompt_ids: the tokens that the text continues.

    Raises:
        ValueError: one of prompt_ids is outside of the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        for token_id in prompt_ids:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """Add a token.

        Args:
            token_id: the token.

        Returns:
            The text that the token completes; "" while a character is incomplete.

        Raises:
            ValueError: it is outside of the vocabulary.
        """
        data = self._tokenizer.token_bytes(token_id, first=self._first)
        if self._first and self._tokenizer.token_bytes(token_id):
            self._first = False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """End the text; returns U+FFFD for a character that was never completed, else ""."""
        return self._decoder.decode(b"", final=True)
