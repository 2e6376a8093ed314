"""python -m pyllama2.inspect: its figures are those of the model, whatever kind of checkpoint it is."""

from __future__ import annotations

import importlib
import inspect as stdlib_inspect
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.foreign import llama2c_bytes, write_huggingface, write_meta
from helpers.tiny import GQA, TIED, quantized_model, random_weights, write_model
from helpers.tiny_llama import CHATML, CONFIG, write_tiny
from helpers.tiny_tokenizers import sentencepiece_model, sentencepiece_spec

from pyllama2 import Llama, __main__, memory
from pyllama2._cpu import CpuBackend
from pyllama2.analysis import bandwidth as machine
from pyllama2.analysis import inspection
from pyllama2.checkpoint import open_checkpoint
from pyllama2.storage.model_file import StoredModel

inspect = importlib.import_module("pyllama2.inspect")
ROOT = Path(__file__).resolve().parents[2]
TEXT = "Once upon a time"


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """No variable that changes the command line, one thread, and measurements that take no time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYLLAMA2_MODEL", "PYLLAMA2_DEVICE", "OMP_NUM_THREADS", "NO_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("PYLLAMA2_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(inspection, "BUFFER_BYTES", 1 << 16)
        patch.setattr(machine, "_SHORT_PASS_S", 0)
        patch.setattr(machine, "_STEPS_S", 1e-4)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin", weight_type="q8")


def inspected(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert inspect.main([*map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    values = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(values, dict)
    return values


def printed(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert inspect.main([*map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


class TestJson:
    def test_config_and_parameters(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        values = inspected(capsys, model)
        opened = StoredModel.open(model)
        assert values["config"] == asdict(CONFIG)
        assert values["quantization"] == {**asdict(opened.quantization), "layers": []}
        assert values["calibration"] is None
        assert (values["kind"], values["source"]) == ("pyllama2", "a tiny model")
        assert values["files"] == {str(model): model.stat().st_size}
        assert values["n_parameters"] == sum(values["parameters"].values()) == CONFIG.n_parameters
        dim, layers = CONFIG.dim, CONFIG.n_layers
        assert values["parameters"] == {
            "embeddings": CONFIG.vocab_size * dim, "output": CONFIG.vocab_size * dim, "norms": (2 * layers + 1) * dim,
            "attention": layers * 2 * dim * (CONFIG.q_dim + CONFIG.kv_dim),
            "feed forward": layers * 3 * dim * CONFIG.hidden_dim,
        }  # fmt: skip
        assert values["tokenizer"]["bos_id"] == 1 and values["tokenizer"]["special_tokens"]["<s>"] == 1
        assert values["chat_template"] is None

    def test_tensors_have_the_statistics_of_their_numbers(
        self, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = StoredModel.open(model).weights
        tensors = inspected(capsys, model)["tensors"]
        assert [tensor["name"] for tensor in tensors] == list(weights)
        for tensor, weight in zip(tensors, weights.values(), strict=True):
            assert (tuple(tensor["shape"]), tensor["type"], tensor["nbytes"]) == (
                weight.shape, weight.type, weight.nbytes,
            )  # fmt: skip
            numbers = weight.dequantize().astype(np.float64)
            statistics = tensor["statistics"]
            assert (statistics["n_read"], statistics["not_finite"]) == (numbers.size, 0)
            for name in ("min", "max", "mean", "std"):
                assert statistics[name] == pytest.approx(getattr(numbers, name)(), rel=1e-6, abs=1e-9)

    def test_every_field_is_in_the_help(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        values = inspected(capsys, model)
        need = values["needs"][0]
        names = [*values, *values["tensors"][0], *values["tensors"][0]["statistics"], *need]
        names += [*need["speed"]["int8"], *inspected(capsys, model, "--tokens", TEXT)]
        for name in names:
            assert re.search(rf"\b{name}\b", inspect._EPILOG), name

    def test_numbers_that_are_not_finite(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        weights = random_weights(CONFIG)
        weights["norm.weight"][:] = np.nan
        weights["output.weight"][3, 5] = np.inf
        path = write_tiny(tmp_path / "m.bin", weights=weights)
        tensors = {tensor["name"]: tensor["statistics"] for tensor in inspected(capsys, path)["tensors"]}
        assert tensors["norm.weight"]["mean"] is None and tensors["norm.weight"]["not_finite"] == CONFIG.dim
        assert tensors["output.weight"]["not_finite"] == 1 and tensors["output.weight"]["max"] < 10
        text = printed(capsys, path)
        assert re.search(rf"  norm .* {CONFIG.dim} not finite!\n", text)

    def test_large_tensors_are_sampled(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("pyllama2.analysis.tensor_statistics.SAMPLE", 1000)
        read = {tensor["name"]: tensor["statistics"]["n_read"] for tensor in inspected(capsys, model)["tensors"]}
        assert read["norm.weight"] == CONFIG.dim and read["output.weight"] < CONFIG.vocab_size * CONFIG.dim
        text = printed(capsys, model)
        assert re.search(r"\n  output .* ~-\d", text) and "~ of a sample" in text
        exact = inspected(capsys, model, "--exact")["tensors"]
        assert all(tensor["statistics"]["n_read"] == math.prod(tensor["shape"]) for tensor in exact)
        assert "~" not in printed(capsys, model, "--exact")


class TestNeeds:
    def test_memory_is_what_a_llama_takes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Positions of the cache come in blocks of 16, and values of a head in as many numbers."""
        path = write_tiny(tmp_path / "m.bin", weight_type="q4", head_dim=6)
        values = inspected(capsys, path, "-c", "50")
        assert values["context"] == 50
        opened = StoredModel.open(path)
        (need,) = values["needs"]
        assert (need["quant"], need["as_stored"], need["weight_bytes"]) == ("q4", True, opened.nbytes)
        with Llama(path) as llm:
            assert need["bytes_per_token"] == llm.describe()["bytes_per_token"]
        for dtype, expected in values["kv_bytes"].items():
            with closing(CpuBackend(opened, kv_dtype=dtype)) as backend, closing(backend.new_cache(1, 50)) as cache:
                assert cache.nbytes == expected
            working = memory.working_bytes(opened.config, opened.quantization, 50, values["n_threads"])
            assert need["total_bytes"][dtype] == opened.nbytes + expected + working

    @pytest.mark.parametrize("config", [CONFIG, TIED, GQA])
    @pytest.mark.parametrize("stored", ["float32", "float16", "q8", "q4"])
    def test_bytes_per_token(self, config: Any, stored: str) -> None:
        model = quantized_model(config, random_weights(config), stored, output_type="q4" if stored == "q4" else None)
        embedding = 0 if config.tied_embeddings else model.weights["tok_embeddings.weight"].nbytes
        assert memory.weight_bytes_per_token(config, model.quantization) == model.nbytes - embedding

    @pytest.mark.parametrize(
        ("stored", "ways"),
        [("float32", ["float32", "q8", "q4"]), ("float16", ["float16", "q8", "q4"]), ("q8", ["q8"]), ("q4", ["q4"])],
    )
    def test_ways_to_run_are_those_that_llama_allows(self, stored: str, ways: list[str], tmp_path: Path) -> None:
        path = write_tiny(tmp_path / "m.bin", weight_type=stored)
        needs = inspection.inspect_model(path).needs
        assert [need.quant for need in needs] == ways and [need.as_stored for need in needs].index(True) == 0
        for need in needs:
            with Llama(path, quant=need.quant) as llm:
                assert llm.describe()["weight_bytes"] == need.weight_bytes
                assert llm.describe()["bytes_per_token"] == need.bytes_per_token

    def test_speed_is_bytes_over_bandwidth_and_a_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine.ReadBandwidth, "measure", lambda self: [1.0, 2.0])
        monkeypatch.setattr(inspection, "step_seconds", lambda n_layers, n_threads: n_layers * n_threads / 1e3)
        path = write_tiny(tmp_path / "m.bin", weight_type="q4", max_seq_len=50_000)
        (need,) = inspection.inspect_model(path, n_threads=3).needs
        assert need.bandwidth == 2.0 and need.speed is not None
        config = replace(CONFIG, max_seq_len=50_000)
        for dtype, speed in need.speed.items():
            for position, actual in ((1, speed.at_start), (50_000, speed.at_end)):
                n_bytes = need.bytes_per_token + memory.kv_cache_bytes(config, position, dtype)
                assert 1 / actual == pytest.approx(n_bytes / 2e9 + CONFIG.n_layers * 3 / 1e3)
        assert need.speed["int8"].at_end > need.speed["float32"].at_end

    def test_measurements_are_of_what_a_token_reads(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        monkeypatch.setattr(machine, "available_bytes", lambda: None)
        monkeypatch.setattr(machine.ReadBandwidth, "measure", lambda self: sizes.append(self._buffer.nbytes) or [1.0])
        needs = inspection.inspect_model(model).needs
        assert sizes == [min(needs[0].bytes_per_token, inspection.BUFFER_BYTES) // 256 * 256]
        assert inspection.inspect_model(model, measure=False).needs[0].speed is None

    def test_what_does_not_fit_is_marked(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "does not fit" not in printed(capsys, model)
        monkeypatch.setattr(inspection, "available_bytes", lambda: 1000)
        text = printed(capsys, model)
        assert text.count("GB !") == 3 and "1.00 kB are available here; ! does not fit" in text
        monkeypatch.setattr(inspection, "available_bytes", lambda: None)
        assert "available" not in printed(capsys, model)

    def test_step(self) -> None:
        assert 0 < machine.step_seconds(2, 1) < 10


class TestKinds:
    """Every kind of checkpoint, none of which is converted."""

    def write(self, kind: str, path: Path) -> Path:
        weights = random_weights(GQA)
        if kind == "meta":
            return write_meta(path, GQA, weights, n_shards=1, dtype="BF16")
        if kind == "huggingface":
            return write_huggingface(path, GQA, weights, dtype="F16")
        (path / "m.bin").write_bytes(llama2c_bytes(GQA, weights, 2, group_size=4))
        return path / "m.bin"

    @pytest.mark.parametrize(("kind", "stored"), [("meta", "BF16"), ("huggingface", "F16"), ("llama2.c", "Q8_0")])
    def test_foreign(self, kind: str, stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.write(kind, tmp_path)
        values = inspected(capsys, path)
        assert (values["kind"], values["quantization"], values["tokenizer"]) == (kind, None, None)
        assert [need["quant"] for need in values["needs"]] == ["float32", "q8", "q4"]
        assert not any(need["as_stored"] for need in values["needs"])
        expected = {name: tensor.read().astype(np.float64) for name, _, tensor in open_checkpoint(path).tensors()}
        for tensor in values["tensors"]:
            assert tensor["type"] == stored or len(tensor["shape"]) == 1
            assert tensor["statistics"]["std"] == pytest.approx(expected[tensor["name"]].std(), rel=1e-6)
            assert tensor["statistics"]["max"] == pytest.approx(expected[tensor["name"]].max())
        text = printed(capsys, path)
        assert f"matrices in {stored}" in text and "tokenizer  none" in text

    @pytest.mark.slow
    def test_a_real_one(self, smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        values = inspected(capsys, "smollm2")
        assert values["n_parameters"] == 134_515_008 and values["tokenizer"]["eos_ids"] == [2]
        assert {tensor["type"] for tensor in values["tensors"]} == {"Q8_0", "Q4_1", "F32"}
        assert sum(tensor["nbytes"] for tensor in values["tensors"]) < smollm2_path.stat().st_size
        assert "<|im_start|>" in values["chat_template"]

    @pytest.mark.slow
    def test_the_bundled_model_is_the_default(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert inspected(capsys)["path"].endswith("stories.bin")
        monkeypatch.setenv("PYLLAMA2_MODEL", str(model))
        assert inspected(capsys)["path"] == inspected(capsys, "-m", model)["path"] == str(model)


class TestText:
    def test_layers_are_folded_unless_asked_for(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = printed(capsys, model)
        assert re.search(rf"\n  layers\.\*\.attention\.wq +{CONFIG.n_layers} x +{CONFIG.q_dim} x {CONFIG.dim} ", text)
        assert "layers.0" not in text
        every = printed(capsys, model, "--layers")
        for name in CONFIG.tensor_shapes():
            assert f"\n  {name.removesuffix('.weight')} " in every
        weights = [w.dequantize() for n, w in StoredModel.open(model).weights.items() if n.endswith("wq.weight")]
        assert f"{np.min(weights):.3g}" in text and f"{np.std(weights):.3g}" in text

    def test_sections(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = printed(capsys, write_tiny(tmp_path / "m.bin", "bpe", "q4", template=CHATML))
        for part in (
            "our own file",
            "q8, groups of 64",
            "bpe, ",
            "config",
            "dim 32",
            "parameters",
            "tensors",
            "memory for",
        ):
            assert part in text
        assert "template of" in text and "int8 keys, values" in text and "with 1 thread;" in text
        assert "\x1b" not in text and max(map(len, text.splitlines())) <= 120

    def test_a_file_cannot_steer_the_terminal(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = quantized_model(CONFIG, random_weights(CONFIG), "float32")
        model.source, model.chat_template = "\x1b]0;owned\x07\nnext", "\x1b[2J{{ messages }}"
        text = printed(capsys, write_model(tmp_path / "m.bin", model))
        assert "\x1b" not in text and "\x07" not in text and r"\x1b]0;owned\x07\nnext" in text

    @pytest.mark.subprocess
    def test_colours_are_for_terminals(self, model: Path) -> None:
        for variables, expected in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
            for arguments in (["--tokens", TEXT], []):
                leader, follower = pty.openpty()
                process = subprocess.Popen(
                    [sys.executable, "-m", "pyllama2.inspect", model, *arguments],
                    stdout=follower, stderr=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm", **variables},
                )  # fmt: skip
                os.close(follower)
                shown = b""
                while not shown.endswith(b"\n") or process.poll() is None:
                    try:
                        shown += os.read(leader, 10_000)
                    except OSError:  # the other end is closed
                        break
                os.close(leader)
                assert process.wait(timeout=60) == 0
                assert (b"\x1b[" in shown) == expected


class TestTokens:
    def test_what_a_prompt_becomes(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with Llama(model) as llm:
            ids, pieces = llm.tokenize(TEXT), [llm.tokenizer.piece(token_id) for token_id in llm.tokenize(TEXT)]
        values = inspected(capsys, model, "--tokens", TEXT)
        assert [token["id"] for token in values["tokens"]] == ids
        assert [token["text"] for token in values["tokens"]] == pieces
        assert [token["special"] for token in values["tokens"]] == [True] + [False] * (len(ids) - 1)
        assert b"".join(bytes.fromhex(token["bytes"]) for token in values["tokens"]).decode() == " " + TEXT
        assert (values["n_tokens"], values["n_bytes"], values["text"]) == (len(ids), len(TEXT), TEXT)
        lines = printed(capsys, model, "--tokens", TEXT).splitlines()
        assert lines[0] == "|".join(pieces) and lines[2].startswith(f"{len(ids)} tokens for {len(TEXT)} bytes")
        assert len(lines) == 5 + len(ids)
        assert re.fullmatch(r" +0 +1 +<s>  \(special\)", lines[5])

    def test_any_text(self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        for text in ("", "<s>", "a\nb\x1b[1m", "🦊 é"):
            values = inspected(capsys, model, "--tokens", text)
            assert sum(token["special"] for token in values["tokens"]) == 1  # what the user types is text
            assert "\x1b" not in printed(capsys, model, "--tokens", text)
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            assert inspected(capsys, model, "--tokens", "-") == values

    def test_a_model_without_bos(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_tiny(tmp_path / "m.bin", "bpe")
        assert printed(capsys, path, "--tokens", "").splitlines() == ["", "", "0 tokens for 0 bytes of UTF-8"]
        assert inspected(capsys, path, "--tokens", "ab")["tokens"][0]["text"].startswith("a")

    def test_a_tokenizer_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_tiny(tmp_path / "m.bin", None)
        assert inspect.main([str(path), "--tokens", TEXT]) == 1
        assert "--tokenizer PATH" in capsys.readouterr().err
        (tmp_path / "t.model").write_bytes(sentencepiece_model())
        with Llama(write_tiny(tmp_path / "with.bin", spec=sentencepiece_spec())) as llm:
            values = inspected(capsys, path, "--tokenizer", tmp_path / "t.model", "--tokens", TEXT)
            assert [token["id"] for token in values["tokens"]] == llm.tokenize(TEXT)


class TestExitCodes:
    @pytest.mark.parametrize(
        "arguments", [["a", "b"], ["a", "-m", "b"], ["-c", "0"], ["-t", "x"], ["--nonsense"], ["--tokens"]]
    )
    def test_2_for_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert inspect.main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and "\nusage: pyllama2 inspect" in err

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [(["missing.bin"], r"missing\.bin"), ([__file__], "plain text"), (["-c", "65"], "between 1 and 64 tokens")],
    )
    def test_1_with_one_sentence(
        self, arguments: list[str], match: str, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for more in ([], ["--json"]):
            assert inspect.main([*arguments, *more, *(["-m", str(model)] if "-c" in arguments else [])]) == 1
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1 and re.search(match, err)

    @pytest.mark.slow
    def test_damaged_files(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Cut anywhere, or with a byte of its header changed: a sentence, or a report of another model."""
        data, path = model.read_bytes(), tmp_path / "damaged.bin"
        header = 8 + int.from_bytes(data[:8], "little")
        rng = np.random.default_rng(0)
        damaged = [data[: int(end)] for end in rng.integers(0, len(data), 20)]
        for place in rng.integers(0, header, 60):
            damaged.append(data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :])
        for content in damaged:
            path.write_bytes(content)
            for more in ([], ["--tokens", "a"]):
                code = inspect.main([str(path), *more])
                out, err = capsys.readouterr()
                assert (code, err) == (0, "") or (code == 1 and out == "" and err.count("\n") == 1)

    @pytest.mark.subprocess
    def test_from_the_shell(self, model: Path) -> None:
        command = [sys.executable, "-m", "pyllama2.inspect"]
        result = subprocess.run([*command, ROOT], capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and result.stderr.count("\n") == 1 and "no checkpoint" in result.stderr
        result = subprocess.run([*command, model], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0 and result.stdout.startswith("model ") and result.stderr == ""

    def test_the_subcommand(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert __main__.main(["inspect", str(model)]) == 0
        assert capsys.readouterr().out.startswith("model ")

    @pytest.mark.subprocess
    def test_the_standard_library_keeps_its_module(self) -> None:
        """Whatever is imported first; the module of this name is inside the package alone."""
        code = "import pyllama2.inspect, inspect, dataclasses; print(inspect.__file__)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert result.stdout.strip() == stdlib_inspect.__file__ and "pyllama2" not in stdlib_inspect.__name__
