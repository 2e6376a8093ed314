"""Where the time went: what is counted, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllama2 import Llama
from pyllama2.backend.step_times import Profile, StepTime


def test_table_has_rates_and_shares() -> None:
    steps = (StepTime("wq wk wv", 0.5, 2.0, 10_000_000), StepTime("attention", 1.5, 0.0))
    lines = str(Profile(steps, decode_passes=100, decode_tokens=200, prompt_tokens=1000)).splitlines()
    assert lines[1].split() == ["wq", "wk", "wv", "2.5000", "25.0%", "2.0", "2.0000", "100.0%"]
    assert lines[2].split() == ["attention", "7.5000", "75.0%", "0.0000", "0.0%"]
    assert lines[3].split() == ["all", "10.0000", "100.0%", "0.5", "2.0000", "100.0%"]
    assert lines[4] == "decode 100.0 tokens/s, prompt 500.0 tokens/s"


def test_nothing_counted_is_no_division_by_zero() -> None:
    lines = str(Profile((StepTime("embed", 0.0, 0.0),), 0, 0, 0)).splitlines()
    assert [line.split() for line in lines[1:]] == [["embed"], ["all"]]


def test_tokens_and_steps_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Llama(path) as llm:
        llm.generate(list(range(5, 25)), max_tokens=4, ignore_eos=True)
        profile = llm.profile()
        assert (profile.prompt_tokens, profile.decode_tokens, profile.decode_passes) == (20, 3, 3)
        names = [step.name for step in profile.steps]
        assert names[:3] == ["embed", "attention_norm", "wq wk wv"] and names[-1] == "sampling, text"
        assert all(step.decode_s > 0 and step.prompt_s > 0 for step in profile.steps)
        by_name = {step.name: step.weight_bytes for step in profile.steps}
        assert sum(by_name.values()) == llm.describe()["bytes_per_token"]
        monkeypatch.setenv("PYLLAMA2_PROFILE", "1")
    assert "w1 w3, silu *" in capsys.readouterr().err
