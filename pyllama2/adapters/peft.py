"""Reads LoRA adapters of PEFT: a directory with adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight      (r, inputs)
    base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight      (outputs, r)
    base_model.model.model.embed_tokens.lora_embedding_A, ..._B         (r, vocabulary), (dim, r)
    base_model.model.lm_head.base_layer.weight                          the matrix itself: of the embedding and the
                                                                        output matrix, PEFT saves it when they change

    factor = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

r is that of the matrices. A module whose name ends with a match of a key of alpha_pattern has that alpha.

The rows of wq and wk are in Hugging Face's order, as in checkpoint/row_order.py.
Source: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

from numpy.typing import NDArray

from ..checkpoint.huggingface import NAMES
from ..checkpoint.json_file import JsonObject
from ..checkpoint.stored_tensor import StoredTensor, check_dtype
from ..config import ModelConfig
from ..errors import CheckpointError
from ..shown import shown
from ..storage.mapped import MappedFile
from ..storage.safetensors import read_header
from .adapter import MAX_FACTOR, Change, rows_in_our_order

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"  # of old versions of PEFT

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_(embedding_)?([AB])(?:\.[A-Za-z0-9_-]+)?(?:\.weight)?")
_BASE = re.compile(r"(?:base_model\.model\.)?(model\.embed_tokens|lm_head)(?:\.base_layer)?\.weight")
_PLAIN = re.compile(r"\^?[A-Za-z0-9_.]+\$?")  # a key of alpha_pattern that is no other regular expression
_NUMBER = (int, float)
_CHANGES_BASE = (
    "pissa",
    "olora",
    "corda",
)  # they begin with a part of the model's weights, which they take out of them


def read_peft(folder: str, config: ModelConfig, scale: float) -> tuple[dict[str, Change], tuple[str, ...]]:
    """Read an adapter.

    Args:
        folder: the directory.
        config: the model's dimensions.
        scale: what the changes are multiplied by.

    Returns:
        The changes by our names of the tensors, and the files.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter is of a kind that is not supported.
    """
    settings = JsonObject.read(os.path.join(folder, CONFIG))
    _refuse_unsupported(settings)
    path = os.path.join(folder, WEIGHTS)
    if not os.path.exists(path) and os.path.exists(os.path.join(folder, _PICKLE)):
        raise CheckpointError(
            f"{folder}: its weights are {_PICKLE}, which may run code and must be converted to safetensors first"
        )
    pairs: dict[str, dict[str, NDArray[Any]]] = {}
    with MappedFile(path) as file:
        ours = {NAMES.of(name).removesuffix(".weight"): name for name in config.tensor_shapes()}
        for name, info in read_header(file).tensors.items():
            match = _TENSOR.fullmatch(name) or _BASE.fullmatch(name)
            if match is None or len(info.shape) != 2:
                raise CheckpointError(f"{path}: tensor {name[:120]!r} is not of LoRA (lora_A and lora_B are)")
            if match[1] not in ours:
                raise CheckpointError(f"{path} changes {match[1][:120]!r}, which the model does not have")
            check_dtype(path, name, info.dtype)
            matrix = StoredTensor(file, info.dtype, info.shape, info.offset).read().copy()
            part = match[3] if match.re is _TENSOR else "base"
            pairs.setdefault(ours[match[1]], {})[part] = matrix.T if match.re is _TENSOR and match[2] else matrix
    alphas, rslora = _Alphas(settings), settings.get("use_rslora", bool, False)
    changes = {}
    for name, pair in pairs.items():
        base = pair.pop("base", None)
        if base is not None and not pair:  # the matrix was saved, and is not changed by LoRA
            changes[name] = Change(base[:0], base[:, :0], 0.0, base)
            continue
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{path}: of the two matrices for {name} one is missing")
        a, b = (pair["B"], pair["A"]) if name == "tok_embeddings.weight" else (pair["A"], pair["B"])
        if not len(a):
            raise CheckpointError(f"{path}: the matrices for {name} have the rank 0")
        factor = _factor(alphas.of(NAMES.of(name).removesuffix(".weight")), len(a), rslora)
        changes[name] = Change(a, rows_in_our_order(name, b, config), scale * factor, base)
    return changes, (settings.path, path)


class _Alphas:
    """lora_alpha of each module. Raises CheckpointError for numbers out of range."""

    def __init__(self, settings: JsonObject) -> None:
        self._usual = settings.get("lora_alpha", _NUMBER, 8)
        pattern = settings.values.get("alpha_pattern") or {}
        if not isinstance(pattern, dict) or not all(_PLAIN.fullmatch(key) for key in pattern):
            # A regular expression of a stranger could take for ever.
            raise CheckpointError(
                f"{settings.path}: alpha_pattern must have names of modules; merge this adapter with peft first"
            )
        self._pattern: dict[str, Any] = pattern
        for name, alpha in [("", self._usual), *pattern.items()]:
            if isinstance(alpha, bool) or not isinstance(alpha, _NUMBER) or not abs(alpha) <= MAX_FACTOR:
                which = f"alpha_pattern of {shown(name, 60)}" if name else "lora_alpha"
                raise CheckpointError(f"{settings.path}: {which} is {str(alpha)[:40]}, which is out of range")

    def of(self, module: str) -> float:
        """The alpha of a module, such as model.layers.7.self_attn.q_proj: of the first key that its name ends with."""
        for key, alpha in self._pattern.items():
            bare = key.removeprefix("^").removesuffix("$")
            if module == bare or (not key.startswith("^") and module.endswith(f".{bare}")):
                return float(alpha)
        return float(self._usual)


def _factor(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if rslora else rank)


def _refuse_unsupported(settings: JsonObject) -> None:
    kind = settings.get("peft_type", str, "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{settings.path}: an adapter of type {kind[:40]!r} is not supported (LORA is)")
    for name in ("use_dora", "fan_in_fan_out", "lora_bias"):
        if settings.get(name, bool, False):
            raise CheckpointError(f"{settings.path}: {name} is not supported; merge this adapter with peft first")
    init = str(settings.get("init_lora_weights", (bool, str), True))
    if init.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{settings.path}: init_lora_weights {init[:40]!r} is not supported, for it changes the model itself; "
            "convert this adapter to plain LoRA with peft first"
        )
    if settings.get("bias", str, "none") != "none":
        raise CheckpointError(f"{settings.path}: an adapter with biases is not supported; merge it with peft first")
    for name in ("modules_to_save", "trainable_token_indices"):
        if settings.values.get(name):
            raise CheckpointError(f"{settings.path}: {name} is not supported; merge this adapter with peft first")
