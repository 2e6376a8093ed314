"""scripts/random_models/make_random_model.py: one model in every format that is read."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest
import torch
from helpers.tiny import oracle_logits
from safetensors.numpy import load_file

import pyllama2
from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.pth import read_pth
from pyllama2.storage.model_file import StoredModel


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "random_models" / "make_random_model.py"
    spec = importlib.util.spec_from_file_location("make_random_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_format_holds_the_same_model(tmp_path: Path, script: ModuleType) -> None:
    formats = {
        "meta": ["--format", "meta"],
        "shards": ["--format", "meta", "--shards", "2"],
        "hf": ["--format", "hf"],
        "llama2c": ["--format", "llama2c"],
        "float32": ["--format", "native"],
        "float16": ["--format", "native", "--dtype", "float16"],
        "gguf f32": ["--format", "gguf"],
        "gguf f16": ["--format", "gguf", "--type", "f16"],
    }
    for name, options in formats.items():
        script.main(["tiny", str(tmp_path / name), "--seed", "5", *options])
    opened = {name: open_checkpoint(tmp_path / name, max_seq_len=256) for name in formats}
    config = opened["float32"].config
    expected = {name: tensor.read() for name, _, tensor in opened["float32"].tensors()}
    for kind, checkpoint in opened.items():
        assert checkpoint.config == config, kind
        for name, _, tensor in checkpoint.tensors():
            np.testing.assert_array_equal(tensor.read().astype(np.float32), expected[name], err_msg=f"{kind} {name}")
    logits = oracle_logits(config, expected, [1, 2, 3])
    assert 0.3 < logits.std() < 3


def test_others_read_it(tmp_path: Path, script: ModuleType) -> None:
    script.main(["tiny", str(tmp_path / "meta"), "--shards", "2"])
    script.main(["tiny", str(tmp_path / "hf"), "--format", "hf"])
    for shard in sorted((tmp_path / "meta").glob("*.pth")):
        tensors = read_pth(shard)
        loaded = torch.load(shard, weights_only=True)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert tensor.offset % 64 == 0
            np.testing.assert_array_equal(loaded[name].numpy(), tensor.read())
        assert zipfile.ZipFile(shard).testzip() is None
    assert "lm_head.weight" in load_file(tmp_path / "hf" / "model.safetensors")


@pytest.mark.parametrize("type", ["q8", "q4"])
def test_native_quantized(type: str, tmp_path: Path, script: ModuleType) -> None:
    """It is what quantize makes of the unquantized file."""
    script.main(["tiny", str(tmp_path / "float.bin"), "--format", "native"])
    script.main(["tiny", str(tmp_path / "made.bin"), "--format", "native", "--dtype", type])
    pyllama2.quantize(tmp_path / "float.bin", tmp_path / "expected.bin", type, calibrate=False)
    made, expected = (StoredModel.open(tmp_path / name) for name in ("made.bin", "expected.bin"))
    assert (made.config, made.quantization) == (expected.config, expected.quantization)
    for name, weight in expected.weights.items():
        np.testing.assert_array_equal(made.weights[name].data, weight.data)
        np.testing.assert_array_equal(made.weights[name].dequantize(), weight.dequantize())


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("period", [1001, None], ids=["from the table", "directly"])
def test_gguf_quantized(
    type: str, period: int | None, tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are those that the gguf package makes; with a short period, they come from the table."""
    if period is not None:
        monkeypatch.setattr(sys.modules[script.RandomWeights.__module__], "_BLOCK", period)
        monkeypatch.setattr(script.RandomWeights, "period", period)
    script.main(["tiny", str(tmp_path / "model.gguf"), "--format", "gguf", "--type", type])
    weights = script.RandomWeights(script.SHAPES["tiny"][0], 0)
    with closing(open_checkpoint(tmp_path / "model.gguf")) as checkpoint:
        for name, shape, tensor in checkpoint.tensors():
            expected = weights[name].astype(np.float32)
            if len(shape) == 2:
                kind = gguf.GGMLQuantizationType[type.upper()]
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
            np.testing.assert_array_equal(tensor.read(), expected, err_msg=name)


@pytest.mark.parametrize("format", ["gguf", "meta"])
def test_tokenizer(format: str, tmp_path: Path, script: ModuleType) -> None:
    script.main(["tiny", str(tmp_path / "model"), "--format", format])
    with pyllama2.Llama(tmp_path / "model", n_threads=1) as llm:
        ids = llm.tokenize("a é")
        assert ids[0] == 1
        assert llm.detokenize(ids[1:]) == "a é"
        assert llm.tokenizer.eos_ids == (2,) and llm.tokenizer.piece(511) == " word247"
        assert len(llm.chat_tokens([{"role": "user", "content": "a"}])) > 3  # in Llama-2's format
        assert llm.generate("a", max_tokens=2, ignore_eos=True, seed=0).usage.completion_tokens == 2


@pytest.mark.slow
def test_options(tmp_path: Path, script: ModuleType) -> None:
    for seed in ("1", "1", "2"):
        script.main(["tiny", str(tmp_path / f"{len(list(tmp_path.iterdir()))}"), "--format", "native", "--seed", seed])
    first, again, other = ((tmp_path / name).read_bytes() for name in "012")
    assert first == again != other
    script.main(["tiny", str(tmp_path / "cut"), "--layers", "1"])
    assert open_checkpoint(tmp_path / "cut", max_seq_len=256).config == replace(
        open_checkpoint(tmp_path / "0").config, n_layers=1
    )
    for wrong in (["--layers", "0"], ["--layers", "3"], ["--shards", "0"], ["--shards", "100"]):
        with pytest.raises(SystemExit):
            script.main(["tiny", str(tmp_path / "x"), *wrong])
    with pytest.raises(SystemExit, match="shards"):
        script.main(["tiny", str(tmp_path / "x"), "--shards", "3"])


@pytest.mark.parametrize("shape", ["1.1b", "7b", "13b", "70b"])
def test_shapes(shape: str, script: ModuleType) -> None:
    config, extra = script.SHAPES[shape]
    billions = {"1.1b": 1.10, "7b": 6.74, "13b": 13.02, "70b": 68.98}[shape]
    assert config.n_parameters / 1e9 == pytest.approx(billions, abs=0.005)
    hidden_dim = int(int(8 * config.dim / 3) * extra.get("ffn_dim_multiplier", 1))
    assert -(-hidden_dim // extra["multiple_of"]) * extra["multiple_of"] == config.hidden_dim
