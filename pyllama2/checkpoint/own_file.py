"""Our own file as a checkpoint, so that it can be quantized or exported to another dtype."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from numpy.typing import NDArray

from ..storage.model_file import StoredModel
from ..storage.weights import ROW_BLOCK, Weight
from .base import Checkpoint, LazyTensor


class OwnCheckpoint(Checkpoint):
    """One of our files. Quantized tensors are dequantized to float32.

    Attributes:
        model: the mapped file.
    """

    kind = "pyllama2"

    def __init__(self, path: str | os.PathLike[str], tokenizer: str | None = None) -> None:
        self.model = StoredModel.open(path)
        self.config = self.model.config
        self.tokenizer = self.model.tokenizer
        if tokenizer is not None:
            from .tokenizer_files import read_tokenizer_file  # as late as the readers, see readers.py

            self.tokenizer = read_tokenizer_file(tokenizer, self.config.vocab_size)
        self.chat_template = self.model.chat_template
        self.files = [os.fspath(path), *([] if tokenizer is None else [tokenizer])]
        self.source = self.model.source

    def tensor(self, name: str) -> LazyTensor:
        weight = self.model.weights[name]
        read = weight.dequantize if weight.scales is not None else lambda: weight.data
        return LazyTensor(weight.type, weight.nbytes, read, partial(_rows, weight), lambda: self._release(weight))

    def _release(self, weight: Weight) -> None:
        assert self.model.file is not None  # opened above
        for array in (weight.data, weight.scales):
            if array is not None:
                self.model.file.release_view(array)


def _rows(weight: Weight, start: int, stop: int) -> NDArray[Any]:
    """Read rows start .. stop - 1 of a tensor. Of a quantized one, the whole blocks of these rows are read."""
    if weight.scales is None:
        return weight.data[start:stop]
    blocks = slice(start // ROW_BLOCK, -(-stop // ROW_BLOCK))
    first = blocks.start * ROW_BLOCK
    shape = (stop - first, *weight.shape[1:])
    part = Weight(weight.name, weight.type, shape, weight.data[blocks], weight.scales[blocks], weight.group_size)
    return part.dequantize()[start - first :]
