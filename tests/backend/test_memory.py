"""Models and generations that do not fit into memory are refused, with numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny import quantized_model, random_weights, write_model
from helpers.tiny_llama import CONFIG, PROMPTS, write_tiny
from helpers.tiny_tokenizers import sentencepiece_spec

from pyllama2 import Llama, Pyllama2Error, memory
from pyllama2._cpu import CpuBackend
from pyllama2._cpu.cache import CpuKVCache
from pyllama2._cpu.workspace import Workspace
from pyllama2.config import ModelConfig
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Quantization

pytestmark = pytest.mark.usefixtures("one_thread")


WIDE = ModelConfig(
    dim=1 << 17, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, vocab_size=2, max_seq_len=4096
)
# Its logits are the largest thing about it.
LARGE_VOCABULARY = ModelConfig(
    dim=1, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, vocab_size=1 << 18, max_seq_len=4096,
    tied_embeddings=True,
)  # fmt: skip


def room_for(llm: Llama, n_rows: int, n_tokens: int) -> int:
    """Bytes that must be available for so many texts of so many tokens, and no more."""
    assert llm._backend is not None
    row = llm._backend.kv_cache_bytes(1, n_tokens) + memory.logits_bytes(llm.config, 1)
    return llm._backend.pending_bytes() + memory._step_bytes(llm.config) + n_rows * row


class TestMemory:
    def test_a_model_that_does_not_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_tiny(tmp_path / "m.bin", hidden_dim=8000)  # so many that the weights count
        room = memory.needed_bytes(replace(CONFIG, hidden_dim=8000), Quantization.of("q8"), 64, "float32", 1)
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
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
        room = memory.needed_bytes(config, float32, 5000, "float32")
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
        memory.check_model_fits(config, float32, 5000, "float32")
        with pytest.raises(Pyllama2Error, match="float32 with n_ctx=5008 would fit"):  # a cache has blocks of 16
            memory.check_model_fits(config, float32, 100_000, "float32")

    def test_generations_that_do_not_fit(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = [c.text for c in llm.generate(PROMPTS, seed=1)]
        monkeypatch.setattr(llm._backend, "pending_bytes", lambda: 0)
        for n_rows in (2, 1):
            monkeypatch.setattr(memory, "available_bytes", lambda n_rows=n_rows: room_for(llm, n_rows, 64))
            assert [c.text for c in llm.generate(PROMPTS, seed=1)] == expected
        monkeypatch.setattr(memory, "available_bytes", lambda: room_for(llm, 1, 32))
        with pytest.raises(Pyllama2Error, match=r"values of 63 tokens need .*32 tokens together would fit"):
            llm._scheduler._rows.close()
            llm.generate([1] * 60, max_tokens=4)
        llm.generate([1] * 20, max_tokens=4)

    def test_keys_become_int8_where_only_that_fits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CpuBackend, "pending_bytes", lambda backend: 0)  # it depends on what was freed before
        path = write_tiny(tmp_path / "m.bin", max_seq_len=4096)
        with Llama(path, kv_dtype="int8") as llm:
            int8, text = room_for(llm, 1, 4096), llm.generate("a", max_tokens=5, seed=1).text
        with Llama(path, kv_dtype="auto") as llm:  # there is room for anything
            assert llm.describe()["kv_dtype"] == "float32"
            float32 = room_for(llm, 1, 4096)
        assert int8 < float32
        for room, dtype in ((float32, "float32"), (float32 - 1, "int8"), (int8, "int8"), (int8 - 1, "int8")):
            monkeypatch.setattr(memory, "available_bytes", lambda room=room: room)
            monkeypatch.setattr("pyllama2.loading.load.check_model_fits", lambda *args: None)
            with Llama(path, kv_dtype="auto") as llm:
                assert llm.describe()["kv_dtype"] == dtype
                assert dtype == "float32" or llm.generate("a", max_tokens=5, seed=1).text == text
        monkeypatch.setattr(memory, "available_bytes", lambda: int8)
        with Llama(path, kv_dtype="auto", n_ctx=64) as llm:  # a shorter one fits as it is
            assert llm.describe()["kv_dtype"] == "float32"

    def test_logits_that_do_not_fit(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llm._backend, "pending_bytes", lambda: 0)
        room = memory._step_bytes(CONFIG) + memory.logits_bytes(CONFIG, 40)
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
        with pytest.raises(Pyllama2Error, match=r"the logits of 64 tokens need .*those of 40 tokens would fit"):
            llm.logits([1] * 64)
        with pytest.raises(Pyllama2Error, match="keys and values of 40 tokens"):  # for both there is no room
            llm.logits([1] * 40)
        assert llm.logits([1] * 20).shape == (20, 340)

    def test_wide_vectors_count(self) -> None:
        """The scratch memory of a small file with wide vectors is larger than the file."""
        needed = memory.needed_bytes(WIDE, Quantization.of("float32"), 2048, "float32", 2)
        scratch = Workspace(WIDE, Quantization.of("float32"), 2)
        assert needed > memory.weight_bytes(WIDE, Quantization.of("float32")) + scratch.nbytes

    @pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
    def test_padded_heads_count(self, kv_dtype: str) -> None:
        """Values of 2 numbers take the room of 16."""
        one, both = (
            memory.needed_bytes(LARGE_VOCABULARY, Quantization.of("float32"), n, kv_dtype, 1) for n in (1024, 2048)
        )
        assert both - one == CpuKVCache(LARGE_VOCABULARY, 1, 1024, kv_dtype).nbytes
        assert both - one == memory.kv_cache_bytes(LARGE_VOCABULARY, 1024, kv_dtype)
        assert both - one > 4 * 2 * 2 * 1024  # numbers of a byte or more

    def test_the_weights_of_a_mapped_file_are_left_in_memory(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        """They count as available, and as free for others; but the model has to read them."""
        assert llm._backend is not None
        weights = llm.describe()["weight_bytes"]
        assert llm._backend.pending_bytes() >= weights
        monkeypatch.setattr(memory, "available_bytes", lambda: weights)
        with pytest.raises(Pyllama2Error, match="keys and values"):
            llm.score([1] * 64)

    def test_what_is_needed_is_what_is_used(self, tmp_path: Path) -> None:
        for type in ("float32", "float16", "q8", "q4"):
            model = StoredModel.open(write_tiny(tmp_path / f"{type}.bin", weight_type=type))
            assert memory.weight_bytes(model.config, model.quantization) == model.nbytes

    @pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says it")
    def test_what_the_machine_can_give(self) -> None:
        page, available = os.sysconf("SC_PAGE_SIZE"), memory._system_available()
        assert available is not None
        assert os.sysconf("SC_AVPHYS_PAGES") * page / 2 < available < os.sysconf("SC_PHYS_PAGES") * page

    def test_the_least_limit_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limits = {"outer": 300, "inner": 200}
        monkeypatch.setattr(memory, "_CGROUP_ROOTS", ("outer", "inner", "none"))
        monkeypatch.setattr(memory, "_cgroup_available", limits.get)
        for free, least in ((100, 100), (250, 200), (None, 200)):
            monkeypatch.setattr(memory, "_system_available", lambda free=free: free)
            assert memory.available_bytes() == least
        limits.clear()
        assert memory.available_bytes() is None

    def test_what_a_container_can_have(self, tmp_path: Path) -> None:
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


# Bytes that the process has in memory: now, and the most that it ever had.
_MEASURE = """
import resource, sys
import pyllama2
def now():
    rows = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Rss:")) * 1024
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with pyllama2.Llama(n_threads=1) as warm:  # what is loaded once for all models
    warm.generate(["a", "b"], max_tokens=4)
