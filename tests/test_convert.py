"""export, quantize and convert_in_memory: numbers, guarantees about files, and refusals."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.foreign import write_huggingface, write_meta
from helpers.tiny import CONFIGS, GQA, TIED, float_model, quantized_model, random_weights, write_model
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import sentencepiece_model
from numpy.typing import NDArray

import pyllama2
from pyllama2 import CheckpointError
from pyllama2._cpu import passage, quantize_matrix
from pyllama2.checkpoint import open_checkpoint
from pyllama2.convert import convert_in_memory, convert_model
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Quantization
from pyllama2.tokenizer import load_tokenizer

Weights = dict[str, NDArray[np.float32]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A float32 file of ours."""
    return write_model(tmp_path / "source.bin", float_model(GQA, random_weights(GQA)))


def assert_equal(actual: StoredModel, expected: StoredModel) -> None:
    assert actual.config == expected.config and actual.quantization == expected.quantization
    assert list(actual.weights) == list(expected.weights)
    for name, weight in expected.weights.items():
        assert actual.weights[name].type == weight.type and actual.weights[name].group_size == weight.group_size
        assert np.array_equal(actual.weights[name].data, weight.data), name
        assert weight.scales is None or np.array_equal(actual.weights[name].scales, weight.scales), name


class TestPassage:
    """q4 in memory: the scales are searched for the inputs that matrices have on a short passage."""

    CONFIG = replace(CONFIG, dim=64, hidden_dim=128, n_heads=4, n_kv_heads=2, head_dim=16)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A model whose norms make some inputs much larger than others, as those of trained models do."""
        weights = random_weights(self.CONFIG)
        rng = np.random.default_rng(1)
        for name, array in weights.items():
            if name.endswith("norm.weight"):
                weights[name] = (array * np.exp(1.5 * rng.standard_normal(array.shape))).astype(np.float32)
        changed = {name: getattr(self.CONFIG, name) for name in ("dim", "hidden_dim", "head_dim")}
        return write_tiny(tmp_path / "source.bin", weights=weights, **changed)

    @staticmethod
    def divergence(model: StoredModel, path: Path) -> float:
        from pyllama2 import Llama

        write_model(path, model)
        text = "There was a little fox who lived in the forest. The capital of France is a big city. " * 3
        found = pyllama2.perplexity(path, text, against=Llama(path.with_name("source.bin")))
        assert found.kl_divergence is not None
        return found.kl_divergence

    def test_it_loses_less_than_without(self, path: Path, tmp_path: Path) -> None:
        source, q4 = open_checkpoint(path), Quantization.of("q4", 32)
        plain = convert_model(StoredModel.open(path), q4)
        model = convert_in_memory(source, q4)
        assert model.nbytes == plain.nbytes
        assert self.divergence(model, tmp_path / "a.bin") < 0.85 * self.divergence(plain, tmp_path / "b.bin")

    def test_files_and_threads_have_the_same_numbers(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "3")
        model = convert_in_memory(open_checkpoint(path), Quantization.of("q4"))
        monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "1")
        names: list[str] = []
        pyllama2.quantize(
            path, tmp_path / "out.bin", "q4", calibrate=False, progress=lambda _done, _all, name: names.append(name)
        )
        assert_equal(StoredModel.open(tmp_path / "out.bin"), model)
        assert sorted(names) == sorted(model.weights)

    def test_matrices_are_quantized_for_their_inputs(self, path: Path) -> None:
        """By the model of PyTorch: the inputs of the first layer's first matrices, which nothing was lost of yet."""
        source = open_checkpoint(path)
        assert source.tokenizer is not None
        tokenizer = load_tokenizer(source.tokenizer)
        ids = tokenizer.with_bos(tokenizer.encode(passage.TEXT))[: min(passage.TOKENS, self.CONFIG.max_seq_len)]
        x = source.tensor("tok_embeddings.weight").read()[ids].astype(np.float64)
        x *= source.tensor("layers.0.attention_norm.weight").read() / np.sqrt(
            np.square(x).mean(1, keepdims=True) + self.CONFIG.norm_eps
        )
        squares = np.square(x).mean(0)
        importance = np.maximum(squares / squares.mean(), passage.LEAST).astype(np.float32)
        model = convert_in_memory(source, Quantization.of("q4"))
        for name in ("wq", "wk", "wv"):
            weight = model.weights[f"layers.0.attention.{name}.weight"]
            matrix = source.tensor(weight.name).read()
            _, scales = quantize_matrix(matrix, "q4", 64, importance=importance)
            _, plain = quantize_matrix(matrix, "q4", 64)
            assert weight.scales is not None
            assert (weight.scales == scales).mean() > 0.99 > (weight.scales == plain).mean()

    @pytest.mark.parametrize("which", ["none", "broken"])
    def test_without_a_tokenizer(self, path: Path, which: str) -> None:
        source, q4 = open_checkpoint(path), Quantization.of("q4")
        if which == "none":
            source.tokenizer = None
        else:
            assert source.tokenizer is not None
            source.tokenizer = replace(source.tokenizer, data=b"not a tokenizer")
        assert_equal(convert_in_memory(source, q4), convert_model(StoredModel.open(path), q4))

    def test_biases_are_added(self, tmp_path: Path) -> None:
        """That of wv changes the inputs of wo, but not those of wq, wk and wv."""
        weights = random_weights(replace(CONFIG, qkv_bias=True))
        models = []
        for factor in (0, 50):
            weights["layers.0.attention.wv.bias"] = np.arange(16, dtype=np.float32) * factor
            path = write_tiny(tmp_path / f"{factor}.bin", weights=weights, qkv_bias=True)
            models.append(convert_in_memory(open_checkpoint(path), Quantization.of("q4", 32)).weights)
        for name, same in (("wq", True), ("wv", True), ("wo", False)):
            a, b = (model[f"layers.0.attention.{name}.weight"] for model in models)
            assert np.array_equal(a.scales, b.scales) == same

    def test_numbers_that_overflow(self, tmp_path: Path) -> None:
        """Weights that fit, whose outputs do not: the search goes on without the passage."""
        weights = random_weights(CONFIG)
        for name in ("layers.0.attention.wo.weight", "layers.0.attention.wv.weight"):
            weights[name] = weights[name] * np.float32(2e4)
        weights["layers.0.attention_norm.weight"] *= np.float32(1e30)
        path = write_tiny(tmp_path / "source.bin", weights=weights)
        model = convert_in_memory(open_checkpoint(path), Quantization.of("q4"))
        plain = convert_model(StoredModel.open(path), Quantization.of("q4"))
        name = "layers.1.feed_forward.w2.weight"
        assert np.array_equal(model.weights[name].data, plain.weights[name].data)


