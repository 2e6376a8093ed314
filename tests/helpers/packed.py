"""Writes tiny models as GPTQ and AWQ checkpoints, one code at a time, with random codes, zeros and scales."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from helpers.foreign import huggingface_config, huggingface_tensors
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG
from pyllama2.config import ModelConfig

Array = NDArray[Any]
# 160 columns of w2: groups of 64 end in the middle of them.
PACKED = replace(CONFIG, dim=64, hidden_dim=160, head_dim=16, vocab_size=60)
_AWQ = [0, 4, 1, 5, 2, 6, 3, 7]  # which of the eight nibbles number i of a word is in


@dataclass(frozen=True)
class Kind:
    """A way to store matrices.

    Attributes:
        settings: quantization_config.
        group_size: columns of a group.
        symmetric: whether all zeros are 8.
        apart: whether columns of a group lie apart.
        first_format: whether zeros are stored less one.
    """

    settings: dict[str, Any]
    group_size: int
    symmetric: bool = True
    apart: bool = False
    first_format: bool = True

    @property
    def is_awq(self) -> bool:
        return bool(self.settings["quant_method"] == "awq")


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
_AWQ_SETTINGS = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
KINDS = {
    "gptq": Kind(_GPTQ, 32),
    "gptq rows": Kind(_GPTQ | {"group_size": -1}, 0),
    "gptq zeros": Kind(_GPTQ | {"group_size": 64, "sym": False}, 64, symmetric=False),
    "gptq_v2": Kind(_GPTQ | {"checkpoint_format": "gptq_v2"}, 32, symmetric=False, first_format=False),
    "gptq apart": Kind(_GPTQ | {"desc_act": True}, 32, apart=True),
    "awq": Kind(_AWQ_SETTINGS, 64, symmetric=False, first_format=False),
}


def set_nibble(words: Array, index: tuple[int, ...], nibble: int, value: int) -> None:
    words[index] |= np.uint32(int(value) << (4 * nibble))


def packed_parts(kind: Kind, rows: int, columns: int, rng: np.random.Generator) -> tuple[dict[str, Array], Array]:
    """The parts of a random matrix, and its numbers (rows, columns) as float64."""
    size = kind.group_size or columns
    n_groups = -(-columns // size)
    codes = rng.integers(0, 16, (rows, columns))
    # Stored less one, a zero of 0 is 15.
    zeros = np.full((n_groups, rows), 8) if kind.symmetric else rng.integers(0, 16, (n_groups, rows))
    scales = rng.uniform(0.005, 0.02, (n_groups, rows)).astype(np.float16)
    groups = np.arange(columns) // size
    if kind.apart:
        rng.shuffle(groups)
    qweight = np.zeros((columns, rows // 8) if kind.is_awq else (columns // 8, rows), np.uint32)
    qzeros = np.zeros((n_groups, rows // 8), np.uint32)
    for row in range(rows):
        for column in range(columns):
            if kind.is_awq:
                set_nibble(qweight, (column, row // 8), _AWQ[row % 8], codes[row, column])
            else:
                set_nibble(qweight, (column // 8, row), column % 8, codes[row, column])
        for group in range(n_groups):
            stored = (zeros[group, row] - kind.first_format) % 16
            set_nibble(qzeros, (group, row // 8), _AWQ[row % 8] if kind.is_awq else row % 8, stored)
    numbers = (codes - zeros.T[:, groups]) * scales.T.astype(np.float64)[:, groups]
    parts = {"qweight": qweight.view(np.int32), "qzeros": qzeros.view(np.int32), "scales": scales}
    if not kind.is_awq:
        parts["g_idx"] = groups.astype(np.int32)
    return parts, numbers


def write_packed(folder: Path, name: str, config: ModelConfig = PACKED, seed: int = 0) -> tuple[Path, dict[str, Array]]:
    """A directory, and the numbers of all tensors under our names."""
    kind, rng = KINDS[name], np.random.default_rng(seed)
    weights = random_weights(config, seed)
    tensors = {key: tensor.half() for key, tensor in huggingface_tensors(config, weights).items()}
    numbers: dict[str, Array] = {}
    for ours, shape in config.tensor_shapes().items():
        if ".attention.w" not in ours and ".feed_forward." not in ours:
            numbers[ours] = weights[ours].astype(np.float16).astype(np.float64)
            continue
        parts, matrix = packed_parts(kind, *shape, rng)
        theirs = next(iter(huggingface_tensors(config, {ours: weights[ours]})))
        del tensors[theirs]
        tensors |= {theirs.replace("weight", part): torch.from_numpy(array) for part, array in parts.items()}
        n_heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(ours.split(".")[-2])
        if n_heads is not None:  # from the order of halves to that of pairs
            matrix = matrix.reshape(n_heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(matrix.shape)
        numbers[ours] = matrix
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(huggingface_config(config, quantization_config=kind.settings)))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    return folder, numbers
