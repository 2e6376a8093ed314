"""Writes the GGUF file of make_random_model.py. All matrices have one type. The tokenizer has made-up words.

Rows of wq and wk stay as they are: for the architecture "llama" GGUF rotates neighbouring pairs, as Meta does.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Blocks of 32 numbers are quantized, and the numbers of RandomWeights repeat. So for a large model a table is made first:
for each place in the repeated numbers, the quantized block that begins there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_tokenizer import vocabulary

from pyllama2.checkpoint.gguf import NAMES
from pyllama2.config import ModelConfig

if TYPE_CHECKING:
    from random_weights import RandomWeights

TYPES = ("f32", "f16", "q8_0", "q4_0")
_BLOCK_SIZE = 32  # numbers of a quantized block
_CHUNK = 1 << 20  # numbers that are quantized at a time, so that temporary arrays are small


def write_gguf(path: str, config: ModelConfig, weights: RandomWeights, type: str) -> None:
    """Write a file of matrices of type, one of TYPES, and float32 norms. One tensor is in memory at a time."""
    stored = GGMLQuantizationType[type.upper()]
    writer = gguf.GGUFWriter(path, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer, config.vocab_size)
    for name, shape in weights.shapes.items():
        kind = GGMLQuantizationType.F32 if len(shape) == 1 else stored
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block_size:
            raise SystemExit(f"{name} of shape {shape} cannot be cut into blocks of {block_size}")
        row_bytes = shape[-1] // block_size * block_bytes
        nbytes = int(np.prod(shape[:-1])) * row_bytes
        quantized = kind is not GGMLQuantizationType.F32 and kind is not GGMLQuantizationType.F16
        dtype = np.dtype(np.uint8 if quantized else np.float32 if kind is GGMLQuantizationType.F32 else np.float16)
        file_shape = (*shape[:-1], row_bytes) if quantized else shape
        writer.add_tensor_info(NAMES.of(name), file_shape, dtype, nbytes, raw_dtype=kind if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    encode = _encoder(config, weights, stored)
    for name, shape in weights.shapes.items():
        writer.write_tensor_data(weights[name].astype(np.float32) if len(shape) == 1 else encode(name))
    writer.close()


def _encoder(config: ModelConfig, weights: RandomWeights, type: GGMLQuantizationType) -> Callable[[str], NDArray[Any]]:
    """Make a function from the name of a matrix to its contents in the file."""
    if type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        dtype = np.float32 if type is GGMLQuantizationType.F32 else np.float16
        return lambda name: weights[name].astype(dtype, copy=False)
    tables: dict[int, NDArray[np.uint8]] = {}

    def encode(name: str) -> NDArray[np.uint8]:
        rows, columns = weights.shapes[name]
        if config.n_parameters < 2 * _BLOCK_SIZE * weights.period:  # the tables would be more work
            return quantized(weights[name].reshape(-1), type).reshape(rows, -1)
        if columns not in tables:
            tables[columns] = table_of_blocks(weights.numbers(columns), type)
        starts = weights.starts[name] + _BLOCK_SIZE * np.arange(rows * columns // _BLOCK_SIZE)
        return np.take(tables[columns], starts % weights.period, axis=0).reshape(rows, -1)

    return encode


def table_of_blocks(numbers: NDArray[np.float16], type: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Make a table whose row i is the quantized block of numbers i to i + 31. The numbers start again after the end."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[type]
    table = np.empty((len(numbers), block_bytes), np.uint8)
    endless = np.concatenate([numbers, numbers[:_BLOCK_SIZE]])
    windows = np.lib.stride_tricks.sliding_window_view(endless, _BLOCK_SIZE)
    step = _CHUNK // _BLOCK_SIZE
    for start in range(0, len(numbers), step):
        part = windows[start : min(start + step, len(numbers))]
        table[start : start + len(part)] = gguf.quants.quantize(part.astype(np.float32), type)
    return table


def quantized(numbers: NDArray[np.float16], type: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Quantize numbers to blocks (len(numbers) / 32, bytes of a block)."""
    parts = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
    return np.concatenate(
        [gguf.quants.quantize(part.astype(np.float32).reshape(-1, _BLOCK_SIZE), type) for part in parts]
    )


def _add_config(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_name("random weights")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    pieces = vocabulary(vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([type for _, _, type in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