class TestExport:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_numbers(self, tmp_path: Path, config: Any, dtype: str) -> None:
        weights = random_weights(config)
        out = tmp_path / "out.bin"
        pyllama2.export(write_model(tmp_path / "in.bin", float_model(config, weights)), out, dtype=dtype)
        expected = quantized_model(config, weights, dtype)
        assert_equal(StoredModel.open(out), expected)
        assert all(w.type == "float32" for name, w in expected.weights.items() if name.endswith("norm.weight"))

    def test_other_formats(self, tmp_path: Path) -> None:
        weights = random_weights(GQA)
        meta = write_meta(tmp_path / "meta", GQA, weights, n_shards=1)
        hf = write_huggingface(tmp_path / "hf", GQA, weights)
        for folder in (meta, hf):
            pyllama2.export(folder, tmp_path / "out.bin")
            actual = StoredModel.open(tmp_path / "out.bin")
            assert all(np.array_equal(actual.weights[name].data, array) for name, array in weights.items())

    def test_tokenizer_and_template_and_source_are_kept(self, tmp_path: Path) -> None:
        path = write_tiny(tmp_path / "in.bin", template="{{ x }}")
        pyllama2.export(path, tmp_path / "out.bin", dtype="float16")
        before, after = StoredModel.open(path), StoredModel.open(tmp_path / "out.bin")
        assert (after.tokenizer, after.chat_template, after.source) == (
            before.tokenizer, before.chat_template, before.source,
        )  # fmt: skip

    def test_overrides(self, tmp_path: Path, source: Path) -> None:
        out, tokenizer = tmp_path / "out.bin", tmp_path / "tokenizer.model"
        tokenizer.write_bytes(sentencepiece_model())
        path = write_tiny(tmp_path / "in.bin", None)
        pyllama2.export(path, out, tokenizer=tokenizer, max_seq_len=33, norm_eps=1e-6)
        model = StoredModel.open(out)
        assert (model.config.max_seq_len, model.config.norm_eps) == (33, 1e-6)
        assert model.tokenizer is not None and model.tokenizer.data == sentencepiece_model()
        for wrong in ({"max_seq_len": 0}, {"norm_eps": -1.0}, {"dtype": "bfloat16"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                pyllama2.export(source, tmp_path / "other.bin", **wrong)
        assert not (tmp_path / "other.bin").exists()

    def test_a_quantized_file_gives_the_numbers_it_stands_for(self, tmp_path: Path) -> None:
        model = quantized_model(GQA, random_weights(GQA), "q4", 32)
        pyllama2.export(write_model(tmp_path / "in.bin", model), tmp_path / "out.bin")
        actual = StoredModel.open(tmp_path / "out.bin")
        assert all(np.array_equal(actual.weights[n].data, w.dequantize()) for n, w in model.weights.items())

    def test_exporting_twice_changes_nothing(self, tmp_path: Path, source: Path) -> None:
        pyllama2.export(source, tmp_path / "a.bin")
        pyllama2.export(tmp_path / "a.bin", tmp_path / "b.bin")
        assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


class TestQuantize:
    @pytest.mark.parametrize("stored", ["q8", "q4"])
    @pytest.mark.parametrize("group_size", [32, 64, 128])
    def test_numbers(self, tmp_path: Path, source: Path, stored: str, group_size: int) -> None:
        pyllama2.quantize(source, tmp_path / "out.bin", stored, group_size=group_size)
        expected = quantized_model(GQA, random_weights(GQA), stored, group_size)
        assert expected.weights["output.weight"].type == "q8"
        assert_equal(StoredModel.open(tmp_path / "out.bin"), expected)

    @pytest.mark.parametrize("config", [GQA, TIED], ids=["gqa", "tied"])
    def test_output_type(self, tmp_path: Path, config: Any) -> None:
        path = write_model(tmp_path / "in.bin", float_model(config, random_weights(config)))
        pyllama2.quantize(path, tmp_path / "out.bin", "q4", output_type="q4")
        model = StoredModel.open(tmp_path / "out.bin")
        assert_equal(model, quantized_model(config, random_weights(config), "q4", 64, "q4"))

    def test_directly_from_another_format(self, tmp_path: Path) -> None:
        weights = random_weights(GQA)
        pyllama2.quantize(write_huggingface(tmp_path / "hf", GQA, weights), tmp_path / "out.bin", "q8")
        assert_equal(StoredModel.open(tmp_path / "out.bin"), quantized_model(GQA, weights, "q8"))

    def test_q8_to_q4(self, tmp_path: Path) -> None:
        model = quantized_model(GQA, random_weights(GQA), "q8")
        pyllama2.quantize(write_model(tmp_path / "q8.bin", model), tmp_path / "q4.bin", "q4")
        dequantized = {name: weight.dequantize() for name, weight in model.weights.items()}
        assert_equal(StoredModel.open(tmp_path / "q4.bin"), quantized_model(GQA, dequantized, "q4"))

    @pytest.mark.parametrize(
        "arguments",
        [{"type": "float16"}, {"type": "q5"}, {"type": "q8", "group_size": 48}, {"type": "q8", "output_type": "q6"}],
    )
    def test_wrong_arguments(self, tmp_path: Path, source: Path, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="type"):
            pyllama2.quantize(source, tmp_path / "out.bin", **arguments)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source.bin"]


class TestInMemory:
    @pytest.mark.parametrize("stored", ["float32", "float16", "q8", "q4"])
    def test_equals_the_file(self, source: Path, stored: str) -> None:
        model = convert_in_memory(open_checkpoint(source), Quantization.of(stored))
        assert_equal(model, quantized_model(GQA, random_weights(GQA), stored))

    def test_numbers_stored_as_wanted_stay_mapped(self, source: Path) -> None:
        model = convert_in_memory(open_checkpoint(source), Quantization.of("float32"))
        assert not any(weight.data.flags.owndata for weight in model.weights.values())


def spoiled(name: str, value: float) -> Weights:
    weights = random_weights(GQA)
    weights[name] = weights[name].copy()
    weights[name].flat[5] = value
    return weights


CONVERSIONS: dict[str, Callable[[Path, Path], None]] = {
    "float32": lambda source, out: pyllama2.export(source, out),
    "float16": lambda source, out: pyllama2.export(source, out, dtype="float16"),
    "q8": lambda source, out: pyllama2.quantize(source, out, "q8"),
    "q4": lambda source, out: pyllama2.quantize(source, out, "q4"),
}


class TestNumbersThatCannotBeStored:
    @pytest.mark.parametrize("name", CONVERSIONS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("tensor", ["layers.1.attention.wk.weight", "layers.0.ffn_norm.weight"])
    def test_not_finite(self, tmp_path: Path, name: str, value: float, tensor: str) -> None:
        source = write_model(tmp_path / "in.bin", float_model(GQA, spoiled(tensor, value)))
        with pytest.raises(CheckpointError, match=tensor):
            CONVERSIONS[name](source, tmp_path / "out.bin")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.bin"]

    def test_not_finite_in_float16(self, tmp_path: Path) -> None:
        model = quantized_model(GQA, spoiled("layers.1.attention.wk.weight", np.nan), "float16")
        for name in CONVERSIONS:
            with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.wk\.weight"):
                CONVERSIONS[name](write_model(tmp_path / "in.bin", model), tmp_path / "out.bin")

    def test_too_large(self, tmp_path: Path) -> None:
        source = write_model(tmp_path / "in.bin", float_model(GQA, spoiled("layers.0.feed_forward.w2.weight", 65520.0)))
        with pytest.raises(CheckpointError, match=r"feed_forward\.w2\.weight: the weight 65520 at 5 .*float16"):
            CONVERSIONS["float16"](source, tmp_path / "out.bin")
        for name in ("float32", "q8", "q4"):
            CONVERSIONS[name](source, tmp_path / "out.bin")
        source = write_model(tmp_path / "in.bin", float_model(GQA, spoiled("layers.0.feed_forward.w2.weight", 1e20)))
        with pytest.raises(CheckpointError, match=r"feed_forward\.w2\.weight"):
            CONVERSIONS["q8"](source, tmp_path / "out.bin")

    def test_norms_stay_float32(self, tmp_path: Path) -> None:
        source = write_model(tmp_path / "in.bin", float_model(GQA, spoiled("norm.weight", 1e20)))
        CONVERSIONS["float16"](source, tmp_path / "out.bin")
        assert StoredModel.open(tmp_path / "out.bin").weights["norm.weight"].data[5] == np.float32(1e20)


class TestTargets:
    @pytest.mark.parametrize("kind", ["itself", "relative", "symlink", "hard link", "through a folder"])
    def test_an_input_is_never_overwritten(
        self, tmp_path: Path, source: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = {
            "itself": source,
            "relative": Path(os.curdir) / source.name,
            "symlink": tmp_path / "symlink.bin",
            "hard link": tmp_path / "link.bin",
            "through a folder": tmp_path / "folder" / source.name,
        }[kind]
        monkeypatch.chdir(tmp_path)
        if kind == "symlink":
            out.symlink_to(source)
        if kind == "hard link":
            out.hardlink_to(source)
        if kind == "through a folder":
            out.parent.symlink_to(tmp_path)
        before, names = source.read_bytes(), sorted(tmp_path.iterdir())
        for convert in CONVERSIONS.values():
            with pytest.raises(ValueError, match="is a file of the model to be read"):
                convert(source, out)
        assert source.read_bytes() == before and sorted(tmp_path.iterdir()) == names

    def test_nor_is_a_file_of_a_directory(self, tmp_path: Path) -> None:
        weights = random_weights(GQA)
        meta = write_meta(tmp_path / "meta", GQA, weights)
        hf = write_huggingface(tmp_path / "hf", GQA, weights)
        for folder, names in (
            (meta, ["params.json", "consolidated.00.pth"]),
            (hf, ["config.json", "model.safetensors"]),
        ):
            for name in names:
                before = (folder / name).read_bytes()
                with pytest.raises(ValueError, match=name):
                    pyllama2.export(folder, folder / name)
                assert (folder / name).read_bytes() == before

    def test_nor_is_the_tokenizer(self, tmp_path: Path) -> None:
        tokenizer = tmp_path / "tokenizer.model"
        tokenizer.write_bytes(sentencepiece_model())
        with pytest.raises(ValueError, match=r"tokenizer\.model"):
            pyllama2.export(write_tiny(tmp_path / "in.bin", None), tokenizer, tokenizer=tokenizer)
        assert tokenizer.read_bytes() == sentencepiece_model()

    def test_another_file_is_replaced(self, tmp_path: Path, source: Path) -> None:
        out = tmp_path / "out.bin"
        out.write_text("old")
        pyllama2.export(source, out)
        assert StoredModel.open(out).config == GQA

    def test_places_that_cannot_be_written(self, tmp_path: Path, source: Path) -> None:
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "fifo")
        for out, error, match in (
            (tmp_path / "folder", CheckpointError, "directory"),
            (tmp_path / "missing" / "out.bin", CheckpointError, r"there is no directory .*missing"),
            (source / "out.bin", CheckpointError, "there is no directory"),
            (tmp_path / "fifo", CheckpointError, "special file"),
            ("", ValueError, "not the name of a file"),
            (f"{tmp_path}/new/", ValueError, "not the name of a file"),
        ):
            with pytest.raises(error, match=match):
                pyllama2.export(source, out)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder", "source.bin"]

    def test_an_input_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"missing\.bin"):
            pyllama2.export(tmp_path / "missing.bin", tmp_path / "out.bin")
        assert list(tmp_path.iterdir()) == []


class TestFailures:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
    def test_interrupted_midway(self, tmp_path: Path, source: Path, error: type[BaseException]) -> None:
        out = tmp_path / "out.bin"
        out.write_text("old")

        def interrupt(done: int, total: int, name: str) -> None:
            assert len(list(tmp_path.iterdir())) == 3  # the temporary file is there
            if done > total // 2:
                raise error

        with pytest.raises(error):
            pyllama2.quantize(source, out, "q4", progress=interrupt)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out.bin", "source.bin"]
        assert out.read_text() == "old"

    @pytest.mark.subprocess
    @pytest.mark.parametrize("limit", [100, 3000, 100_000])
    def test_a_full_disk(self, tmp_path: Path, source: Path, limit: int) -> None:
        """A limit on the size of files fails like a full disk: in the header, and amid the weights."""
        code = (
            "import sys, pyllama2\ntry: pyllama2.export(*sys.argv[1:])\nexcept pyllama2.CheckpointError as e: print(e)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, source, tmp_path / "out.bin"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert "cannot write" in result.stdout and result.stderr == ""
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source.bin"]

    def test_progress_counts_weights(self, tmp_path: Path, source: Path) -> None:
        calls: list[tuple[int, int, str]] = []
        pyllama2.export(source, tmp_path / "out.bin", progress=lambda *call: calls.append(call))
        assert [name for _, _, name in calls] == list(GQA.tensor_shapes())
        assert calls[-1][0] == calls[-1][1] == GQA.n_parameters
        assert all(a[0] < b[0] for a, b in pairwise(calls))


@pytest.mark.subprocess
def test_memory_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Exporting and quantizing a model of 96 MB, in tensors of 4 MB, takes a fraction of that."""
    config = replace(CONFIG, dim=512, hidden_dim=2048, n_layers=6, vocab_size=2048)
    path = write_model(tmp_path / "in.bin", float_model(config, random_weights(config)))
    size = path.stat().st_size / 1e6
    code = (
        "import resource, sys, pyllama2, pyllama2._cpu\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pyllama2.export(sys.argv[1], sys.argv[3], dtype='float16')\n"  # imports what is needed
        "pyllama2.quantize(sys.argv[1], sys.argv[3], 'q8')\n"
        "start = peak()\n"
        "for _ in range(2):\n"
        "    pyllama2.export(sys.argv[2], sys.argv[3], dtype='float16')\n"
        "    pyllama2.quantize(sys.argv[2], sys.argv[3], 'q8')\n"
        "print((peak() - start) / 1e3)"
    )
    tiny = write_tiny(tmp_path / "tiny.bin")
    result = subprocess.run(
        [sys.executable, "-c", code, tiny, path, tmp_path / "out.bin"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert float(result.stdout) < size / 3


def test_nothing_is_downloaded_for_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub may take gigabytes."""
    for name in ("pyllama2.convert.find_model", "pyllama2.calibration.entry.find_model"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("it was looked for"))
    missing, out = tmp_path / "missing" / "out", tmp_path / "out"
    for kind in ("pyllama2", "gguf", "huggingface"):
        with pytest.raises(CheckpointError, match="there is no directory"):
            pyllama2.export("hf:tests/model", missing, format=kind)
    with pytest.raises(CheckpointError, match="there is no directory"):
        pyllama2.quantize("hf:tests/model", missing, "q4")
    wrong: list[dict[str, Any]] = [
        {"max_seq_len": 0},
        {"norm_eps": "1"},
        {"tokenizer": 1},
        {"lora": 1},
        {"lora": "a:inf"},
    ]
    for options in wrong:
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))}|the scale of an adapter"):
            pyllama2.export("hf:tests/model", out, **options)
