"""Whether the tokens of two models are the same."""

from __future__ import annotations

from ..shown import shown_value
from .base import Tokenizer


def check_same_vocabulary(mine: Tokenizer, theirs: Tokenizer) -> None:
    """Raise ValueError unless two tokenizers have the same tokens, and begin texts in the same way."""
    what = "the models have different vocabularies"
    if mine.vocab_size != theirs.vocab_size:
        raise ValueError(f"{what}, of {mine.vocab_size} and {theirs.vocab_size} tokens")
    for token_id in range(mine.vocab_size):
        if mine.piece(token_id) != theirs.piece(token_id):
            raise ValueError(
                f"{what}: token {token_id} is {shown_value(mine.piece(token_id))} and "
                f"{shown_value(theirs.piece(token_id))}"
            )
    if mine.with_bos([]) != theirs.with_bos([]):
        raise ValueError(f"{what}: their texts begin with different tokens")
