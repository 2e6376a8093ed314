"""Reads what a config.json says of RoPE: rope_theta and rope_scaling, or since transformers 5 rope_parameters.

Types and their fields: https://huggingface.co/docs/transformers/internal/rope_utils.
"""

from __future__ import annotations

import math

from ..config import RopeScaling
from ..errors import CheckpointError
from .json_file import JsonObject

_NUMBER = (float, int)
_MOST_MSCALE = 1000


def read_rope(values: JsonObject, max_seq_len: int) -> tuple[float, RopeScaling | None, int | None]:
    """Read the settings.

    Args:
        values: the config.json.
        max_seq_len: its max_position_embeddings.

    Returns:
        rope_theta; the scaling, None for no scaling; and the longest context, None if the scaling does not limit it.

    Raises:
        CheckpointError: the scaling is damaged or not supported.
    """
    name = "rope_parameters" if values.get("rope_parameters", dict) else "rope_scaling"
    rope = values.child(name)
    theta: float = rope.get("rope_theta", _NUMBER, values.get("rope_theta", _NUMBER, 10000.0))
    if values.get("partial_rotary_factor", _NUMBER, 1) != 1 or rope.get("partial_rotary_factor", _NUMBER, 1) != 1:
        raise CheckpointError(f"{values.path}: a partial_rotary_factor is not supported")
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return theta, None, None
    if kind == "dynamic":  # up to max_position_embeddings, it changes nothing
        return theta, None, max_seq_len
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckpointError(
            f"{rope.path}: {kind[:40]!r} is not supported (linear, dynamic, llama3 and yarn are); "
            "take a model without long context"
        )
    try:
        return theta, _scaling(rope, kind, max_seq_len), None
    except ValueError as error:
        raise CheckpointError(f"{rope.path}: {error}") from error


def _scaling(rope: JsonObject, kind: str, max_seq_len: int) -> RopeScaling:
    """Raises ValueError for a number that is missing or out of range."""
    factor = rope.get("factor", _NUMBER)
    if kind == "linear":
        return RopeScaling(kind, factor)
    if kind == "llama3":
        trained_len = rope.positive("original_max_position_embeddings")
        low, high = rope.get("low_freq_factor", _NUMBER), rope.get("high_freq_factor", _NUMBER)
        return RopeScaling(kind, factor, low, high, trained_len)
    if rope.get("truncate", bool, True) is False:
        raise ValueError("truncate false is not supported")
    trained_len = rope.positive("original_max_position_embeddings", max_seq_len)
    attention_factor = rope.get("attention_factor", _NUMBER)
    if attention_factor is None and isinstance(factor, _NUMBER) and factor > 1:
        mscale, mscale_all_dim = rope.get("mscale", _NUMBER), rope.get("mscale_all_dim", _NUMBER)
        if mscale and mscale_all_dim:
            if not (0 < mscale <= _MOST_MSCALE and 0 < mscale_all_dim <= _MOST_MSCALE):
                raise ValueError(f"mscale and mscale_all_dim must be above 0, and at most {_MOST_MSCALE}")
            attention_factor = _mscale(factor, mscale) / _mscale(factor, mscale_all_dim)
    return RopeScaling(
        kind,
        factor,
        original_max_seq_len=trained_len,
        beta_fast=rope.get("beta_fast", _NUMBER, 32.0),
        beta_slow=rope.get("beta_slow", _NUMBER, 1.0),
        attention_factor=attention_factor,
    )


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1
