"""A short name for what a model computes, which changes when the results may change."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from .model_file import StoredModel

_SAMPLE = 4096  # bytes at each end of a tensor: a file of many gigabytes must not be read whole


def fingerprint(model: StoredModel, *facts: str) -> str:
    """Return 16 hexadecimal digits that stand for a model's weights, tokenizer and chat template, and for facts.

    Of each tensor, the bytes at its beginning and end count.
    """
    digest = hashlib.sha256()

    def add(data: bytes) -> None:
        digest.update(len(data).to_bytes(8, "little") + data)

    for fact in (repr(model.config), repr(model.quantization), model.chat_template or "", *facts):
        add(fact.encode("utf-8", "surrogatepass"))
    if model.tokenizer is not None:
        add(model.tokenizer.to_json().encode())
        add(model.tokenizer.data)
    for name, weight in model.weights.items():
        add(name.encode())
        for array in (weight.data, weight.scales):
            if array is not None:
                add(_ends(array))
    return digest.hexdigest()[:16]


def _ends(array: NDArray[np.generic]) -> bytes:
    flat = array.reshape(-1)
    n = _SAMPLE // flat.itemsize
    return flat[:n].tobytes() + flat[-n:].tobytes()
