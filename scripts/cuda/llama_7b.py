"""Llama-2 7B: its dimensions, and the bytes that a token reads."""

from __future__ import annotations

import math

import cuda_kernels
import numpy as np

DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, HEAD_DIM, VOCAB_SIZE = 4096, 11008, 32, 32, 128, 32000
GROUP = 64


def matrix_bytes(type: str, parts: tuple[int, ...], columns: int, group: int = GROUP) -> int:
    """Return the bytes of a matrix on the device."""
    shapes = cuda_kernels.layout.matrix_arrays(type, parts, columns, group)
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())


def token_bytes(output_type: str, group: int = GROUP) -> int:
    """Return the bytes that a token at position 0 reads: weights, one row of the embedding, keys and values."""
    wqkv, wo, w13, w2 = ((DIM,) * 3, DIM), ((DIM,), DIM), ((HIDDEN_DIM,) * 2, DIM), ((DIM,), HIDDEN_DIM)
    layer = sum(matrix_bytes("q4", parts, columns, group) for parts, columns in (wqkv, wo, w13, w2))
    norms = (2 * N_LAYERS + 1) * DIM * 4
    embedding = DIM // 2 + DIM // group * 2
    keys_and_values = N_LAYERS * 2 * DIM * 2
    return N_LAYERS * layer + matrix_bytes(output_type, (VOCAB_SIZE,), DIM, group) + norms + embedding + keys_and_values
