"""with_adapters(): a checkpoint with the adapters that a user names, by their paths and scales."""

from __future__ import annotations

import os

from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf_header import is_gguf
from ..checkpoint.title import title_of
from ..config import ModelConfig
from ..errors import CheckpointError
from ..model_names.adapter_names import Adapters, find_adapters, path_and_scale, scale_text
from ..shown import shown
from ..storage.mapped import MappedFile
from .adapter import Adapter, MergedCheckpoint
from .gguf import read_gguf
from .peft import CONFIG, WEIGHTS, read_peft


def with_adapters(checkpoint: Checkpoint, lora: Adapters) -> MergedCheckpoint:
    """Merge LoRA adapters into the tensors of a checkpoint, which are changed when they are read.

    Args:
        checkpoint: the model. It stays open, and is closed with the result.
        lora: each is a path, or PATH:SCALE. A path is a directory of PEFT, its adapter_model.safetensors, or a GGUF
            file; or ORG/NAME on the Hugging Face hub. The scale multiplies the adapter's change; it is 1 unless given.

    Raises:
        CheckpointError: an adapter cannot be read, or is for another model.
        TypeError: lora is neither a path nor a list of paths.
        ValueError: a scale is not finite.
    """
    places = [path_and_scale(name) for name in find_adapters(lora)]
    return MergedCheckpoint(checkpoint, [_open(path, scale, checkpoint.config) for path, scale in places])


def _open(path: str, scale: float, config: ModelConfig) -> Adapter:
    # All digits of the scale: kept models are known by their adapters' titles.
    title = f"the adapter {shown(title_of(path))}" + ("" if scale == 1 else f" (scale {scale_text(scale)})")
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
