"""python -m pyllama2.bench: what it reports agrees with itself and with the model; nothing depends on the time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import GQA, quantized_model, random_weights
from helpers.tiny_llama import CONFIG, write_tiny

from pyllama2 import Llama, __main__, bench
from pyllama2._cpu import CpuBackend
from pyllama2._cpu.bandwidth import read, touch
from pyllama2.analysis import bandwidth as machine
from pyllama2.analysis import benchmark
from pyllama2.backend.base import Batch
from pyllama2.errors import NumericalError

SMALL = ["--prompt-tokens", "20", "--new-tokens", "5", "--repeat", "2", "-t", "1"]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """No variable that changes the command line, and a small buffer to read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYLLAMA2_MODEL", "PYLLAMA2_DEVICE", "PYLLAMA2_NUM_THREADS"):
            patch.delenv(name, raising=False)
        patch.setattr(machine, "BUFFER_BYTES", 1 << 20)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin", None, "q8")


def report(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert bench.main([*map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    figures = json.loads(out)
    assert isinstance(figures, dict)
    return figures


class TestReport:
    def test_json(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        figures = report(capsys, "-m", model, *SMALL, "--context", "30", "--kv-dtype", "float32")
        asked = {"prompt_tokens": 20, "new_tokens": 5, "context": 30, "repeat": 2, "n_threads": 1}
        known = {"model": "tiny.bin", "device": "cpu", "kv_dtype": "float32", "quantization": "q8", "group_size": 64}
        assert asked.items() <= figures.items()
        assert known.items() <= figures.items()
        for name in ("prompt", "decode", "bandwidth"):
            assert 0 < figures[name]["min"] <= figures[name]["median"] <= figures[name]["max"]
        with Llama(model, n_threads=1, kv_dtype="float32") as llm:
            assert figures["weight_bytes"] == llm.describe()["bytes_per_token"]
            assert figures["instruction_set"] == llm.describe()["isa"]
        # The step at position p reads p + 1 positions: 33 on average.
        assert figures["kv_cache_bytes"] == 2 * CONFIG.n_layers * CONFIG.kv_dim * 33 * 4
        bytes_per_token = figures["weight_bytes"] + figures["kv_cache_bytes"]
        assert figures["read"] == pytest.approx(figures["decode"]["median"] * bytes_per_token / 1e9)
        assert figures["share"] == pytest.approx(figures["read"] / figures["bandwidth"]["median"])

    def test_text(self, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmark, "last_cache_bytes", lambda: 1 << 30)
        assert bench.main(["-m", str(model), *SMALL]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        titles = ["model", "device", "prompt", "decode", "read", "bandwidth", "logits"]
        assert [line.split()[0] for line in out.splitlines()] == titles
        assert "1 thread," in out
        assert "fit in the processor's cache" in out
        monkeypatch.setattr(benchmark, "last_cache_bytes", lambda: None)
        assert bench.main(["-m", str(model), *SMALL]) == 0
        assert "processor's cache" not in capsys.readouterr().out

    @pytest.mark.slow
    def test_the_hash_is_of_the_logits(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        logits = report(capsys, "-m", model, *SMALL)["logits"]
        assert report(capsys, "-m", model, *SMALL, "-t", 2)["logits"] == logits
        assert report(capsys, "-m", model, *SMALL, "--context", 1)["logits"] != logits
        other = write_tiny(tmp_path / "other.bin", None, "q8", weights=random_weights(CONFIG, seed=1))
        assert report(capsys, "-m", other, *SMALL)["logits"] != logits

    def test_the_bundled_model_is_the_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        figures = report(capsys, "-t", 1, "--repeat", 1, "--new-tokens", 2)
        assert (figures["model"], figures["prompt_tokens"]) == ("stories.bin", 256)


class TestLengths:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [([], (64, 64)), (["-c", "40"], (40, 40)), (["--context", "60"], (64, 4)), (["--prompt-tokens", "7"], (7, 64))],
    )
    def test_the_usual_ones_fit_in_the_context(
        self, arguments: list[str], expected: tuple[int, int], model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        figures = report(capsys, "-m", model, "-t", 1, "--repeat", 1, *arguments)
        assert (figures["prompt_tokens"], figures["new_tokens"]) == expected

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (["--prompt-tokens", "65"], "65 tokens .* 64"),
            (["--new-tokens", "65"], "context of 65, .* 64"),
            (["--context", "64"], "context of 65, .* 64"),
            (["--context", "60", "--new-tokens", "5"], "context of 65, .* 64"),
            (["-m", "missing.bin"], "missing.bin"),
        ],
    )
    def test_1_with_one_sentence(
        self, arguments: list[str], match: str, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench.main(["-m", str(model), *arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert re.search(match, err)

    @pytest.mark.parametrize("arguments", [["--repeat", "0"], ["--context", "-1"], ["--prompt-tokens", "x"]])
    def test_2_for_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert bench.main(arguments) == 2
        assert "usage" in capsys.readouterr().err

    def test_the_subcommand(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert __main__.main(["bench", "-m", str(model), *SMALL]) == 0
        assert capsys.readouterr().out.startswith("model      tiny.bin")


class TestParts:
    @pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
    def test_a_filled_cache_is_as_if_computed(self, kv_dtype: str) -> None:
        """Its first positions are those of the tokens, the others repeat them."""
        model = quantized_model(GQA, random_weights(GQA), "float32")
        with closing(CpuBackend(model, n_threads=1, kv_dtype=kv_dtype)) as backend:
            filled, computed = backend.new_cache(2, 50), backend.new_cache(2, 50)
            benchmark.fill_cache(backend, filled, 40, row=1)
            backend.forward(Batch.of_sequence(benchmark.random_tokens(GQA.vocab_size, 16), row=1), computed)
            for name, array in filled.save_row(1, 50).items():
                expected = computed.save_row(1, 16)[name]
                for start in (0, 16):
                    np.testing.assert_array_equal(array[:, :, start : start + 16], expected)
                np.testing.assert_array_equal(array[:, :, 32:40], expected[:, :, :8])
                assert not array[:, :, 40:].any()

    @pytest.mark.parametrize("n_threads", [1, 2, 3])
    @pytest.mark.parametrize("rows", [1, 2, 7, 64])
    def test_every_word_is_read_once(self, rows: int, n_threads: int) -> None:
        memory = np.random.default_rng(0).integers(0, 1 << 63, (rows, 32), np.uint64)
        assert read(memory, n_threads) == int(memory.sum(dtype=np.uint64))
        touch(memory, n_threads)
        assert not memory.any()

    def test_logits_that_are_not_finite(self) -> None:
        with pytest.raises(NumericalError):
            benchmark.logits_hash([np.array([1, np.nan], np.float32)])

    def test_repeats_that_differ(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs = iter(benchmark.Run(1, 1, str(i)) for i in range(9))
        monkeypatch.setattr(benchmark, "measure", lambda *arguments: next(runs))
        assert bench.main(["-m", str(model), *SMALL]) == 1
        assert "logits of 2 equal runs differ" in capsys.readouterr().err