"""


def run(code: str, *arguments: object) -> list[float]:
    """Numbers that a program prints, which begins with _MEASURE."""
    command = [sys.executable, "-c", _MEASURE + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return [float(number) for number in result.stdout.split()]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not say what a process has")
class TestProcess:
    """What a process really has in memory."""

    @pytest.mark.subprocess
    def test_scores_of_a_large_vocabulary(self, tmp_path: Path) -> None:
        model = quantized_model(LARGE_VOCABULARY, random_weights(LARGE_VOCABULARY), "float32")
        code = """
from pyllama2.analysis.evaluation import _compare
llm, before = pyllama2.Llama(sys.argv[1], n_threads=1), most()
llm.score([0, 1] * 150)
print(most() - before)
_compare(llm, llm, [0, 1] * 70, 0)
print(most() - before)
llm.generate([5], max_tokens=2, logprobs=3, ignore_eos=True) if llm._tokenizer else None
print(most() - before)
"""
        assert max(run(code, write_model(tmp_path / "m.bin", model))) < 300e6

    @pytest.mark.subprocess
    @pytest.mark.parametrize("quant", ["float32", "q8"])
    def test_what_describe_says(self, tmp_path: Path, quant: str) -> None:
        """Its figures are what the process grew by, with one text in the cache and with several."""
        config = ModelConfig(
            dim=512, hidden_dim=1536, n_layers=6, n_heads=8, n_kv_heads=8, head_dim=64, vocab_size=4096,
            max_seq_len=1024, tied_embeddings=True,
        )  # fmt: skip
        model = quantized_model(config, random_weights(config), "float32")
        model.tokenizer = sentencepiece_spec()
        code = """
before = now()
llm = pyllama2.Llama(sys.argv[1], n_threads=1, quant=None if sys.argv[2] == "float32" else sys.argv[2])
for n in (1, 3):
    llm.generate([[i] * 600 for i in range(5, 5 + n)], max_tokens=2, ignore_eos=True)
    facts = llm.describe()
    print(now() - before, facts["weight_bytes"] + facts["scratch_bytes"] + facts["kv_cache_bytes"])
"""
        grown, said, grown_later, said_later = run(code, write_model(tmp_path / "m.bin", model), quant)
        assert said == pytest.approx(grown, rel=0.05) and said_later == pytest.approx(grown_later, rel=0.05)
        assert said_later > said
