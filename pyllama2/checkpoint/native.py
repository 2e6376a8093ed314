"""Our own file read as a checkpoint: the input of `quantize`, and of `export` to another dtype."""

from __future__ import annotations

import os

from ..modelfile import ModelFile
from .base import Checkpoint, LazyTensor, with_overrides


class NativeCheckpoint(Checkpoint):
    """One of our files; quantized tensors are read as the float32 numbers they stand for."""

    kind = "pyllama2"

    def __init__(self, path: str | os.PathLike[str], *, max_seq_len: int | None, norm_eps: float | None) -> None:
        self._model = ModelFile.open(path)
        self.config = with_overrides(self._model.config, max_seq_len=max_seq_len, norm_eps=norm_eps)
        self.tokenizer = self._model.tokenizer
        self.chat_template = self._model.chat_template
        self.files = [os.fspath(path)]
        self.source = self._model.source

    def tensor(self, name: str) -> LazyTensor:
        weight = self._model.weights[name]
        read = weight.dequantize if weight.scales is not None else lambda: weight.data
        return LazyTensor(weight.type, read, lambda: None)
