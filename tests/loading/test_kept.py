"""Converted models that are kept for the next start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_files import write_model
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG
from helpers.tiny_tokenizers import sentencepiece_model

from pyllama2.cli.program import main
from pyllama2.errors import CheckpointError
from pyllama2.loading import load_model
from pyllama2.loading.kept import kept_models
from pyllama2.storage.model_file import StoredModel

WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept models, which does not exist yet."""
    monkeypatch.setenv("PYLLAMA2_CACHE", str(tmp_path / "kept" / "models"))
    monkeypatch.delenv("PYLLAMA2_CACHE_GB", raising=False)
    return tmp_path / "kept" / "models"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.gguf", CONFIG, WEIGHTS, "Q4_1")


def load(path: Path, *, keep: bool = False, **options: Any) -> tuple[StoredModel, int]:
    """The model, and how many tensors were converted for it."""
    names: list[str] = []
    options = {"quant": "q4", "tokenizer": None, "n_ctx": None, "kv_dtype": None, **options}
    model = load_model(str(path), keep=keep, progress=lambda done, total, name: names.append(name), **options)
    return model, len(names)


def test_it_is_converted_once(source: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    converted, _ = load(source)
    assert not folder.exists()  # nobody has asked for it
    kept, n_tensors = load(source, keep=True)
    assert n_tensors == len(WEIGHTS) and len(list(folder.iterdir())) == 1
    assert f"the converted model is kept as {folder}" in caplog.text
    for again, n_tensors in (load(source), load(source, keep=True)):
        assert n_tensors == 0 and again.file is not None
        for name, weight in converted.weights.items():
            assert np.array_equal(weight.dequantize(), again.weights[name].dequantize())
    assert kept.source == converted.source


def test_another_type_or_tokenizer_is_another_model(source: Path, folder: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "t.model"
    tokenizer.write_bytes(sentencepiece_model())
    for i, options in enumerate(({}, {"quant": "q8"}, {"quant": "q4", "tokenizer": tokenizer})):
        assert load(source, keep=True, **options)[1] == len(WEIGHTS)
        assert len(list(folder.iterdir())) == i + 1
    assert load(source, tokenizer=tokenizer)[0].tokenizer is not None
    assert load(source)[0].tokenizer is None


def test_a_changed_source_is_converted_anew(source: Path, folder: Path) -> None:
    load(source, keep=True)
    os.utime(source, (1, 1))
    assert load(source)[1] == len(WEIGHTS)


def test_a_damaged_file_is_made_anew(source: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(source, keep=True)
    next(folder.iterdir()).write_bytes(b"damaged")
    assert load(source, keep=True)[1] == len(WEIGHTS) and "is damaged, and is made anew" in caplog.text
    assert load(source)[1] == 0


def test_what_was_used_longest_ago_goes_first(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [write_model(tmp_path / f"{i}.gguf", CONFIG, WEIGHTS, "Q8_0") for i in range(3)]
    for path in sources[:2]:
        load(path, keep=True)
    size = next(folder.iterdir()).stat().st_size
    assert load(sources[0])[1] == 0  # now the second is the older one
    monkeypatch.setenv("PYLLAMA2_CACHE_GB", str(2.5 * size / 1e9))
    load(sources[2], keep=True)
    assert [load(path)[1] == 0 for path in sources] == [True, False, True]
    caplog.clear()
    monkeypatch.setenv("PYLLAMA2_CACHE_GB", "0")
    assert load(sources[1], keep=True)[1] == len(WEIGHTS)
    assert "is not kept" in caplog.text and "PYLLAMA2_CACHE_GB allows" in caplog.text


def test_the_users_own_files_stay(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    mine = folder / "mine.bin"
    mine.write_bytes(bytes(1 << 20))
    load(source, keep=True)
    (kept,) = kept_models()
    monkeypatch.setenv("PYLLAMA2_CACHE_GB", str(1.5 * kept.stat().st_size / 1e9))
    os.utime(source, (1, 1))
    load(source, keep=True)
    assert mine.exists() and not kept.exists() and len(kept_models()) == 1


@pytest.mark.parametrize("reason", ["limit", "disk"])
def test_nothing_is_removed_in_vain(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    load(source, keep=True)
    (kept,) = kept_models()
    size = kept.stat().st_size
    monkeypatch.setenv("PYLLAMA2_CACHE_GB", str((0.1 if reason == "limit" else 1.5) * size / 1e9))
    if reason == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    os.utime(source, (1, 1))
    model, _ = load(source, keep=True)
    assert model.file is None and kept.exists() and "is not kept" in caplog.text
    assert ("PYLLAMA2_CACHE_GB allows" if reason == "limit" else "GB free") in caplog.text


def test_wrong_settings(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot keep a converted model in .*PYLLAMA2_CACHE sets another folder"):
        load(source, keep=True)
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv("PYLLAMA2_CACHE_GB", text)
        with pytest.raises(ValueError, match=f"PYLLAMA2_CACHE_GB must be a number of gigabytes, not '{text}'"):
            load(source, keep=True)


def test_the_flag(source: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.model").write_bytes(sentencepiece_model())
    words = ["generate", "-m", str(source), "--tokenizer", str(tmp_path / "t.model"), "-n", "2", "-t", "1", "Once"]
    assert main([*words, "--keep"]) == 0
    assert len(list(folder.iterdir())) == 1
    text = capsys.readouterr().out
    assert main(words) == 0 and len(list(folder.iterdir())) == 1
    assert text.startswith("Once") and capsys.readouterr().out.startswith("Once")
