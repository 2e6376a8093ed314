"""Reads what a config.json, or an older quantize_config.json beside it, says of quantized weights.

    quant_method  "gptq" or "awq", which are read if they have 4 bits
    bits, group_size, desc_act, sym, checkpoint_format ("gptq", "gptq_v2")     of GPTQ
    bits, group_size, zero_point, version ("gemm")                             of AWQ

Source: https://huggingface.co/docs/transformers/main_classes/quantization.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import CheckpointError
from ..families import QUANT_INSTEAD
from .json_file import JsonObject

_OLD = "quantize_config.json"


@dataclass(frozen=True)
class Packing:
    """How all quantized matrices of a checkpoint are stored.

    Attributes:
        method: "GPTQ" or "AWQ".
        group_size: columns that share a scale. 0: all of a row.
        zero_offset: what is added to a stored zero.
        desc_act: whether columns of a group may lie apart.
    """

    method: str
    group_size: int
    zero_offset: int
    desc_act: bool


def read_packing(values: JsonObject) -> Packing | None:
    """Read the settings.

    Args:
        values: the config.json.

    Returns:
        None for a model whose weights are not quantized.

    Raises:
        CheckpointError: the settings are damaged, or of a kind that is not supported.
    """
    settings = values.child("quantization_config")
    old = os.path.join(os.path.dirname(values.path), _OLD)
    if not settings.values and os.path.exists(old):
        settings = JsonObject.read(old)
        settings.values.setdefault("quant_method", "gptq")
    if not settings.values:
        return None
    method = settings.get("quant_method", str).lower()  # families.py has refused others
    bits = settings.get("bits", int, settings.get("w_bit", int))
    layout = settings.get("checkpoint_format" if method == "gptq" else "version", str, "")
    known = ("", "gptq", "gptq_v2") if method == "gptq" else ("", "gemm", "exllama")
    if (
        bits != 4
        or layout.lower() not in known
        or settings.values.get("dynamic")
        or settings.values.get("is_marlin_format")
    ):
        what = f"{str(bits)[:20]} bits" if bits != 4 else repr(layout[:40] or "dynamic")
        raise CheckpointError(
            f"{settings.path}: {method.upper()} weights of {what} are not supported (4 bits in the format "
            f"{known[1]} are); {QUANT_INSTEAD}"
        )
    group_size = settings.get("group_size", int, settings.get("q_group_size", int, 128))
    if group_size != -1 and not 1 <= group_size < 1 << 20:
        raise CheckpointError(f"{settings.path}: group_size is {str(group_size)[:40]}, which is out of range")
    zero_offset = 1 if method == "gptq" and layout.lower() != "gptq_v2" else 0
    return Packing(method.upper(), max(group_size, 0), zero_offset, settings.get("desc_act", bool, False))
