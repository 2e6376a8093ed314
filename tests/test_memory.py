"""Models and generations that do not fit into memory are refused, with numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_llama import CONFIG, PROMPTS, write_tiny

from pyllama2 import Llama, Pyllama2Error, memory
from pyllama2.modelfile import ModelFile
from pyllama2.weights import Quantization

pytestmark = pytest.mark.usefixtures("one_thread")


class TestMemory:
    def test_a_model_that_does_not_fit(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        working = memory._WORKING_BYTES
        monkeypatch.setattr(memory, "available_bytes", lambda: working + 100_000)
        with pytest.raises(
            Pyllama2Error, match=r"needs .* GiB \(float32, a context of 64 tokens\), .*available; q8 would"
        ):
            Llama(path)
        with Llama(path, quant="q8") as llm:
            llm.generate("a", max_tokens=1)
        monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
        with pytest.raises(Pyllama2Error, match="no quantization of it would fit"):
            Llama(path)

    def test_less_context_would_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = replace(CONFIG, max_seq_len=100_000)
        float32 = Quantization.of("float32")
        room = (
            memory.weight_bytes(config, float32) + memory._WORKING_BYTES + memory.cache_bytes(config, 5000, "float32")
        )
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
        memory.check_model_fits(config, float32, 5000, "float32")
        with pytest.raises(Pyllama2Error, match="float32 with n_ctx=5000 would fit"):
            memory.check_model_fits(config, float32, 100_000, "float32")

    def test_generations_that_do_not_fit(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = [c.text for c in llm.generate(PROMPTS, seed=1)]
        row = memory.cache_bytes(CONFIG, 64, "float32")
        monkeypatch.setattr(memory, "available_bytes", lambda: row * 2)  # room for two at a time
        assert [c.text for c in llm.generate(PROMPTS, seed=1)] == expected
        monkeypatch.setattr(memory, "available_bytes", lambda: row // 2)
        with pytest.raises(Pyllama2Error, match=r"64 tokens need .*32 tokens together would fit"):
            llm.logits([1] * 64)

    def test_what_is_needed_is_what_is_used(self, tmp_path: Path) -> None:
        for type in ("float32", "float16", "q8", "q4"):
            model = ModelFile.open(write_tiny(tmp_path / f"{type}.bin", type=type))
            assert memory.weight_bytes(model.config, model.quantization) == model.nbytes

    def test_available_memory(self, tmp_path: Path) -> None:
        available = memory.available_bytes()
        assert available is None or available > 0
        assert memory._cgroup_available(tmp_path) is None
        two = {
            "memory.max": "1000",
            "memory.current": "900",
            "memory.stat": "anon 1\ninactive_file 300\nactive_file 50\n",
        }
        for name, text in two.items():
            (tmp_path / name).write_text(text)
        assert memory._cgroup_available(tmp_path) == 450
        (tmp_path / "memory.max").write_text("max\n")
        assert memory._cgroup_available(tmp_path) is None
        (tmp_path / "memory.limit_in_bytes").write_text("500")
        (tmp_path / "memory.usage_in_bytes").write_text("700")
        (tmp_path / "memory.stat").write_text("total_inactive_file 100\n")
        assert memory._cgroup_available(tmp_path) == 0
