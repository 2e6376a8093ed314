"""The tokens of a model as llguidance needs them: their bytes, in a trie that all texts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConstraintError
from ..process.exit_gate import GATE
from ..shown import shown
from ..tokenizer.base import Tokenizer

# llguidance takes tokens of up to 255 bytes. Longer ones are runs of a character, which shorter ones spell, too.
_LONGEST = 250


class Vocabulary:
    """The tokens of one model.

    Of tokens that spell the same, such as a letter and the byte of that letter, only the newest is used, which is what
    tokenizing a text gives, too. Special tokens are never allowed by a grammar.

    Args:
        tokenizer: the model's.

    Attributes:
        n_tokens: number of tokens of the model. Number n_tokens in a mask stands for the end of the text.
        tokens: the bytes of each token.
        native: llguidance's own object.

    Raises:
        ConstraintError: llguidance refuses the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        import llguidance

        self.n_tokens = tokenizer.vocab_size
        self.tokens = [tokenizer.token_bytes(i) for i in range(self.n_tokens)]
        newest = {token: i for i, token in enumerate(self.tokens)}
        tokens = [token if newest[token] == i and _is_usable(token) else b"" for i, token in enumerate(self.tokens)]
        try:
            with GATE:
                source: Any = _Source(tokens)
                self.native: Any = llguidance.LLTokenizer(source, slices=llguidance.LLTokenizer.json_slices())
        except BaseException as error:
            # PanicException derives from BaseException, and cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ConstraintError(f"llguidance refuses the model's vocabulary: {shown(error)}") from error

    def is_special(self, token_id: int) -> bool:
        """Whether a token adds no text."""
        return not self.tokens[token_id]


class _Source:
    """What llguidance asks for the tokens. It adds one for the end of the text, since eos_token_id is None."""

    is_tokenizer_wrapper = True
    eos_token_id = None
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens  # those without bytes are never allowed

    def __call__(self, text: str) -> list[int]:
        """Tokenize bytes that a grammar forces. Grammars are compiled so that this is not asked (worker.py)."""
        raise NotImplementedError


def _is_usable(token: bytes) -> bool:
    """Whether llguidance takes a token. With the byte 0xFF, which no UTF-8 has, it marks special tokens."""
    return len(token) <= _LONGEST and b"\xff" not in token
