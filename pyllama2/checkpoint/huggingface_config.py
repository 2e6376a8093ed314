"""Reads config.json of a Hugging Face Llama, Mistral or Qwen2.

Fields and their defaults: https://huggingface.co/docs/transformers/model_doc/llama#transformers.LlamaConfig, and the
same pages of mistral and qwen2.
The settings of RoPE are in rope_theta and rope_scaling, or since transformers 5 in rope_parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig, default_head_dim
from ..errors import CheckpointError
from ..families import FAMILIES, ContextLimit, refused
from .huggingface_rope import read_rope
from .json_file import JsonObject
from .quantization_config import Packing, read_packing

_NUMBER = (float, int)
_SLIDES = "sliding_attention"  # in layer_types
_USUAL_WINDOW = 4096  # of a config that does not say it


@dataclass(frozen=True)
class Description:
    """What a config.json says.

    Attributes:
        config: the model's dimensions.
        limit: the longest context that can be computed; None: any.
        packing: how quantized matrices are stored. None: there are none.
        file: the parsed file, which also names special tokens.
    """

    config: ModelConfig
    limit: ContextLimit | None
    packing: Packing | None
    file: JsonObject


def read_config(path: str) -> Description:
    """Read a config.json.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is damaged, the model is not of a known kind, or a setting changes the computation
            in a way that is not supported.
    """
    values = JsonObject.read(path)
    kind = _kind(values)
    _refuse_unsupported(values)
    packing = read_packing(values)
    dim, n_heads = values.positive("hidden_size"), values.positive("num_attention_heads")
    head_dim = values.get("head_dim", int)
    max_seq_len = values.positive("max_position_embeddings", 2048)
    rope_theta, rope_scaling, trained_len = read_rope(values, max_seq_len)
    limit = None
    if trained_len is not None:
        limit = ContextLimit(trained_len, "dynamic RoPE scaling, which begins there, is not supported")
    elif rope_scaling is not None and rope_scaling.kind == "yarn":
        max_seq_len = max(max_seq_len, int(rope_scaling.original_max_seq_len * rope_scaling.factor))
    window = _sliding_window(values, kind)
    if window is not None and (limit is None or window < limit.n_tokens):
        limit = ContextLimit.of_window(window)
    biases = kind == "qwen2" or (kind == "llama" and values.get("attention_bias", bool, False))
    try:
        config = ModelConfig(
            dim=dim,
            hidden_dim=values.positive("intermediate_size"),
            n_layers=values.positive("num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=values.positive("num_key_value_heads", 8 if kind == "mistral" else n_heads),
            head_dim=default_head_dim(dim, n_heads) if head_dim is None else head_dim,
            vocab_size=values.positive("vocab_size"),
            max_seq_len=max_seq_len if limit is None else min(max_seq_len, limit.n_tokens),
            norm_eps=values.get("rms_norm_eps", _NUMBER, 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tied_embeddings=values.get("tie_word_embeddings", bool, False),
            qkv_bias=biases,
            wo_bias=biases and kind == "llama",
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Description(config, limit, packing, values)


def _kind(values: JsonObject) -> str:
    """Return "llama", "mistral" or "qwen2"."""
    names = [str(name) for name in values.get("architectures", list, [])]
    kind: str = values.get("model_type", str, FAMILIES.get(names[0] if names else "", "llama"))
    if reason := refused(values.values):
        raise CheckpointError(f"{values.path}: {reason}")
    if any(FAMILIES.get(name, name) != kind for name in names):
        raise CheckpointError(f"{values.path}: architectures {str(names)[:80]} contradict model_type {kind!r}")
    return kind


def _refuse_unsupported(values: JsonObject) -> None:
    activation = values.get("hidden_act", str, "silu")
    if activation != "silu":
        raise CheckpointError(f"{values.path}: hidden_act {activation[:40]!r} is not supported (silu is)")
    if values.get("mlp_bias", bool, False):
        raise CheckpointError(
            f"{values.path}: mlp_bias is true; biases of the feed-forward network are not supported (attention_bias is)"
        )
    if values.get("num_local_experts", int) or values.get("num_experts", int):
        raise CheckpointError(f"{values.path}: a mixture of experts is not supported; take a dense model of the family")


def _sliding_window(values: JsonObject, kind: str) -> int | None:
    """Return the number of tokens that each token sees, None for all."""
    slides = kind == "mistral"
    if kind == "qwen2":  # in some layers
        slides = values.get("use_sliding_window", bool, False) or _SLIDES in values.get("layer_types", list, [])
    if not slides or values.values.get("sliding_window", _USUAL_WINDOW) is None:
        return None
    return values.positive("sliding_window", _USUAL_WINDOW)
