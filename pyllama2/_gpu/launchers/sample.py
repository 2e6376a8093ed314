"""Samples tokens from logits on the device, by the rules of sampler.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sampling.sampler import Draw
from ..source import compile_module
from .arguments import expect_at_least

THREADS = 1024
MAX_VOCAB_SIZE = 1 << 22
# The struct Draw of sample.cu.
DRAW = np.dtype(
    [("temperature", "f4"), ("top_k", "i4"), ("top_p", "u8"), ("min_p", "u8"), ("uniform", "u8")]
)  # fmt: skip
DRAW_WORDS = DRAW.itemsize // 8  # of uint64
_FRACTION, _WEIGHT = 1 << 64, 1 << 44


def encode(draws: Sequence[Draw], out: NDArray[np.uint64]) -> None:
    """Write draws to the first rows of out (n, DRAW_WORDS), as the kernel takes them."""
    rows = out[: len(draws)].view(DRAW).reshape(-1)
    for i, draw in enumerate(draws):
        top_p = 0 if draw.top_p >= 1 else max(1, int(draw.top_p * _FRACTION))
        top_k, min_p = min(draw.top_k, MAX_VOCAB_SIZE), int(draw.min_p * _WEIGHT)
        rows[i] = draw.temperature, top_k, top_p, min_p, int(draw.uniform * _FRACTION)


class Sample:
    """Samples tokens: the likeliest one, or one by a random number."""

    def __init__(self, cupy: Any) -> None:
        self._kernel = compile_module(cupy, ["sample"], []).get_function("sample")

    def __call__(
        self, logits: Any, n: int, vocab_size: int, draws: Any, sampled: Any, tokens: Any, positions: Any
    ) -> None:
        """Launch the kernel.

        Args:
            logits: (n, vocab_size) float32.
            n: number of tokens to sample.
            vocab_size: of the model.
            draws: (n, DRAW_WORDS) uint64, as encode() writes them.
            sampled: (n,) int32 for the tokens; -1 where logits are not finite.
            tokens, positions: (n,) int32. They become the input of the next step: the token, and the position + 1.
        """
        if vocab_size > MAX_VOCAB_SIZE:
            raise ValueError(f"a vocabulary may have {MAX_VOCAB_SIZE} tokens, not {vocab_size}")
        self._kernel((n,), (THREADS,), (
            expect_at_least("logits", logits, "float32", n * vocab_size), np.int32(vocab_size),
            expect_at_least("draws", draws, "uint64", n * DRAW_WORDS),
            *(expect_at_least(name, array, "int32", n)
              for name, array in (("sampled", sampled), ("tokens", tokens), ("positions", positions))),
        ))  # fmt: skip
