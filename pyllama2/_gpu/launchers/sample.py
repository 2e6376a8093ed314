"""The choice of tokens from logits on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sampling.sampler import Choice
from ..source import compile_module
from .arguments import expect_at_least

THREADS = 1024
MAX_VOCAB_SIZE = 1 << 22
# As Choice in sample.cu.
CHOICE = np.dtype(
    [("temperature", "f4"), ("top_k", "i4"), ("top_p", "u8"), ("min_p", "u8"), ("uniform", "u8")]
)  # fmt: skip
CHOICE_WORDS = CHOICE.itemsize // 8  # uint64
_FRACTION, _WEIGHT = 1 << 64, 1 << 44


def encode(choices: Sequence[Choice], out: NDArray[np.uint64]) -> None:
    """choices as the kernel takes them, to the first rows of out (n, CHOICE_WORDS)."""
    rows = out[: len(choices)].view(CHOICE).reshape(-1)
    for i, choice in enumerate(choices):
        top_p = 0 if choice.top_p >= 1 else max(1, int(choice.top_p * _FRACTION))
        top_k, min_p = min(choice.top_k, MAX_VOCAB_SIZE), int(choice.min_p * _WEIGHT)
        rows[i] = choice.temperature, top_k, top_p, min_p, int(choice.uniform * _FRACTION)


class Choose:
    """Greedy choice and sampling, by the rules of sampling.py."""

    def __init__(self, cupy: Any) -> None:
        self._kernel = compile_module(cupy, ["sample"], []).get_function("choose")

    def __call__(
        self, logits: Any, n: int, vocab_size: int, choices: Any, chosen: Any, tokens: Any, positions: Any
    ) -> None:
        """chosen int32 (n,) = a token for each of logits (n, vocab_size); -1 where they are not finite.

        choices            uint64 (n, CHOICE_WORDS), as encode() makes them
        tokens, positions  int32 (n,): become the next step's input, the choice and one more
        """
        if vocab_size > MAX_VOCAB_SIZE:
            raise ValueError(f"a vocabulary may have {MAX_VOCAB_SIZE} tokens, not {vocab_size}")
        self._kernel((n,), (THREADS,), (
            expect_at_least("logits", logits, "float32", n * vocab_size), np.int32(vocab_size),
            expect_at_least("choices", choices, "uint64", n * CHOICE_WORDS),
            *(expect_at_least(name, array, "int32", n)
              for name, array in (("chosen", chosen), ("tokens", tokens), ("positions", positions))),
        ))  # fmt: skip
