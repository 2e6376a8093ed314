"""Text that the model writes itself: sampled at temperature 1, each window a text of its own.

A window begins with BOS. A model without one has no usual beginning: its windows begin with common words. An end of
text is followed by what the model believes to come next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..llama import Llama
from ..tokenizer.base import Tokenizer

# Beginnings of texts of many kinds, so that the model does not write one kind only.
_BEGINNINGS = (
    "The", "In", "A", "It", "When", "I", "He", "To", "This", "We", "There", "For", "How", "What", "You", "On",
    "As", "If", "At", "She", "They", "One", "After", "First", "#", "My", "With", "Many", "Once", "import", "From",
    "Dear",
)  # fmt: skip


def write(llm: Llama, n_windows: int, window: int, first: int = 0) -> NDArray[np.int32]:
    """Let a model write windows of text.

    Args:
        llm: the model, opened with a seed, so that it repeats itself.
        n_windows: how many.
        window: tokens of each: llm.n_ctx.
        first: number of the first of them, by which beginnings are chosen.

    Returns:
        Token ids (n_windows, window), BOS included.

    Raises:
        ValueError: the model has no tokenizer.
    """
    beginnings = [_beginning(llm.tokenizer, first + i) for i in range(n_windows)]
    texts = llm.generate(beginnings, temperature=1.0, top_p=1.0, max_tokens=window - 1, ignore_eos=True)
    rows = [(ids + text.token_ids)[:window] for ids, text in zip(beginnings, texts, strict=True)]
    return np.array(rows, np.int32)


def _beginning(tokenizer: Tokenizer, i: int) -> list[int]:
    bos = tokenizer.with_bos([])
    if bos:
        return bos
    try:
        return tokenizer.encode(_BEGINNINGS[i % len(_BEGINNINGS)])[:1]
    except ValueError:  # a vocabulary without these letters
        return [i % tokenizer.vocab_size]
