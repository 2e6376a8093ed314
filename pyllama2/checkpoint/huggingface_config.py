"""Reads config.json of a Hugging Face Llama.

Fields and their defaults: https://huggingface.co/docs/transformers/model_doc/llama#transformers.LlamaConfig.
The settings of RoPE are in rope_theta and rope_scaling, or since transformers 5 in rope_parameters.
"""

from __future__ import annotations

from ..config import ModelConfig, RopeScaling, default_head_dim
from ..errors import CheckpointError
from .json_file import JsonObject

_NUMBER = (float, int)


def read_config(path: str) -> tuple[ModelConfig, JsonObject]:
    """Read a config.json.

    Args:
        path: the file.

    Returns:
        The model's dimensions, and the parsed file, which also names special tokens.

    Raises:
        CheckpointError: the file is damaged, the model is not a Llama, or a setting changes the computation in a way
            that is not supported.
    """
    values = JsonObject.read(path)
    _refuse_unsupported(values)
    dim, n_heads = values.positive("hidden_size"), values.positive("num_attention_heads")
    head_dim = values.get("head_dim", int)
    rope_theta, rope_scaling = _rope(values)
    try:
        config = ModelConfig(
            dim=dim,
            hidden_dim=values.positive("intermediate_size"),
            n_layers=values.positive("num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=values.positive("num_key_value_heads", n_heads),
            head_dim=default_head_dim(dim, n_heads) if head_dim is None else head_dim,
            vocab_size=values.positive("vocab_size"),
            max_seq_len=values.positive("max_position_embeddings", 2048),
            norm_eps=values.get("rms_norm_eps", _NUMBER, 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tied_embeddings=values.get("tie_word_embeddings", bool, False),
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config, values


def _refuse_unsupported(values: JsonObject) -> None:
    kinds = [*values.get("architectures", list, []), values.get("model_type", str, "llama")]
    if any(kind not in ("llama", "LlamaForCausalLM") for kind in kinds):
        raise CheckpointError(f"{values.path}: a model of type {str(kinds)[:120]} is not supported (llama is)")
    activation = values.get("hidden_act", str, "silu")
    if activation != "silu":
        raise CheckpointError(f"{values.path}: hidden_act {activation[:40]!r} is not supported (silu is)")
    for name in ("attention_bias", "mlp_bias"):
        if values.get(name, bool, False):
            raise CheckpointError(f"{values.path}: {name} is true; Llamas with biases are not supported")
    if values.get("quantization_config", dict) is not None:
        method = str(values.child("quantization_config").values.get("quant_method"))[:40]
        raise CheckpointError(f"{values.path}: weights quantized by {method} are not supported; use the original ones")


def _rope(values: JsonObject) -> tuple[float, RopeScaling | None]:
    """Return rope_theta and the scaling, None for no scaling."""
    name = "rope_parameters" if values.get("rope_parameters", dict) else "rope_scaling"
    rope = values.child(name)
    theta: float = rope.get("rope_theta", _NUMBER, values.get("rope_theta", _NUMBER, 10000.0))
    if values.get("partial_rotary_factor", _NUMBER, 1) != 1 or rope.get("partial_rotary_factor", _NUMBER, 1) != 1:
        raise CheckpointError(f"{values.path}: a partial_rotary_factor is not supported")
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise CheckpointError(f"{rope.path}: {kind[:40]!r} is not supported (linear and llama3 are)")
    factor = rope.get("factor", _NUMBER)
    try:
        if kind == "linear":
            return theta, RopeScaling(kind, factor)
        trained_len = rope.positive("original_max_position_embeddings")
        low, high = rope.get("low_freq_factor", _NUMBER), rope.get("high_freq_factor", _NUMBER)
        return theta, RopeScaling(kind, factor, low, high, trained_len)
    except ValueError as error:
        raise CheckpointError(f"{rope.path}: {error}") from error
