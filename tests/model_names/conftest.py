"""A hub of the tests' own with a small model, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.foreign import write_huggingface
from helpers.gguf_files import write_model
from helpers.hub import Hub, running_hub, use_hub
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG
from helpers.tiny_tokenizers import sentencepiece_model


@pytest.fixture(scope="session")
def hub_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each repository: safetensors (with what is not needed), and GGUF files."""
    folder = tmp_path_factory.mktemp("hub")
    weights = random_weights(CONFIG)
    model = write_huggingface(folder / "model", CONFIG, weights)
    (model / "tokenizer.model").write_bytes(sentencepiece_model())
    for name in ("README.md", "pytorch_model.bin", "onnx.bin"):
        (model / name).write_text("not needed")
    (folder / "gguf").mkdir()
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_model(folder / "gguf" / f"tiny-{kind}.gguf", CONFIG, weights, kind)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(hub_files: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, which has tests/model and tests/gguf. The current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with running_hub() as hub:
        use_hub(hub.url, cache, monkeypatch)
        hub.add("tests/model", hub_files / "model")
        hub.add("tests/gguf", hub_files / "gguf")
        yield hub
