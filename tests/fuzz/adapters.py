"""Targets of LoRA adapters: each is merged into a tiny model, of which all tensors are read."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from helpers.tiny import float_model, random_weights, write_model

from pyllama2.adapters import with_adapters
from pyllama2.checkpoint import open_checkpoint
from pyllama2.errors import CheckpointError

from .models import CONFIG
from .mutation import mutate_head, mutate_json, mutate_safetensors
from .target import Folder, Target, file_of

_SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": True, "modules_to_save": None}


@functools.cache
def _model() -> Path:
    folder = tempfile.mkdtemp()
    return write_model(Path(folder, "model.bin"), float_model(CONFIG, random_weights(CONFIG)))


def _merge(path: str | Path) -> None:
    with closing(open_checkpoint(_model())) as checkpoint, np.errstate(all="ignore"):
        for _, shape, tensor in with_adapters(checkpoint, str(path)).tensors():
            assert tensor.read().shape == shape


def _merge_file(data: bytes) -> None:
    with file_of(data) as path:
        _merge(path)


def _merge_folder(name: str, make_others: Callable[[], dict[str, bytes]]) -> Callable[[bytes], None]:
    folder = functools.cache(lambda: Folder(name, make_others()))
    return lambda data: _merge(folder().holding(data))


@functools.cache
def _peft() -> bytes:
    """adapter_model.safetensors with a change of wq, one of the embedding, and an output matrix."""
    import torch
    from safetensors.torch import save

    stem = "base_model.model.model"
    tensors = {
        f"{stem}.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 8),
        f"{stem}.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(8, 2, dtype=torch.bfloat16),
        f"{stem}.embed_tokens.lora_embedding_A": torch.ones(2, 9),
        f"{stem}.embed_tokens.lora_embedding_B": torch.ones(8, 2),
        "base_model.model.lm_head.weight": torch.ones(9, 8, dtype=torch.float16),
    }
    return bytes(save(tensors))


def _gguf() -> bytes:
    from helpers.gguf_files import write_gguf

    keys: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    tensors = {"blk.0.attn_q.weight.lora_a": np.ones((2, 8), np.float32)}
    tensors["blk.0.attn_q.weight.lora_b"] = np.ones((8, 2), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder, "a.gguf"), tensors, keys).read_bytes()


_REFUSES = (CheckpointError,)

ADAPTERS = (
    Target(
        "adapter_safetensors",
        _merge_folder("adapter_model.safetensors", lambda: {"adapter_config.json": json.dumps(_SETTINGS).encode()}),
        _REFUSES,
        lambda: [_peft()],
        mutate_safetensors,
    ),
    Target(
        "adapter_config_json",
        _merge_folder("adapter_config.json", lambda: {"adapter_model.safetensors": _peft()}),
        _REFUSES,
        lambda: [json.dumps(_SETTINGS).encode()],
        mutate_json,
    ),
    Target("adapter_gguf", _merge_file, _REFUSES, lambda: [_gguf()], mutate_head),
)
