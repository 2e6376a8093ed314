"""Many requests of all kinds from many threads: stress_generation.py, with fewer requests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from helpers.tiny_llama import write_tiny

from pyllama2.generation.draft import StepTimes

STRESS = Path(__file__).parent


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("draft", [None, "self"])
def test_many_requests_of_all_kinds(tmp_path: Path, draft: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if draft:  # one that pays
        monkeypatch.setattr(StepTimes, "of_model", lambda self, n_tokens: 1.0 + 0.02 * n_tokens)
        monkeypatch.setattr(StepTimes, "of_draft", lambda self, n_texts: 0.05)
    spec = importlib.util.spec_from_file_location("stress_generation", STRESS / "stress_generation.py")
    assert spec is not None and spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    outcome, _ = script.run(write_tiny(tmp_path / "tiny.bin", max_seq_len=300), 200, 8, seed=11, draft=draft)
    assert outcome.faults == [] and sum(outcome.counts[kind] for kind in script.KINDS) == 200
    assert all(outcome.counts[kind] > 0 for kind in script.KINDS)
    assert draft is None or outcome.counts["guesses"] > 100
