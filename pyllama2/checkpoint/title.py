"""The name of a checkpoint for people."""

from __future__ import annotations

import os


def title_of(path: str) -> str:
    """The name of a file or folder; ORG/NAME for a folder in the cache of the Hugging Face hub."""
    parts = os.path.abspath(path).split(os.sep)
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return parts[-1]
