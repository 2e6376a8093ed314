"""How long a calibration takes: counted from the shapes, for a text that a time limit leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import CORPUS

import pyllama2
from pyllama2.calibration.estimate import affordable_tokens, duration, measured_tokens, seconds, survey_seconds
from pyllama2.config import ModelConfig
from pyllama2.storage.model_file import StoredModel

pytestmark = pytest.mark.usefixtures("one_thread")

SEVEN_B = ModelConfig(
    dim=4096, hidden_dim=11008, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, vocab_size=32000, max_seq_len=4096
)
RATE = 1e11


@pytest.mark.parametrize("surveyed", [False, True])
@pytest.mark.parametrize("limit", [600, 3600, 9000, 1e6])
def test_what_a_limit_leaves(limit: float, surveyed: bool) -> None:
    n_tokens = affordable_tokens(SEVEN_B, limit, RATE, 16384, 512, surveyed=surveyed)
    assert n_tokens % 512 == 0 and 512 <= n_tokens <= 16384

    def needed(n: int) -> float:
        survey = survey_seconds(SEVEN_B, n, measured_tokens(SEVEN_B, limit, RATE), RATE)
        return seconds(SEVEN_B, n, RATE) + surveyed * survey

    assert needed(n_tokens) <= limit or n_tokens == 512
    assert needed(n_tokens + 512) > limit or n_tokens == 16384


def test_a_survey_takes_a_part_of_the_limit() -> None:
    assert measured_tokens(SEVEN_B, None, RATE) == 1024
    found = [measured_tokens(SEVEN_B, limit, RATE) for limit in (1e6, 9000, 4500, 1)]
    assert found == sorted(found, reverse=True) and found[0] == 1024 and found[-1] == 128 and len(set(found)) > 2


def test_with_bits_a_limit_is_for_the_survey_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limit leaves fewer tokens then, and the survey's estimate is said."""
    source = write_tiny(tmp_path / "source.bin")
    words = sorted({word for line in CORPUS for word in line.split()})
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(words, 3000)))
    limit = 30.0
    rate = seconds(CONFIG, 64 * 40, 1.0) / limit  # that many tokens are calibrated on in this time
    monkeypatch.setattr("pyllama2.calibration.request.measured_rate", lambda _products: rate)
    counts, said = [], list[str]()
    for bits in (None, 6.0):
        pyllama2.quantize(
            source, tmp_path / "out.bin", "q4", bits=bits, calibrate=[text], calibrate_seconds=limit, say=said.append
        )
        record = StoredModel.open(tmp_path / "out.bin").calibration
        assert record is not None
        counts.append(record.n_tokens)
    assert counts[0] > counts[1]
    assert any("where bits count: about " in sentence for sentence in said)


def test_duration() -> None:
    assert [duration(s) for s in (0.1, 40, 720, 7200)] == ["1 s", "40 s", "12 minutes", "2.0 hours"]


def test_more_layers_take_longer() -> None:
    assert seconds(replace(SEVEN_B, n_layers=16), 8192, RATE) == pytest.approx(seconds(SEVEN_B, 8192, RATE) / 2)
