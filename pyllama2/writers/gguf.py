"""Writes a model as a GGUF file, for llama.cpp and the programs that use it.

Its architecture is "llama", or "qwen2" for a model with biases of wq, wk and wv, whose wq and wk are then in the order
of Hugging Face. The keys are those that checkpoint/gguf.py reads. Matrices are F32, F16 or Q8_0, norms and biases are
F32. A matrix whose rows are not whole blocks of 32 numbers is F16 in a file of Q8_0. The "llama3" scaling of RoPE is a
tensor with one divisor for each frequency.

    Q8_0: d = largest |x| of 32 numbers / 127, in float16; q = x / d, rounded, with the d that was not rounded yet

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ggml-quants.c for Q8_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf import HALVES, NAMES, ROPE_FACTORS
from ..checkpoint.row_order import in_their_order
from ..config import ModelConfig, RopeScaling
from ..errors import CheckpointError
from ..process.interrupts import Interrupts
from ..storage.floats import as_float
from ..storage.new_file import NewFile
from .gguf_file import GgufFile, Value
from .gguf_tokenizer import tokenizer_keys

_TYPES = {"float32": "F32", "float16": "F16", "q8": "Q8_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}
_BLOCK = 32
_ROWS = 256  # that are quantized at a time


def write_gguf(
    checkpoint: Checkpoint,
    out: str,
    dtype: str,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Write an open checkpoint.

    Args:
        checkpoint: stays open.
        out: path of the file to write.
        dtype: type of the matrices, "float32", "float16" or "q8".
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: the tokenizer cannot be expressed, a number does not fit, or out cannot be written.
    """
    config = checkpoint.config
    kinds = {name: _type_of(shape, _TYPES[dtype]) for name, shape in config.tensor_shapes().items()}
    tensors = {NAMES.of(name): (kinds[name], shape) for name, shape in config.tensor_shapes().items()}
    divisors = _rope_divisors(config)
    if divisors is not None:
        tensors = {ROPE_FACTORS: ("F32", divisors.shape), **tensors}
    architecture = _architecture(config)
    keys = _keys(checkpoint, architecture, _TYPES[dtype])
    done, total = 0, config.n_parameters
    with Interrupts() as interrupts, NewFile(out, interrupts) as file, interrupts.allowed():
        gguf = GgufFile(file, keys, tensors)
        if divisors is not None:
            gguf.write(ROPE_FACTORS, divisors.tobytes())
        for name, shape, tensor in checkpoint.tensors():
            numpy_type = np.dtype(np.float16 if kinds[name] == "F16" else np.float32)
            array = as_float(name, tensor.read(), numpy_type)
            if architecture in HALVES:
                array = in_their_order(name, array, config)
            data = _q8_0(name, array) if kinds[name] == "Q8_0" else np.ascontiguousarray(array).data.cast("B")
            gguf.write(NAMES.of(name), data)
            done += prod(shape)
            if progress is not None:
                progress(done, total, name)


def _type_of(shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and shape[1] % _BLOCK else kind


def _q8_0(name: str, matrix: NDArray[np.float32]) -> bytes:
    """The blocks of a matrix. Raises CheckpointError for a number whose d is no float16."""
    layout = np.dtype([("d", "<f2"), ("codes", "i1", _BLOCK)])
    blocks = np.empty((len(matrix), matrix.shape[1] // _BLOCK), layout)
    for start in range(0, len(matrix), _ROWS):
        part = matrix[start : start + _ROWS].reshape(-1, matrix.shape[1] // _BLOCK, _BLOCK)
        scales = np.abs(part).max(-1) / np.float32(127)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.where(scales[..., None] > 0, part / scales[..., None], 0)
        with np.errstate(over="ignore"):
            blocks["d"][start : start + _ROWS] = scales
        if np.isinf(blocks["d"][start : start + _ROWS]).any():
            largest = part.flat[np.abs(part).argmax()]
            raise CheckpointError(f"tensor {name}: the number {largest:g} does not fit into Q8_0")
        blocks["codes"][start : start + _ROWS] = np.copysign(np.floor(np.abs(codes) + 0.5), codes)
    return blocks.tobytes()


def _architecture(config: ModelConfig) -> str:
    """Return "qwen2" for what that can express. "llama" may have biases, too, but few programs look for them."""
    is_llama3 = config.rope_scaling is not None and config.rope_scaling.kind == "llama3"
    return "qwen2" if config.qkv_bias and not config.wo_bias and not is_llama3 else "llama"


def _keys(checkpoint: Checkpoint, architecture: str, kind: str) -> dict[str, Value]:
    config = checkpoint.config
    keys: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": checkpoint.source,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        f"{architecture}.vocab_size": config.vocab_size,
        f"{architecture}.block_count": config.n_layers,
        f"{architecture}.context_length": config.max_seq_len,
        f"{architecture}.embedding_length": config.dim,
        f"{architecture}.feed_forward_length": config.hidden_dim,
        f"{architecture}.attention.head_count": config.n_heads,
        f"{architecture}.attention.head_count_kv": config.n_kv_heads,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.attention.value_length": config.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        f"{architecture}.rope.dimension_count": config.head_dim,
        f"{architecture}.rope.freq_base": float(config.rope_theta),
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        keys[f"{architecture}.rope.scaling.type"] = scaling.kind
        keys[f"{architecture}.rope.scaling.factor"] = float(scaling.factor)
    if scaling is not None and scaling != RopeScaling("llama3", scaling.factor) and scaling.kind == "llama3":
        # The divisors say it all to others. Our reader needs these, where they are not those of every Llama-3.
        keys[f"{architecture}.rope.scaling.low_freq_factor"] = float(scaling.low_freq_factor)
        keys[f"{architecture}.rope.scaling.high_freq_factor"] = float(scaling.high_freq_factor)
        keys[f"{architecture}.rope.scaling.original_context_length"] = scaling.original_max_seq_len
    if scaling is not None and scaling.kind == "yarn":
        keys[f"{architecture}.rope.scaling.original_context_length"] = scaling.original_max_seq_len
        keys[f"{architecture}.rope.scaling.yarn_beta_fast"] = float(scaling.beta_fast)
        keys[f"{architecture}.rope.scaling.yarn_beta_slow"] = float(scaling.beta_slow)
        attn_factor = config.rope_attention_factor / scaling.default_attention_factor
        keys[f"{architecture}.rope.scaling.attn_factor"] = attn_factor
    if checkpoint.tokenizer is not None:
        keys |= tokenizer_keys(checkpoint.tokenizer, config.vocab_size)
    else:
        keys["tokenizer.ggml.model"] = "no_vocab"
    if checkpoint.chat_template is not None:
        keys["tokenizer.chat_template"] = checkpoint.chat_template
    return keys


def _rope_divisors(config: ModelConfig) -> NDArray[np.float32] | None:
    """The divisors of the frequencies for the "llama3" scaling; None without it."""
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return None
    plain = replace(config, rope_scaling=None).rope_frequencies()
    return np.divide(plain, config.rope_frequencies()).astype(np.float32)
