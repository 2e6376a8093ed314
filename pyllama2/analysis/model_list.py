"""The models that can be used here without the network: what each is, and whether it fits into memory."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass

from ..backend.fitting import USUAL_CONTEXT
from ..backend.kv_cache import default_kv_dtype
from ..checkpoint import open_checkpoint
from ..checkpoint.base import Checkpoint
from ..checkpoint.own_file import OwnCheckpoint
from ..errors import Pyllama2Error
from ..loading.choice import choose_quantization, main_type
from ..loading.kept import kept_models
from ..memory import available_bytes, needed_bytes
from ..model_names.known import Place, known_places

_KINDS = {"gguf": "GGUF", "huggingface": "safetensors", "meta": "Meta", "llama2.c": "llama2.c", "pyllama2": "pyllama2"}


@dataclass(frozen=True)
class FoundModel:
    """A model.

    Attributes:
        name: what to give as a model.
        place: where it is: "here", "hub", "package" or "bundled", or "kept" for a converted model that was kept.
        path: the file or folder.
        n_bytes: bytes of its files.
        kind: the format and the type of most of its numbers, such as "GGUF Q4_K".
        n_parameters: its number of weights, 0 for what cannot be read.
        fits_as: the storage type of its weights with which Llama() loads it. None: it does not fit into memory with a
            context of up to 2048 tokens.
        source: what it was made from, for a model that was kept; else empty.
        problem: why it cannot be read; else empty.
    """

    name: str
    place: str
    path: str
    n_bytes: int
    kind: str = ""
    n_parameters: int = 0
    fits_as: str | None = None
    source: str = ""
    problem: str = ""


def list_models() -> list[FoundModel]:
    """Find the models of the current folder, the hub's cache and that of converted models, and those in packages.

    Of files, only headers are read. What is no model is left out, unless it is in a cache.
    """
    free = available_bytes()
    models = []
    kept = [Place(str(path), "kept", str(path)) for path in kept_models()]
    for place in [*known_places(), *kept]:
        try:
            with closing(open_checkpoint(place.path)) as checkpoint:
                models.append(_facts(place, checkpoint, free))
        except Pyllama2Error as error:
            if place.kind in ("hub", "kept"):
                models.append(
                    FoundModel(place.name, place.kind, place.path, _disk_bytes(place.path), problem=str(error))
                )
    return models


def _facts(place: Place, checkpoint: Checkpoint, free: int | None) -> FoundModel:
    config = checkpoint.config
    context = min(config.max_seq_len, USUAL_CONTEXT)
    if isinstance(checkpoint, OwnCheckpoint):
        way = checkpoint.model.quantization
        stored: str = way.type
    else:
        way, stored = choose_quantization(checkpoint, context, None, None), main_type(checkpoint)
    fits = free is None or needed_bytes(config, way, context, default_kv_dtype(way)) <= free
    return FoundModel(
        place.name,
        place.kind,
        place.path,
        sum(os.path.getsize(file) for file in checkpoint.files),
        f"{_KINDS[checkpoint.kind]} {stored}",
        config.n_parameters,
        way.type if fits else None,
        checkpoint.source if place.kind == "kept" else "",
    )


def _disk_bytes(path: str) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))
