"""Writes GGUF files for the tests: the tiny models of tiny.py by the gguf package, and any bytes by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as TensorType
from numpy.typing import NDArray

from pyllama2.checkpoint.gguf_blocks import BLOCK_TYPES
from pyllama2.config import ModelConfig

TOP = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
IN_LAYER = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{IN_LAYER[rest]}.{kind}"


def architecture_of(config: ModelConfig) -> str:
    """What converters call a model."""
    return "qwen2" if config.qkv_bias and not config.wo_bias else "llama"


def in_order(name: str, array: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """A tensor with its rows as converters store them: those of Qwen2 stay as Hugging Face has them."""
    n_heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])
    if n_heads is None or architecture_of(config) == "llama":
        return array
    return array.reshape(n_heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)


def model_keys(config: ModelConfig) -> dict[str, Any]:
    """The metadata that converters write for a model, without a tokenizer."""
    arch = architecture_of(config)
    keys: dict[str, Any] = {
        "general.name": "tiny",
        f"{arch}.block_count": config.n_layers,
        f"{arch}.context_length": config.max_seq_len,
        f"{arch}.embedding_length": config.dim,
        f"{arch}.feed_forward_length": config.hidden_dim,
        f"{arch}.attention.head_count": config.n_heads,
        f"{arch}.attention.head_count_kv": config.n_kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{arch}.rope.dimension_count": config.head_dim,
        f"{arch}.rope.freq_base": config.rope_theta,
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        keys |= {f"{arch}.rope.scaling.type": scaling.kind, f"{arch}.rope.scaling.factor": scaling.factor}
        if scaling.kind == "yarn":
            keys[f"{arch}.rope.scaling.original_context_length"] = scaling.original_max_seq_len
    return keys


def llama3_divisors(head_dim: int, theta: float, factor: float, context: int = 8192) -> NDArray[np.float32]:
    """rope_freqs.weight as llama.cpp's converter computes it, from wavelengths."""
    divisors = []
    for i in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * i / head_dim)
        if wavelength < context / 4:
            divisors.append(1.0)
        elif wavelength > context:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def stored(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """A tensor as the writer takes it; other types, which the gguf package cannot make, are random codes and scales."""
    if dtype == "F32":
        return array
    if dtype.endswith(("_0", "_1", "16")):
        return gguf.quants.quantize(array, TensorType[dtype])
    size, nbytes = gguf.GGML_QUANT_SIZES[TensorType[dtype]]
    rows, columns = array.shape
    blocks = np.random.default_rng(len(array)).integers(0, 256, (rows, columns // size, nbytes), np.uint8)
    fields = blocks.view(BLOCK_TYPES[dtype].layout)
    for name in {"d", "dmin"} & set(fields.dtype.names or ()):
        fields[name] = 1e-4
    return blocks.reshape(rows, -1)


def write_gguf(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    keys: Mapping[str, Any],
    types: Mapping[str, str] | None = None,
    architecture: str = "llama",
) -> Path:
    """tensors by their names in the file, already in the type that types names, float32 unless named."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif value is not None:
            kinds = {bool: "bool", int: "uint32", np.int32: "int32", float: "float32", str: "string"}
            kind = kinds.get(type(value), "array")
            getattr(writer, f"add_{kind}")(key, value)
    for name, array in tensors.items():
        stored_type = (types or {}).get(name)
        writer.add_tensor(name, array, raw_dtype=None if stored_type is None else TensorType[stored_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    dtype: str = "F32",
    keys: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """A model with its matrices in one type and its norms in float32; keys change the metadata, None removes one."""
    tensors = {}
    types = {}
    for name, array in weights.items():
        theirs = gguf_name(name)
        types[theirs] = "F32" if array.ndim == 1 else dtype
        tensors[theirs] = stored(in_order(name, array, config), types[theirs])
    keys = model_keys(config) | dict(keys or {})
    return write_gguf(path, tensors | dict(extra or {}), keys, types, architecture_of(config))


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9


def pair(name: str | bytes, value: int | float | str) -> bytes:
    """A key with a uint32, float32 or string."""
    if isinstance(value, str):
        return typed_pair(name, STRING, string(value))
    return typed_pair(name, FLOAT32 if isinstance(value, float) else UINT32, struct.pack(
        "<f" if isinstance(value, float) else "<I", value
    ))  # fmt: skip


def typed_pair(name: str | bytes, dtype: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", dtype) + value


def array_pair(name: str, dtype: int, count: int, elements: bytes) -> bytes:
    return typed_pair(name, ARRAY, struct.pack("<IQ", dtype, count) + elements)


def tensor_entry(name: str | bytes, dims: Sequence[int], dtype: int = 0, offset: int = 0) -> bytes:
    """dims as in the file: the length of a row first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, dtype, offset)


def file_bytes(
    pairs: Sequence[bytes],
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A file of the given parts; counts that are not given are true."""
    counts = [len(given) if count is None else count for count, given in ((n_tensors, tensors), (n_keys, pairs))]
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return header + bytes(-len(header) % 32) + data
