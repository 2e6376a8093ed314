"""Writes the tiny models of tiny.py in the formats of others, for the tests of the readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyllama2.config import ModelConfig

Weights = Mapping[str, NDArray[np.float32]]
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rounded(weights: Weights, dtype: str) -> dict[str, NDArray[np.float32]]:
    """weights as float32 after they went through a stored type: "F32", "F16" or "BF16"."""
    return {
        name: torch.from_numpy(array.copy()).to(TORCH_DTYPES[dtype]).float().numpy() for name, array in weights.items()
    }


def write_meta(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    *,
    n_shards: int = 1,
    dtype: str = "F32",
    embedding_axis: int = 1,
    params: dict[str, Any] | None = None,
) -> Path:
    """params.json and consolidated.NN.pth by torch.save, cut as fairscale's layers do."""
    folder.mkdir(exist_ok=True)
    values = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "vocab_size": -1,
        "norm_eps": config.norm_eps,
    }
    if config.n_kv_heads != config.n_heads:
        values["n_kv_heads"] = config.n_kv_heads
    (folder / "params.json").write_text(json.dumps(values if params is None else params))
    for i in range(n_shards):
        shard = {}
        for name, array in weights.items():
            tensor = torch.from_numpy(array.copy()).to(TORCH_DTYPES[dtype])
            if tensor.ndim == 2:
                columns = name.endswith(("wo.weight", "w2.weight")) or (
                    name.startswith("tok_embeddings") and embedding_axis == 1
                )
                tensor = torch.chunk(tensor, n_shards, 1 if columns else 0)[i].clone()
            shard[name] = tensor
        shard["rope.freqs"] = torch.ones(config.head_dim // 2)
        torch.save(shard, folder / f"consolidated.{i:02}.pth")
    return folder


def huggingface_config(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """config.json; changes replace fields, and None removes one."""
    qwen2 = config.qkv_bias and not config.wo_bias
    values: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM" if qwen2 else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen2 else "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if config.wo_bias:
        values["attention_bias"] = True
    if scaling := config.rope_scaling:
        values["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            values["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_seq_len,
            }
        elif scaling.kind == "yarn":
            values["rope_scaling"]["original_max_position_embeddings"] = scaling.original_max_seq_len
    return {name: value for name, value in (values | changes).items() if value is not None}


def huggingface_tensors(config: ModelConfig, weights: Weights, dtype: str = "F32") -> dict[str, torch.Tensor]:
    """The tensors under Hugging Face's names, wq and wk permuted as its conversion script does."""
    names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    in_layer = {
        "attention_norm": "input_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    tensors = {}
    for name, array in weights.items():
        stem, _, kind = name.rpartition(".")
        tensor = torch.from_numpy(array.copy())
        if stem.endswith(("wq", "wk")):
            n_heads = config.n_heads if stem.endswith("wq") else config.n_kv_heads
            tensor = tensor.view(n_heads, config.head_dim // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)
        if stem.startswith("layers."):
            _, layer, rest = stem.split(".", 2)
            stem = f"model.layers.{layer}.{in_layer[rest]}"
        else:
            stem = names[stem]
        tensors[f"{stem}.{kind}"] = tensor.to(TORCH_DTYPES[dtype]).contiguous()
    return tensors


def write_huggingface(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    *,
    dtype: str = "F32",
    n_files: int = 1,
    extra: Mapping[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Path:
    """config.json and safetensors files by the safetensors package; extra tensors, changes of config.json."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(huggingface_config(config, **changes)))
    tensors = huggingface_tensors(config, weights, dtype) | dict(extra or {})
    if n_files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for i in range(n_files):
        place = f"model-{i + 1:05}-of-{n_files:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::n_files]}
        save_file(part, folder / place, {"format": "pt"})
        weight_map |= dict.fromkeys(part, place)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def llama2c_bytes(config: ModelConfig, weights: Weights, version: int, group_size: int = 8) -> bytes:
    """A .bin file of llama2.c: version 0 or 1 in float32, version 2 in int8 groups."""
    numbers = [config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads]
    layers = [f"layers.{i}." for i in range(config.n_layers)]
    norms = [[layer + kind + ".weight" for layer in layers] for kind in ("attention_norm", "ffn_norm")]
    attention = [layer + f"attention.{w}.weight" for w in ("wq", "wk", "wv", "wo") for layer in layers]
    feed_forward = [layer + f"feed_forward.{w}.weight" for w in ("w1", "w2", "w3") for layer in layers]
    output = [] if config.tied_embeddings else ["output.weight"]
    if version == 0:
        vocab_size = config.vocab_size if config.tied_embeddings else -config.vocab_size
        order = ["tok_embeddings.weight", *norms[0], *attention, *norms[1], *feed_forward, "norm.weight"]
        rotations = np.zeros(config.max_seq_len * config.head_dim, np.float32)
        parts = [struct.pack("<7i", *numbers, vocab_size, config.max_seq_len)]
        parts += [weights[name].tobytes() for name in order]
        return b"".join([*parts, rotations.tobytes(), *(weights[name].tobytes() for name in output)])
    header = struct.pack("<I8iB", 0x616B3432, version, *numbers, config.vocab_size, config.max_seq_len, not output)
    header += struct.pack("<i", group_size) if version == 2 else b""
    parts = [header.ljust(256, b"\0")]
    parts += [weights[name].tobytes() for name in [*norms[0], *norms[1], "norm.weight"]]
    for name in ["tok_embeddings.weight", *attention, *feed_forward, *output]:
        if version == 1:
            parts.append(weights[name].tobytes())
        else:
            codes, scales = llama2c_quantized(weights[name], group_size)
            parts += [codes.tobytes(), scales.tobytes()]
    return b"".join(parts)


def llama2c_quantized(matrix: NDArray[np.float32], group_size: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (groups, group_size) and scales (groups, 1)."""
    groups = matrix.reshape(-1, group_size)
    scales = np.abs(groups).max(1, keepdims=True) / np.float32(127)
    return np.round(groups / scales).astype(np.int8), scales


def llama2c_tokenizer(pieces: list[tuple[bytes, float]]) -> bytes:
    """A tokenizer .bin file."""
    parts = [struct.pack("<i", max(len(text) for text, _ in pieces))]
    parts += [struct.pack("<fi", score, len(text)) + text for text, score in pieces]
    return b"".join(parts)
