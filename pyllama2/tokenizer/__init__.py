"""Text to token ids and back. load_tokenizer() is the way in; base.py has the interface."""

from __future__ import annotations

from ..process.exit_gate import GATE
from .base import Tokenizer, TokenizerSpec


def load_tokenizer(spec: TokenizerSpec, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a spec, for a model of vocab_size tokens (None: as many as the tokenizer has).

    Raises CheckpointError when its data is damaged, or when it has tokens that the model lacks.
    """
    with GATE:
        if spec.kind == "sentencepiece":
            from .sentencepiece import SentencePieceTokenizer

            return SentencePieceTokenizer(spec, vocab_size)
        from .bpe import BpeTokenizer

        return BpeTokenizer(spec, vocab_size)
