"""The names of LoRA adapters, as users write them: a path, or ORG/NAME on the hub, with or without :SCALE."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from .. import arguments
from ..shown import shown_value
from .find import find_adapter

Adapters = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def find_adapters(lora: Adapters, *, quiet: bool = False) -> list[str]:
    """Find the adapters that a user names. Those of the hub are downloaded unless they are in its cache.

    Args:
        lora: a name or several, each PATH or PATH:SCALE.
        quiet: show no progress of downloads.

    Returns:
        Names of the same adapters with absolute paths, which mean the same in any folder, and to this function.

    Raises:
        CheckpointError: an adapter of the hub could not be downloaded.
        TypeError: lora is neither a path nor a list of paths.
        ValueError: a scale is not finite.
    """
    names = [lora] if isinstance(lora, (str, os.PathLike)) else arguments.sequence("lora", lora)
    places = [path_and_scale(arguments.path("lora", name)) for name in names]
    found = [(os.path.abspath(find_adapter(path, quiet=quiet)), scale) for path, scale in places]
    return [path if scale == 1 else f"{path}:{scale_text(scale)}" for path, scale in found]


def path_and_scale(name: str) -> tuple[str, float]:
    """The path and the scale in a name. A path that exists has no scale. Raises ValueError unless it is finite."""
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


def scale_text(scale: float) -> str:
    """A scale with all its digits."""
    return repr(scale).removesuffix(".0")
