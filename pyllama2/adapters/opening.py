"""with_adapters(): a checkpoint with the adapters that a user names, by their paths and scales."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from .. import arguments
from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf_header import is_gguf
from ..checkpoint.title import title_of
from ..config import ModelConfig
from ..errors import CheckpointError
from ..model_names import find_adapter
from ..shown import shown, shown_value
from ..storage.mapped import MappedFile
from .adapter import Adapter, MergedCheckpoint
from .gguf import read_gguf
from .peft import CONFIG, WEIGHTS, read_peft


def with_adapters(checkpoint: Checkpoint, lora: str | Sequence[str]) -> MergedCheckpoint:
    """Merge LoRA adapters into the tensors of a checkpoint, which are changed when they are read.

    Args:
        checkpoint: the model. It stays open, and is closed with the result.
        lora: each is a path, or PATH:SCALE. A path is a directory of PEFT, its adapter_model.safetensors, or a GGUF
            file; or ORG/NAME on the Hugging Face hub. The scale multiplies the adapter's change; it is 1 unless given.

    Raises:
        CheckpointError: an adapter cannot be read, or is for another model.
        TypeError: lora is neither a string nor a list of strings.
        ValueError: a scale is not finite.
    """
    names = [lora] if isinstance(lora, (str, os.PathLike)) else arguments.sequence("lora", lora)
    places = [_path_and_scale(arguments.path("lora", name)) for name in names]
    return MergedCheckpoint(checkpoint, [_open(path, scale, checkpoint.config) for path, scale in places])


def _path_and_scale(name: str) -> tuple[str, float]:
    path, colon, tail = name.rpartition(":")
    if not colon or os.path.exists(name):
        return name, 1.0
    try:
        scale = float(tail)
    except ValueError:
        return name, 1.0
    if not math.isfinite(scale):
        raise ValueError(f"the scale of an adapter must be finite, not {shown_value(tail)}")
    return path, scale


def _open(path: str, scale: float, config: ModelConfig) -> Adapter:
    path = find_adapter(path)
    digits = repr(scale).removesuffix(".0")  # all of them: kept models are known by their adapters' titles
    title = f"the adapter {shown(title_of(path))}" + ("" if scale == 1 else f" (scale {digits})")
    if os.path.isfile(path):
        with MappedFile(path) as file:
            if is_gguf(file):
                return Adapter(title, (path,), read_gguf(file, config, scale))
        if os.path.basename(path) != WEIGHTS:
            raise CheckpointError(f"{path} is neither a GGUF file nor the {WEIGHTS} of PEFT")
        path = os.path.dirname(path) or os.curdir
    if not os.path.exists(os.path.join(path, CONFIG)):
        what = "has no adapter_config.json" if os.path.isdir(path) else "is not there"
        raise CheckpointError(f"{path} {what}; an adapter is a directory of PEFT or a GGUF file")
    changes, files = read_peft(path, config, scale)
    return Adapter(title, files, changes)
