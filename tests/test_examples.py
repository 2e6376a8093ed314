"""The scripts in examples/ run as they stand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import MHA, float_model, random_weights, write_model
from tiny_tokenizers import sentencepiece_spec

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(MHA, vocab_size=340)
    made = float_model(config, random_weights(config))
    made.tokenizer = sentencepiece_spec()
    return write_model(tmp_path_factory.mktemp("model") / "m.bin", made)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name: str, model: Path) -> None:
    result = subprocess.run([sys.executable, EXAMPLES / name, model], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
