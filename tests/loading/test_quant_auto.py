"""quant="auto": what the weights of a checkpoint are taken as."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.foreign import write_huggingface
from helpers.gguf_files import write_model
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import sentencepiece_model
from make_random_model import SHAPES

from pyllama2 import Llama
from pyllama2.checkpoint import open_checkpoint
from pyllama2.loading import load_model
from pyllama2.loading.choice import choose_quantization, main_type
from pyllama2.memory import needed_bytes
from pyllama2.storage.weights import Quantization

CONFIG_7B = SHAPES["7b"][0]
GIB = 1 << 30
WEIGHTS = random_weights(CONFIG)


def checkpoint(dtype: str, config: Any = CONFIG_7B) -> Any:
    """A checkpoint whose matrices have a type, and whose norms are float32, as in GGUF files."""

    def tensor(name: str) -> Any:
        if name.endswith("norm.weight"):
            return SimpleNamespace(dtype="F32", nbytes=4 * config.dim)
        return SimpleNamespace(dtype=dtype, nbytes=config.dim**2 // 2)

    return SimpleNamespace(config=config, tensor=tensor)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory that is free, in GiB."""

    def set_free(gib: float | None) -> None:
        n_bytes = None if gib is None else int(gib * GIB)
        monkeypatch.setattr("pyllama2.loading.choice.available_bytes", lambda: n_bytes)
        monkeypatch.setattr("pyllama2.memory.available_bytes", lambda: n_bytes)

    return set_free


class TestChoice:
    """A 7B model takes 26 GiB as float32, 13 as float16, 7 as q8 and 3.9 as q4."""

    @pytest.mark.parametrize(
        ("dtype", "gib", "expected"),
        [
            ("BF16", 64, "float32/0"),
            ("BF16", 32, "q8/64"),
            ("BF16", 12, "q8/64"),
            ("BF16", 6, "q4/64"),
            ("F16", 64, "float32/0"),
            ("F16", 32, "float16/0"),
            ("F16", 12, "q8/64"),
            ("Q8_0", 64, "q8/32"),
            ("Q8_0", 12, "q8/32"),
            ("Q8_0", 6, "q4/32"),
            ("Q4_0", 64, "q4/32"),
            ("Q4_0", 12, "q4/32"),
            ("Q4_K", 64, "q4/32"),
            ("Q4_K", 12, "q4/32"),  # what a laptop of 16 GB has left
            ("Q4_K", 6, "q4/32"),
            ("Q6_K", 12, "q8/32"),
            ("Q5_K", 6, "q4/32"),
            ("Q2_K", 12, "q4/32"),
            ("Q4_K", 1, "q4/64"),  # the smallest; that it does not fit is said later
            ("F32", None, "float32/0"),
            ("Q4_K", None, "q4/32"),
        ],
    )
    def test_by_type_and_memory(self, free: Any, dtype: str, gib: float | None, expected: str) -> None:
        free(gib)
        chosen = choose_quantization(checkpoint(dtype), 2048, None, 2)
        assert f"{chosen.type}/{chosen.group_size}" == expected
        if gib is not None and gib > 1:
            assert needed_bytes(CONFIG_7B, chosen, 2048, "float16", 2) < gib * GIB

    @pytest.mark.parametrize(("gib", "expected"), [(64, "q8/32"), (1.5, "q4/32"), (None, "q8/32")])
    def test_a_small_model_in_4_bits_gets_8(self, free: Any, gib: float | None, expected: str) -> None:
        """Its q8 takes 0.9 GiB, so that nothing is lost; if there is memory for it."""
        free(gib)
        chosen = choose_quantization(checkpoint("Q4_K", replace(CONFIG_7B, n_layers=3, vocab_size=8000)), 512, None, 2)
        assert f"{chosen.type}/{chosen.group_size}" == expected

    def test_a_device_without_float_types(self, free: Any) -> None:
        free(64)
        assert choose_quantization(checkpoint("BF16"), 2048, None, 2, quantized=True).type == "q8"

    def test_the_type_of_most_bytes(self, tmp_path: Path) -> None:
        with closing(open_checkpoint(write_model(tmp_path / "m.gguf", CONFIG, WEIGHTS, "Q4_1"))) as opened:
            assert main_type(opened) == "Q4_1"


