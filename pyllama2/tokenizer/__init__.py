"""Text to token ids and back. Start at load_tokenizer(). base.py has the interface of all tokenizers."""

from .load import load_tokenizer

__all__ = ["load_tokenizer"]
