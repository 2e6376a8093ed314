"""load_tokenizer(): the tokenizer of a spec. The package that it uses is imported here."""

from __future__ import annotations

from ..process.exit_gate import GATE
from .base import Tokenizer, TokenizerSpec


def load_tokenizer(spec: TokenizerSpec, vocab_size: int | None = None) -> Tokenizer:
    """Make the tokenizer of a spec.

    Args:
        spec: the tokenizer's data and special tokens.
        vocab_size: the model's number of tokens; None: as many as the tokenizer has.

    Returns:
        A SentencePieceTokenizer or a BpeTokenizer.

    Raises:
        CheckpointError: the tokenizer's data is damaged, or it has tokens that the model lacks.
    """
    with GATE:
        if spec.kind == "sentencepiece":
            from .sentencepiece import SentencePieceTokenizer

            return SentencePieceTokenizer(spec, vocab_size)
        from .bpe import BpeTokenizer

        return BpeTokenizer(spec, vocab_size)
