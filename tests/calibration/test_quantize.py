"""quantize() with a text: the file, what it says of itself, interruptions, refusals, and texts that are bad ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import CORPUS, bpe_spec, sentencepiece_spec

import pyllama2
from pyllama2 import CheckpointError, Llama, __main__
from pyllama2.calibration.text import n_windows, of_texts, text_remarks
from pyllama2.storage.calibration_record import CalibrationRecord
from pyllama2.storage.model_file import StoredModel
from pyllama2.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = sorted({word for line in CORPUS for word in line.split()})


def words(n: int, seed: int = 0) -> str:
    """A text of so many words in random order."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "source.bin")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(words(900))
    return path


def quantize(source: Path, out: Path, calibrate: Any, **more: Any) -> list[str]:
    """What was said."""
    said: list[str] = []
    pyllama2.quantize(source, out, more.pop("type", "q4"), calibrate=calibrate, say=said.append, **more)
    return said


def divergence(path: Path, source: Path) -> float:
    result = pyllama2.perplexity(path, words(300, seed=7), against=source)
    assert result.kl_divergence is not None
    return result.kl_divergence


class TestFile:
    @pytest.mark.slow
    @pytest.mark.parametrize("group_size", [32, 64, 128])
    def test_it_loses_less_than_the_search(self, source: Path, text: Path, tmp_path: Path, group_size: int) -> None:
        plain, calibrated = tmp_path / "plain.bin", tmp_path / "calibrated.bin"
        quantize(source, plain, False, group_size=group_size)
        quantize(source, calibrated, [text], group_size=group_size)
        assert divergence(calibrated, source) < 0.7 * divergence(plain, source)
        before, after = StoredModel.open(plain), StoredModel.open(calibrated)
        assert before.quantization == after.quantization and before.nbytes == after.nbytes

    def test_biases_are_kept_and_count(self, text: Path, tmp_path: Path) -> None:
        source = write_tiny(tmp_path / "biases.bin", qkv_bias=True, wo_bias=True)
        plain, calibrated = tmp_path / "plain.bin", tmp_path / "calibrated.bin"
        quantize(source, plain, False)
        quantize(source, calibrated, [text])
        assert divergence(calibrated, source) < 0.7 * divergence(plain, source)
        weights = {path: StoredModel.open(path).weights for path in (source, plain, calibrated)}
        for name in (name for name in weights[source] if name.endswith(".bias")):
            for path in (plain, calibrated):
                assert np.array_equal(weights[path][name].data, weights[source][name].data)

    @pytest.mark.slow
    def test_q8_too(self, source: Path, text: Path, tmp_path: Path) -> None:
        plain, calibrated = tmp_path / "plain.bin", tmp_path / "calibrated.bin"
        quantize(source, plain, None, type="q8")
        quantize(source, calibrated, [text], type="q8")
        assert divergence(calibrated, source) < 1.05 * divergence(plain, source)
        assert StoredModel.open(plain).calibration is None

    @pytest.mark.slow
    def test_other_sources(self, source: Path, text: Path, tmp_path: Path) -> None:
        half, q8 = tmp_path / "half.bin", tmp_path / "q8.bin"
        pyllama2.export(source, half, dtype="float16")
        quantize(source, q8, False, type="q8")
        for path in (half, q8):
            quantize(path, tmp_path / "out.bin", text)
            assert divergence(tmp_path / "out.bin", source) < 0.05

    @pytest.mark.slow
    def test_a_model_that_shares_its_embeddings(self, text: Path, tmp_path: Path) -> None:
        source = write_tiny(tmp_path / "tied.bin", tied_embeddings=True)
        quantize(source, tmp_path / "out.bin", text)
        quantize(source, tmp_path / "plain.bin", False)
        assert divergence(tmp_path / "out.bin", source) < divergence(tmp_path / "plain.bin", source)

    @pytest.mark.slow
    def test_the_default_is_a_text_of_the_models_own(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyllama2.calibration.request.TOKENS", 2048)
        said = quantize(source, tmp_path / "out.bin", None)
        assert "the model writes" in said[0]
        quantize(source, tmp_path / "again.bin", "self")
        assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "again.bin").read_bytes()
        record = StoredModel.open(tmp_path / "out.bin").calibration
        assert record is not None and record.text == "self" and record.n_tokens == 2048

    def test_without_a_tokenizer(self, text: Path, tmp_path: Path) -> None:
        source = write_tiny(tmp_path / "source.bin", None)
        assert quantize(source, tmp_path / "out.bin", None) == []
        assert StoredModel.open(tmp_path / "out.bin").calibration is None
        for calibrate in ("self", text):
            with pytest.raises(ValueError, match="no tokenizer"):
                quantize(source, tmp_path / "other.bin", calibrate)

    @pytest.mark.slow
    def test_the_number_of_threads_does_not_matter(
        self, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = []
        for n_threads in ("1", "3"):
            monkeypatch.setenv("PYLLAMA2_NUM_THREADS", n_threads)
            quantize(source, tmp_path / f"{n_threads}.bin", text)
            files.append((tmp_path / f"{n_threads}.bin").read_bytes())
        assert files[0] == files[1]


class TestRecord:
    @pytest.mark.slow
    def test_it_is_in_the_file(self, source: Path, text: Path, tmp_path: Path) -> None:
        said = quantize(source, tmp_path / "out.bin", text)
        record = StoredModel.open(tmp_path / "out.bin").calibration
        assert record is not None
        assert (record.method, record.text, record.window) == ("GPTQ, asymmetric", "given", 64)
        assert record.n_tokens % 64 == 0 and record.n_held_out % 63 == 0 and record.n_tokens > 5 * record.n_held_out
        assert len(record.starts) == record.n_tokens // 64
        assert f"{record.kl_divergence:.4f} nats" in said[-2] and "matrices that lost most" in said[-1]

    @pytest.mark.slow
    def test_held_out_windows_say_what_perplexity_says(self, source: Path, text: Path, tmp_path: Path) -> None:
        """On another part of the same kind of text, with the runtime's own cache."""
        quantize(source, tmp_path / "out.bin", text)
        record = StoredModel.open(tmp_path / "out.bin").calibration
        assert record is not None
        assert divergence(tmp_path / "out.bin", source) == pytest.approx(record.kl_divergence, rel=0.3)

    def test_damaged_ones_are_refused(self) -> None:
        good = CalibrationRecord("m", "self", 5, 4, ("a",), ("b",), 3, 0.1, 0.01, 0.9, 1.1)
        assert CalibrationRecord.from_json(good.to_json()) == good
        text = good.to_json()
        for old, new in (('"m"', "5"), (":5", ":-5"), ('["a"]', "7"), (":0.1,", ":1e999,"), ('"window":4,', "")):
            with pytest.raises(ValueError, match="calibration"):
                CalibrationRecord.from_json(text.replace(old, new))

    @pytest.mark.slow
    def test_measuring_on_the_same_text_is_said(
        self, source: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        quantize(source, tmp_path / "out.bin", text)
        for measured, warned in ((text.read_text(), True), (text.read_text()[300:], True), (words(99, seed=5), False)):
            caplog.clear()
            with caplog.at_level(logging.WARNING, "pyllama2"):
                pyllama2.perplexity(tmp_path / "out.bin", measured)
            assert ("calibrated on this text" in caplog.text) == warned


class TestInterruption:
    @pytest.mark.slow
    def test_it_goes_on_after_the_last_layer(self, tmp_path: Path, text: Path) -> None:
        source = write_tiny(tmp_path / "source.bin", n_layers=4, weights=None)
        whole, out = tmp_path / "whole.bin", tmp_path / "out.bin"
        quantize(source, whole, text)

        def interrupt_after(layer: int) -> Callable[[int, int, str], None]:
            def progress(done: int, total: int, name: str) -> None:
                seen.append(name)
                if name == f"layers.{layer}.feed_forward.w3.weight":
                    raise KeyboardInterrupt

            return progress

        for layer in (1, 2):
            seen: list[str] = []
            with pytest.raises(KeyboardInterrupt):
                quantize(source, out, text, progress=interrupt_after(layer))
            assert not out.exists() and (tmp_path / "out.bin.partial").is_dir()
            assert sum(name.endswith("w1.weight") for name in seen) == (2 if layer == 1 else 1)
        said = quantize(source, out, text)
        assert "going on after layer 3 of 4" in said
        assert out.read_bytes() == whole.read_bytes()
        assert not (tmp_path / "out.bin.partial").exists()

    @pytest.mark.slow
    def test_another_text_starts_anew(self, tmp_path: Path, source: Path, text: Path) -> None:
        def interrupt(done: int, total: int, name: str) -> None:
            if name.startswith("layers.0.feed_forward"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(source, tmp_path / "out.bin", text, progress=interrupt)
        text.write_text(words(900, seed=3))
        assert not any("going on" in sentence for sentence in quantize(source, tmp_path / "out.bin", text))

    def test_a_folder_that_is_in_the_way(self, tmp_path: Path, source: Path, text: Path) -> None:
        (tmp_path / "out.bin.partial").mkdir()
        (tmp_path / "out.bin.partial" / "precious").touch()
        with pytest.raises(CheckpointError, match="in the way"):
            quantize(source, tmp_path / "out.bin", text)
        assert (tmp_path / "out.bin.partial" / "precious").exists()

    def test_nothing_stays_when_there_is_no_layer(self, tmp_path: Path, text: Path) -> None:
        weights = random_weights(CONFIG)
        weights["layers.0.attention.wk.weight"][3, 3] = np.nan
        source = write_tiny(tmp_path / "source.bin", weights=weights)
        with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.wk\.weight"):
            quantize(source, tmp_path / "out.bin", text)
        assert sorted(os.listdir(tmp_path)) == ["source.bin", "text.txt"]


class TestRefusals:
    def test_wrong_arguments(self, tmp_path: Path, source: Path, text: Path) -> None:
        missing, other = tmp_path / "missing.txt", tmp_path / "latin.txt"
        other.write_bytes("caf\xe9".encode("latin-1"))
        for calibrate, error, match in (
            (True, ValueError, "calibrate must be"),
            ([], ValueError, "at least one text"),
            (missing, CheckpointError, "cannot read the calibration text"),
            ([text, other], ValueError, "not UTF-8, at byte 3"),
            (3, TypeError, "calibrate"),
        ):
            with pytest.raises(error, match=match):
                quantize(source, tmp_path / "out.bin", calibrate)
        with pytest.raises(ValueError, match="calibrate_seconds"):
            quantize(source, tmp_path / "out.bin", text, calibrate_seconds=0)
        text.write_text("Once upon")
        with pytest.raises(ValueError, match="the calibration text has 8 tokens; at least 128"):
            quantize(source, tmp_path / "out.bin", text)
        assert not (tmp_path / "out.bin").exists() and not (tmp_path / "out.bin.partial").exists()

    def test_the_source_is_not_overwritten(self, source: Path, text: Path) -> None:
        with pytest.raises(ValueError, match="choose another name"):
            quantize(source, source, text)


class TestText:
    def test_windows_begin_with_bos_and_are_taken_evenly(self) -> None:
        tokenizer = load_tokenizer(sentencepiece_spec(), CONFIG.vocab_size)
        text = words(4000)
        found = of_texts([text], tokenizer, 64, 20 * 64)
        windows = found.tokens.windows
        assert windows.shape == (n_windows(20 * 64, 64), 64) and found.tokens.n_training == 20
        assert (windows[:, 0] == tokenizer.bos_id).all()
        ids = tokenizer.encode(text)
        starts = [next(i for i in range(0, len(ids), 63) if ids[i : i + 63] == row) for row in windows[:, 1:].tolist()]
        assert len(set(starts)) == len(starts) and max(starts) > 0.9 * len(ids) and min(starts) < 0.1 * len(ids)

    def test_without_bos(self) -> None:
        tokenizer = load_tokenizer(bpe_spec(bos_id=None), CONFIG.vocab_size)
        found = of_texts([words(900)], tokenizer, 64, 1 << 20)
        assert found.tokens.windows[:, 0].tolist() != [1] * len(found.tokens.windows)

    @pytest.mark.parametrize(
        ("text", "remark"),
        [
            ("Once upon a time there was a fox.\n" * 500, "repeats itself"),
            ("Давным-давно жила-была лиса в лесу. " * 3, "mostly Cyrillic"),
            (words(300), None),
        ],
    )
    def test_bad_texts(self, text: str, remark: str | None) -> None:
        tokenizer = load_tokenizer(sentencepiece_spec(), CONFIG.vocab_size)
        remarks = text_remarks([text], [tokenizer.encode(text)], tokenizer)
        if remark is None:
            assert remarks == []
        else:
            assert any(remark in found for found in remarks)

    def test_one_subject_is_said(self) -> None:
        """Documents of one program, and prose on eighteen subjects."""
        tokenizer = load_tokenizer(sentencepiece_spec(), CONFIG.vocab_size)
        root = Path(__file__).parents[2]
        pages = "\n".join(path.read_text() for path in sorted((root / "docs").glob("*.md")))
        prose = (root / "tests" / "data" / "prose.txt").read_text()
        for text, expected in ((pages, True), (prose, False), (prose[:3000], False)):
            remarks = text_remarks([text], [], tokenizer)
            assert any("of one subject" in remark for remark in remarks) == expected


class TestCommand:
    @pytest.mark.slow
    def test_it_prints_what_it_does(
        self, source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = str(tmp_path / "out.bin")
        command = ["quantize", str(source), "-o", out, "--type", "q4"]
        assert __main__.main([*command, "--calibrate", str(text), str(text)]) == 0
        said = capsys.readouterr()
        assert "KL divergence" in said.err and "calibrating 2 layers" in said.err and said.out == ""
        assert __main__.main([*command, "--no-calibrate"]) == 0
        assert capsys.readouterr().err == ""
        with Llama(out) as llm:
            assert llm.generate("Once", max_tokens=3).text

    @pytest.mark.slow
    def test_inspect_shows_the_calibration(
        self, source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        quantize(source, tmp_path / "out.bin", text)
        assert __main__.main(["inspect", "-m", str(tmp_path / "out.bin")]) == 0
        out = capsys.readouterr().out
        assert "calibrated GPTQ, asymmetric, on" in out and "KL" in out

    def test_wrong_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        for flags in (["--no-calibrate", "--calibrate", "x"], ["--calibrate-seconds", "0"]):
            assert __main__.main(["quantize", "in", "-o", "out", "--type", "q4", *flags]) == 2
