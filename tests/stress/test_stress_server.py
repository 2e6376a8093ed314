"""Many clients of all kinds at once: stress_server.py, with fewer requests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from helpers.tiny_llama import CHATML, write_tiny

STRESS = Path(__file__).parent


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.subprocess
def test_every_text_is_what_it_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("stress_server", STRESS / "stress_server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "1")
    spec.loader.exec_module(module)
    path = write_tiny(tmp_path / "tiny.bin", "bpe", template=CHATML, max_seq_len=2048)
    outcome = module.run(path, 120, 16, seed=1)
    assert not outcome.faults
    assert min(outcome.counts[kind] for kind in ("hung up", "streamed", "whole", "wrong", "half open")) > 0
