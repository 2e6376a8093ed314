"""The name of a model for clients and answers."""

from __future__ import annotations

import os
import re
from pathlib import PurePath


def model_name(path: str | None) -> str:
    """The name of a model: that of its file or folder, without the folders above and without the ending.

    Args:
        path: the path. None: that of the environment variable PYLLAMA2_MODEL, else the bundled model, stories.
    """
    path = path or os.environ.get("PYLLAMA2_MODEL") or "stories"
    stem = re.sub(r"\.(bin|gguf|pth|safetensors)$", "", PurePath(path).name)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-") or "pyllama2"
