"""scripts/random_models/make_twin.py: weights off the grid that they were quantized to."""

from __future__ import annotations

from pathlib import Path

import make_twin
import numpy as np
from helpers.tiny_llama import write_tiny

from pyllama2.storage.model_file import StoredModel


def test_each_weight_moves_by_half_a_step_at_most(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source.bin")
    for name, seed in (("twin.bin", 0), ("again.bin", 0), ("other.bin", 1)):
        make_twin.make_twin(str(source), str(tmp_path / name), seed)
    assert (tmp_path / "twin.bin").read_bytes() == (tmp_path / "again.bin").read_bytes()
    assert (tmp_path / "twin.bin").read_bytes() != (tmp_path / "other.bin").read_bytes()
    before, after = StoredModel.open(source).weights, StoredModel.open(tmp_path / "twin.bin").weights
    for name, weight in before.items():
        change = after[name].data - weight.data
        if not name.startswith("layers.") or weight.data.ndim == 1:
            assert not change.any()
            continue
        groups = weight.data.reshape(-1, make_twin.GROUP)
        steps = np.abs(change).reshape(-1, make_twin.GROUP) / (np.ptp(groups, axis=1, keepdims=True) / make_twin.STEPS)
        assert 0.45 < steps.max() < 0.501 and steps.min() < 0.01
