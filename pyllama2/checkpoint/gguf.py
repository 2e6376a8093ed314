"""GGUF checkpoints of architecture "llama": one file with the config, the tokenizer and the weights.

wq and wk turn neighbouring rows, as model.py does: converters have permuted Hugging Face's back.
gguf_header.py parses the file, gguf_blocks.py knows the quantized types, gguf_tokenizer.py makes the
tokenizer. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Made by open_checkpoint().
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig, RopeScaling
from ..errors import CheckpointError
from ..mapped import MappedFile
from .base import Checkpoint, LazyTensor, with_overrides
from .gguf_blocks import BLOCK_TYPES, dequantize
from .gguf_header import Header, Metadata, TensorInfo, is_gguf, read_header
from .gguf_tokenizer import read_tokenizer
from .stored_tensor import StoredTensor
from .tokenizer_files import read_tokenizer_file

__all__ = ["GgufCheckpoint", "is_gguf"]

_log = logging.getLogger(__name__)

_TOP = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
_IN_LAYER = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.wq.weight": "attn_q.weight",
    "attention.wk.weight": "attn_k.weight",
    "attention.wv.weight": "attn_v.weight",
    "attention.wo.weight": "attn_output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"


class GgufCheckpoint(Checkpoint):
    """A GGUF file. Quantized tensors are read as float32, F16 ones as float16.

    tokenizer is the path of a tokenizer file for a GGUF file that has no tokenizer. Raises
    CheckpointError, and ValueError for overrides out of range.
    """

    kind = "gguf"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: str | None = None,
        max_seq_len: int | None = None,
        norm_eps: float | None = None,
    ) -> None:
        self._file = MappedFile(path)
        header = read_header(self._file)
        config = _read_config(self._file, header)
        self._tensors = _checked_tensors(self._file.path, config, header.tensors)
        self.config = with_overrides(config, max_seq_len=max_seq_len, norm_eps=norm_eps)
        self.files = [self._file.path]
        self.tokenizer = read_tokenizer(header.metadata, config.vocab_size)
        if tokenizer is not None and self.tokenizer is not None:
            _log.warning("%s has a tokenizer of its own; %s is not used", self._file.path, tokenizer)
        elif tokenizer is not None:
            self.tokenizer = read_tokenizer_file(tokenizer, config.vocab_size)
            self.files.append(tokenizer)
        self.chat_template = header.metadata.find("tokenizer.chat_template", str)
        self.source = f"GGUF {os.path.basename(self._file.path)}"

    def tensor(self, name: str) -> LazyTensor:
        info = self._tensors[name]
        if info.type not in BLOCK_TYPES:
            return StoredTensor(self._file, info.type, info.shape, info.offset).lazy()
        release = partial(self._file.release, info.offset, info.nbytes)
        return LazyTensor(info.type, partial(self._dequantized, info), release)

    def close(self) -> None:
        self._file.close()

    def _dequantized(self, info: TensorInfo) -> NDArray[np.float32]:
        layout = BLOCK_TYPES[info.type].layout
        blocks = self._file.array(info.offset, layout, (info.nbytes // layout.itemsize,))
        return dequantize(info.type, blocks).reshape(info.shape)


def _read_config(file: MappedFile, header: Header) -> ModelConfig:
    metadata = header.metadata
    architecture = metadata.get("general.architecture", str)
    if architecture != "llama":
        raise CheckpointError(f"{file.path}: the architecture {architecture[:40]!r} is not supported (llama is)")
    if (metadata.find("split.count", int) or 1) > 1:
        raise CheckpointError(f"{file.path} is one part of a split model; join its parts first (llama-gguf-split --merge)")
    if metadata.find("llama.expert_count", int):
        raise CheckpointError(f"{file.path} is a mixture of experts, which is not supported")
    if "token_embd.weight" not in header.tensors:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing")
    n_heads = metadata.uniform("llama.attention.head_count")
    ...
