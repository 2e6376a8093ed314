"""GGUF checkpoints of the architectures "llama" and "qwen2": one file with the config, the tokenizer and the weights.

A model may also be cut into files NAME-00001-of-00003.gguf: the first one has the metadata, each has some tensors
(gguf_parts.py).

wq and wk of "llama" rotate adjacent rows, as in model.py: converters undo the permutation of Hugging Face checkpoints.
Those of "qwen2" rotate the two halves of a head, as in a Hugging Face checkpoint (row_order.py).
gguf_header.py parses the file, gguf_blocks.py decodes the quantized types, and gguf_tokenizer.py makes the
tokenizer. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig, RopeScaling, default_head_dim
from ..errors import CheckpointError
from ..families import ContextLimit, refusal
from ..shown import shown
from ..storage.mapped import MappedFile
from ..storage.tensor_info import TensorInfo
from .base import Checkpoint, LazyTensor
from .gguf_blocks import BLOCK_TYPES, dequantize
from .gguf_header import Metadata, is_gguf
from .gguf_parts import open_parts
from .gguf_tokenizer import read_tokenizer
from .row_order import read_in_our_order
from .stored_tensor import StoredTensor
from .tensor_names import TensorNames, check_tensors
from .tokenizer_files import read_tokenizer_file

__all__ = ["NAMES", "GgufCheckpoint", "is_gguf"]

NAMES = TensorNames(
    "blk",
    {
        "tok_embeddings": "token_embd",
        "attention_norm": "attn_norm",
        "attention.wq": "attn_q",
        "attention.wk": "attn_k",
        "attention.wv": "attn_v",
        "attention.wo": "attn_output",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
        "norm": "output_norm",
        "output": "output",
    },
)
ARCHITECTURES = ("llama", "qwen2")
HALVES = ("qwen2",)  # those whose wq and wk rotate the halves of a head
ROPE_FACTORS = "rope_freqs.weight"


class GgufCheckpoint(Checkpoint):
    """A GGUF file. Quantized tensors are read as float32, F16 tensors as float16."""

    kind = "gguf"

    def __init__(self, path: str | os.PathLike[str], tokenizer: str | None = None) -> None:
        parts = open_parts(path)
        file, header = parts[0]
        self._places = {name: (part, info) for part, other in parts for name, info in other.tensors.items()}
        self._parts = [part for part, _ in parts]
        self._architecture = _architecture(header.metadata)
        window = header.metadata.find(f"{self._architecture}.attention.sliding_window", int) or None  # 0: none
        self.limit = None if window is None else ContextLimit.of_window(window)
        self.config = _read_config(file, header.metadata, self._architecture, self._places, window)
        shapes = {name: info.shape for name, (_, info) in self._places.items() if name != ROPE_FACTORS}
        check_tensors(file.path, self.config, shapes, NAMES.of)
        self.files = [part.path for part in self._parts]
        if tokenizer is None:
            self.tokenizer = read_tokenizer(header.metadata, self.config.vocab_size)
        else:
            self.tokenizer = read_tokenizer_file(tokenizer, self.config.vocab_size)
            self.files.append(tokenizer)
        self.chat_template = header.metadata.find("tokenizer.chat_template", str)
        self.source = f"GGUF {shown(os.path.basename(file.path))}"

    def tensor(self, name: str) -> LazyTensor:
        tensor = self._stored(name)
        return read_in_our_order(name, tensor, self.config) if self._architecture in HALVES else tensor

    def _stored(self, name: str) -> LazyTensor:
        file, info = self._places[NAMES.of(name)]
        if info.dtype not in BLOCK_TYPES:
            return StoredTensor(file, info.dtype, info.shape, info.offset).lazy()
        rows = partial(_dequantized, file, info)
        release = partial(file.release, info.offset, info.nbytes)
        return LazyTensor(info.dtype, info.nbytes, partial(rows, 0, info.shape[0]), rows, release)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _dequantized(file: MappedFile, info: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
    """Read rows start .. stop - 1. Each row of a matrix is a whole number of blocks."""
    layout = BLOCK_TYPES[info.dtype].layout
    if len(info.shape) == 1:
        blocks = file.array(info.offset, layout, (info.nbytes // layout.itemsize,))
        return dequantize(info.dtype, blocks)[start:stop]
    row_bytes = info.nbytes // info.shape[0]
    n_blocks = (stop - start) * row_bytes // layout.itemsize
    blocks = file.array(info.offset + start * row_bytes, layout, (n_blocks,))
    return dequantize(info.dtype, blocks).reshape(stop - start, *info.shape[1:])


def _architecture(metadata: Metadata) -> str:
    architecture = metadata.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{metadata.path}: the architecture {refusal(architecture)}")
    return architecture


def _read_config(
    file: MappedFile,
    metadata: Metadata,
    architecture: str,
    places: Mapping[str, tuple[MappedFile, TensorInfo]],
    window: int | None,
) -> ModelConfig:
    if metadata.find(f"{architecture}.expert_count", int):
        raise CheckpointError(
            f"{file.path} is a mixture of experts, which is not supported; take a dense model, such as Mistral 7B"
        )
    if "token_embd.weight" not in places:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing")
    dim = metadata.get(f"{architecture}.embedding_length", int)
    n_heads = metadata.uniform(f"{architecture}.attention.head_count")
    rope_theta = metadata.find(f"{architecture}.rope.freq_base", float)
    max_seq_len = metadata.get(f"{architecture}.context_length", int)
    try:
        config = ModelConfig(
            dim=dim,
            hidden_dim=metadata.uniform(f"{architecture}.feed_forward_length"),
            n_layers=metadata.get(f"{architecture}.block_count", int),
            n_heads=n_heads,
            n_kv_heads=metadata.uniform(f"{architecture}.attention.head_count_kv", n_heads),
            head_dim=_head_dim(metadata, architecture, dim, n_heads),
            vocab_size=places["token_embd.weight"][1].shape[0],
            max_seq_len=max_seq_len if window is None else min(window, max_seq_len),
            norm_eps=metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon", float),
            rope_theta=10000.0 if rope_theta is None else rope_theta,
            rope_scaling=_rope_scaling(metadata, architecture),
            tied_embeddings="output.weight" not in places,
            qkv_bias="blk.0.attn_q.bias" in places,
            wo_bias="blk.0.attn_output.bias" in places,
        )
        return _with_rope_factors(config, metadata, *places[ROPE_FACTORS]) if ROPE_FACTORS in places else config
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _head_dim(metadata: Metadata, architecture: str, dim: int, n_heads: int) -> int:
    """Return head_dim. Raises ValueError if the file does not say it, and n_heads does not divide dim."""
    head_dim = metadata.find(f"{architecture}.attention.key_length", int)
    if head_dim is None:
        head_dim = default_head_dim(dim, n_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        key = f"{architecture}.{name}"
        value = metadata.find(key, int)
        if value not in (None, head_dim):
            raise CheckpointError(f"{metadata.path}: {key} is {value}, other than head_dim {head_dim}")
    return head_dim


def _rope_scaling(metadata: Metadata, architecture: str) -> RopeScaling | None:
    """Return the scaling in the metadata. Old files have a factor without a type.

    Raises ValueError for a number out of range.
    """
    keys = f"{architecture}.rope.scaling"
    kind = metadata.find(f"{keys}.type", str)
    if kind not in (None, "none", "linear", "yarn"):
        raise CheckpointError(f"{metadata.path}: rope scaling {kind!r:.40} is not supported (linear and yarn are)")
    factor = metadata.find(f"{keys}.factor", float)
    if factor is None:
        factor = metadata.find(f"{architecture}.rope.scale_linear", float)
    # Converters write 0 when there is no factor.
    if kind == "none" or factor is None or factor in (0.0, 1.0):
        return None
    if kind != "yarn":
        return RopeScaling("linear", factor)
    trained_len = metadata.find(f"{keys}.original_context_length", int)
    if trained_len is None:
        trained_len = metadata.get(f"{architecture}.context_length", int)
    fast, slow = (metadata.find(f"{keys}.yarn_{name}", float) for name in ("beta_fast", "beta_slow"))
    scaling = RopeScaling(
        "yarn",
        factor,
        original_max_seq_len=trained_len,
        beta_fast=32.0 if fast is None else fast,
        beta_slow=1.0 if slow is None else slow,
    )
    if metadata.find(f"{keys}.yarn_ext_factor", float) not in (None, -1.0, 1.0):  # -1: as usual
        raise CheckpointError(f"{metadata.path}: a {keys}.yarn_ext_factor other than 1 is not supported")
    # These come on top of the factor that follows from the scaling.
    more = 1.0
    for name in ("attn_factor", "yarn_attn_factor"):
        value = metadata.find(f"{keys}.{name}", float)
        more *= 1.0 if value is None else value
    return scaling if more == 1 else replace(scaling, attention_factor=more * scaling.default_attention_factor)


def _with_rope_factors(config: ModelConfig, metadata: Metadata, file: MappedFile, info: TensorInfo) -> ModelConfig:
    """Add the "llama3" scaling to a config, from a tensor with one divisor per frequency.

    Lower frequencies have larger divisors, and the divisor of the lowest one is the factor. The other parameters are
    the same in every Llama-3, unless our writer made the file; the divisors are checked against them. Raises
    CheckpointError, and ValueError for a parameter out of range.
    """
    shape = (config.head_dim // 2,)
    if info.dtype != "F32" or info.shape != shape:
        raise CheckpointError(
            f"{file.path}: tensor {ROPE_FACTORS} is {info.dtype} {info.shape} and should be F32 {shape}"
        )
    divisors = file.array(info.offset, np.float32, shape)
    if (divisors == 1).all():
        return config
    keys = f"{metadata.get('general.architecture', str)}.rope.scaling"
    low = metadata.find(f"{keys}.low_freq_factor", float)
    high = metadata.find(f"{keys}.high_freq_factor", float)
    context = metadata.find(f"{keys}.original_context_length", int)
    usual = RopeScaling("llama3", float(divisors.max()))
    scaling = replace(
        usual,
        low_freq_factor=usual.low_freq_factor if low is None else low,
        high_freq_factor=usual.high_freq_factor if high is None else high,
        original_max_seq_len=usual.original_max_seq_len if context is None else context,
    )
    scaled = replace(config, rope_scaling=scaling)
    plain = replace(config, rope_scaling=None)
    expected = np.divide(plain.rope_frequencies(), scaled.rope_frequencies())
    if config.rope_scaling is not None or not np.allclose(divisors, expected, rtol=1e-4, atol=0):
        raise CheckpointError(
            f"{file.path}: the rope scaling in tensor {ROPE_FACTORS} is not Llama-3's, which is the one supported"
        )
    return scaled