def quantization_of(path: Path, **options: Any) -> Quantization:
    options = {"quant": "auto", "tokenizer": None, "n_ctx": None, "kv_dtype": None, **options}
    return load_model(str(path), **options).quantization


class TestLoading:
    @pytest.mark.parametrize(("dtype", "expected"), [("Q8_0", "q8"), ("Q4_0", "q4")])
    def test_the_same_numbers(self, tmp_path: Path, dtype: str, expected: str) -> None:
        """Matrices of these types are kept exactly; the embedding and the output matrix of q4 are float32 and q8."""
        path = write_model(tmp_path / "m.gguf", CONFIG, WEIGHTS, dtype)
        model = load_model(str(path), quant="auto", tokenizer=None, n_ctx=None, kv_dtype=None)
        assert (model.quantization.type, model.quantization.group_size) == (expected, 32)
        with closing(open_checkpoint(path)) as opened:
            for name, shape, tensor in opened.tensors():
                if len(shape) == 2 and name != "output.weight":
                    assert np.array_equal(model.weights[name].dequantize(), tensor.read()), name

    @pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
    def test_float_types_stay_float(self, tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
        assert quantization_of(write_huggingface(tmp_path / "m", CONFIG, WEIGHTS, dtype=dtype)).type == "float32"
        said = f"m ({dtype}) is used as float32; --keep, or keep=True, keeps the converted file for the next start"
        assert caplog.messages == ([] if dtype == "F32" else [said])

    def test_float16_stays_in_its_file(self, tmp_path: Path, free: Any, caplog: pytest.LogCaptureFixture) -> None:
        path = write_huggingface(tmp_path / "m", CONFIG, WEIGHTS, dtype="F16")
        way = Quantization.of("float32")
        free(needed_bytes(CONFIG, way, CONFIG.max_seq_len, "float32", None) * 1.5 / GIB)
        assert quantization_of(path).type == "float16" and caplog.messages == []

    def test_it_is_said_what_was_chosen(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = write_model(tmp_path / "m.gguf", CONFIG, WEIGHTS, "Q4_1")
        assert quantization_of(path).type == "q8"
        assert caplog.messages == [
            "m.gguf (Q4_1) is used as q8; --keep, or keep=True, keeps the converted file for the next start"
        ]
        caplog.clear()
        for quant in ("q8", "q4", "float32", None):
            assert quantization_of(path, quant=quant).type == (quant or "float32")
        assert caplog.text == ""

    def test_our_own_files_stay_as_they_are(self, tmp_path: Path, free: Any) -> None:
        for kind in ("float32", "q8", "q4"):
            assert quantization_of(write_tiny(tmp_path / f"{kind}.bin", weight_type=kind)).type == kind

    def test_it_is_the_default(self, tmp_path: Path, one_thread: None) -> None:
        path = write_model(tmp_path / "m.gguf", CONFIG, WEIGHTS, "Q8_0")
        (tmp_path / "t.model").write_bytes(sentencepiece_model())
        with Llama(path, tokenizer=tmp_path / "t.model") as llm:
            assert llm.describe()["quantization"] == "q8"
            assert llm.generate("Once", max_tokens=2).usage.completion_tokens == 2

    def test_a_wrong_type(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="quant must be auto, float32, float16, q8, q4 or None, not 'q5'"):
            quantization_of(write_tiny(tmp_path / "m.bin"), quant="q5")


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Warnings alone, as commands have it."""
    with caplog.at_level(logging.WARNING, logger="pyllama2"):
        yield
