"""GPTQ and AWQ checkpoints: every number is right, q4 or q8 keep it where they can, and what is lost is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.backend_contract import all_logits
from helpers.packed import KINDS, PACKED, write_packed
from helpers.tiny import oracle_logits
from helpers.tiny_tokenizers import sentencepiece_model
from safetensors.torch import load_file, save_file

import pyllama2
from pyllama2._cpu import CpuBackend
from pyllama2.checkpoint import open_checkpoint, packed_matrix
from pyllama2.errors import CheckpointError
from pyllama2.loading import choice, load_model
from pyllama2.storage.model_file import StoredModel

MATRICES = [name for name in PACKED.tensor_shapes() if ".attention.w" in name or ".feed_forward." in name]


def load(path: Path, quant: str | None = "auto") -> StoredModel:
    return load_model(str(path), quant=quant, tokenizer=None, n_ctx=None, kv_dtype=None)


@pytest.mark.parametrize("name", KINDS)
def test_every_number(tmp_path: Path, name: str) -> None:
    path, numbers = write_packed(tmp_path / "m", name)
    with closing(open_checkpoint(path)) as checkpoint:
        assert checkpoint.config == PACKED
        for key, shape, tensor in checkpoint.tensors():
            array = tensor.read()
            assert array.shape == shape
            assert np.array_equal(array, numbers[key].astype(np.float32)), key
        whole = checkpoint.tensor("layers.1.feed_forward.w1.weight")
        assert np.array_equal(whole.read_rows(11, 29), whole.read()[11:29])
    tokens = [1, 5, 9, 33, 2, 48]
    model = load(path, None)
    expected = oracle_logits(PACKED, {key: array.astype(np.float32) for key, array in numbers.items()}, tokens)
    assert np.abs(all_logits(CpuBackend(model, n_threads=1), tokens) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", KINDS)
def test_no_zero_is_unpacked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Or the time would grow with the square of the rows, in a file with small groups."""
    path, _ = write_packed(tmp_path / "m", name)
    unpack, n_codes = packed_matrix._unpack, 0

    def counted(packed: Any, order: Any, out: Any) -> None:
        nonlocal n_codes
        n_codes += out.size
        unpack(packed, order, out)

    with closing(open_checkpoint(path)) as checkpoint:
        tensor = checkpoint.tensor("layers.0.feed_forward.w1.weight")
        monkeypatch.setattr(packed_matrix, "_unpack", counted)
        rows, columns = tensor.read().shape
    assert n_codes == rows * columns + rows * -(-columns // (KINDS[name].group_size or columns))


@pytest.mark.parametrize(
    ("name", "stored", "quantization", "same"),
    [
        ("gptq", "GPTQ int4/32", ("q4", 32), True),
        ("gptq rows", "GPTQ int4/64", ("q4", 64), False),
        ("gptq zeros", "GPTQ uint4/64", ("q8", 64), True),
        ("gptq_v2", "GPTQ uint4/32", ("q8", 32), True),
        ("gptq apart", "GPTQ uint4", ("q8", 32), False),
        ("awq", "AWQ uint4/64", ("q8", 64), True),
    ],
)
def test_what_is_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, stored: str, quantization: tuple[str, int], same: bool
) -> None:
    path, numbers = write_packed(tmp_path / "m", name)
    with caplog.at_level(logging.WARNING, logger="pyllama2"):
        model = load(path)
    assert (model.quantization.type, model.quantization.group_size) == quantization
    assert f"m ({stored}) is used as {quantization[0]}" in caplog.text
    assert ("with the same numbers" in caplog.text) is (name != "gptq apart")
    exact = [np.array_equal(model.weights[key].dequantize(), numbers[key].astype(np.float32)) for key in MATRICES]
    if name == "gptq rows":  # a row of 160 is one group, and others have 64 columns
        assert all(exact)
    else:
        assert all(exact) is same
    assert ("rounded again" in caplog.text) is (name == "gptq apart")


def test_the_loss_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, numbers = write_packed(tmp_path / "m", "awq")
    with caplog.at_level(logging.WARNING, logger="pyllama2"):
        model = load(path, "q4")
    arrays = [(model.weights[key].dequantize()[:64] - numbers[key][:64], numbers[key][:64]) for key in MATRICES]
    loss = np.sqrt(sum(np.square(error).sum() for error, _ in arrays) / sum(np.square(a).sum() for _, a in arrays))
    assert loss > 0.02
    assert f"rounded again, which changes them by {100 * loss:.1f} %" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="pyllama2"):
        load(path, "q8")
    assert caplog.text == ""


def test_awq_becomes_q4_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_packed(tmp_path / "m", "awq")
    needed = choice.needed_bytes(PACKED, choice.Quantization.of("q8", 64), 64, "float16", None)
    monkeypatch.setattr(choice, "available_bytes", lambda: int(1.5 * needed))
    assert load(path).quantization.type == "q4"


@pytest.mark.parametrize("format", ["pyllama2", "gguf", "huggingface"])
def test_exported(tmp_path: Path, format: str) -> None:
    path, numbers = write_packed(tmp_path / "m", "gptq zeros")
    pyllama2.export(path, tmp_path / "out", format=format)
    with closing(open_checkpoint(tmp_path / "out")) as written:
        for key, _, tensor in written.tensors():
            assert np.array_equal(tensor.read(), numbers[key].astype(np.float32))


def test_quantized_again_in_other_groups(tmp_path: Path) -> None:
    """Groups of 32 lie in those of 64, so that their numbers stay the same."""
    path, numbers = write_packed(tmp_path / "m", "gptq zeros")
    pyllama2.quantize(path, tmp_path / "q8.bin", "q8", group_size=32)
    weights = StoredModel.open(tmp_path / "q8.bin").weights
    assert all(np.array_equal(weights[key].dequantize(), numbers[key].astype(np.float32)) for key in MATRICES)


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [32, 64])
def test_what_q4_keeps_is_not_calibrated(tmp_path: Path, group_size: int) -> None:
    path, numbers = write_packed(tmp_path / "m", "gptq", replace(PACKED, vocab_size=340))
    (path / "tokenizer.model").write_bytes(sentencepiece_model())
    said: list[str] = []
    pyllama2.quantize(path, tmp_path / "q4.bin", "q4", group_size=group_size, say=said.append)
    model = StoredModel.open(tmp_path / "q4.bin")
    same = all(np.array_equal(model.weights[key].dequantize(), numbers[key].astype(np.float32)) for key in MATRICES)
    kept = "the weights are of GPTQ int4/32 already, and keep their numbers in q4"
    assert same is (group_size == 32) is (kept in said)
    assert (model.calibration is None) is (group_size == 32)


@pytest.mark.parametrize("name", ["gptq", "gptq rows", "gptq zeros", "gptq apart"])
def test_without_the_groups_of_columns(tmp_path: Path, name: str) -> None:
    """Columns are in order then, but nobody knows which order if they may lie apart."""
    path, numbers = write_packed(tmp_path / "m", name)
    tensors = load_file(path / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if "g_idx" not in key}, path / "model.safetensors")
    if name == "gptq apart":
        with pytest.raises(CheckpointError, match=r"g_idx' is missing"):
            open_checkpoint(path)
        return
    with closing(open_checkpoint(path)) as checkpoint:
        for key in MATRICES:
            assert np.array_equal(checkpoint.tensor(key).read(), numbers[key].astype(np.float32)), key


def test_an_old_settings_file(tmp_path: Path) -> None:
    path, numbers = write_packed(tmp_path / "m", "gptq")
    values = json.loads((path / "config.json").read_text())
    settings = values.pop("quantization_config")
    (path / "config.json").write_text(json.dumps(values))
    del settings["quant_method"]
    (path / "quantize_config.json").write_text(json.dumps(settings))
    with closing(open_checkpoint(path)) as checkpoint:
        assert np.array_equal(checkpoint.tensor(MATRICES[0]).read(), numbers[MATRICES[0]].astype(np.float32))


def test_biases_of_zeros_are_none(tmp_path: Path) -> None:
    path, _ = write_packed(tmp_path / "m", "gptq")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.bias"] = torch.zeros(PACKED.dim, dtype=torch.float16)
    save_file(tensors, path / "model.safetensors")
    open_checkpoint(path).close()
    tensors["model.layers.1.mlp.down_proj.bias"][3] = 1
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown tensor 'model.layers.1.mlp.down_proj.bias'"):
        open_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes' are not supported; take the original"),
        ({"quant_method": "fp8"}, "'fp8' are not supported"),
        ({"quant_method": "mxfp4"}, "'mxfp4' are not supported"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors' are not supported"),
        ({"bits": 4}, "'unknown' are not supported"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "GPTQ weights of 8 bits are not supported"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ weights of 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*": {}}}, "GPTQ weights of 'dynamic'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ weights of 'gemv' are not supported"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size is 0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "should be I32"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, r"qweight' is I32 \(20, 64\), which is no matrix"),
        ({"quant_method": 4}, "'4' are not supported"),
        ("gptq", "quantization_config"),
    ],
)
def test_refused_settings(tmp_path: Path, settings: Any, words: str) -> None:
    path, _ = write_packed(tmp_path / "m", "gptq")
    values = json.loads((path / "config.json").read_text()) | {"quantization_config": settings}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


Q = "model.layers.0.self_attn.q_proj."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.pop(f"{Q}scales"), r"q_proj.scales' is missing"),
        (lambda t: t.pop(f"{Q}qweight"), r"q_proj.qweight' is missing"),
        (lambda t: t.update({f"{Q}scales": t[f"{Q}scales"].float()}), r"q_proj.scales' is F32 .* and should be F16"),
        (
            lambda t: t.update({f"{Q}qzeros": t[f"{Q}qzeros"][:1]}),
            r"q_proj.qzeros' is I32 \(1, 8\) and should be I32 \(2",
        ),
        (lambda t: t.update({f"{Q}g_idx": t[f"{Q}g_idx"] + 9}), r"q_proj.g_idx' has a number that is no group"),
        (lambda t: t.update({f"{Q}g_idx": -t[f"{Q}g_idx"] - 1}), r"q_proj.g_idx' has a number that is no group"),
        (lambda t: t.update({f"{Q}qweight": t[f"{Q}qweight"].view(-1)}), r"q_proj.qweight' is I32 \(512,\)"),
        (lambda t: t.update({f"{Q}qweight": t[f"{Q}qweight"][:, :12]}), r"q_proj.q\w+' is I32"),
        (lambda t: t.update({f"{Q}weight": torch.zeros(64, 64)}), r"q_proj.weight' is there twice"),
    ],
)
def test_damaged_parts(tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], object], words: str) -> None:
    path, _ = write_packed(tmp_path / "m", "gptq")
    tensors = load_file(path / "model.safetensors")
    damage(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_scales_that_are_not_finite(tmp_path: Path, name: str) -> None:
    path, _ = write_packed(tmp_path / "m", name)
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q}scales"][0, 5] = float("inf")
    save_file(tensors, path / "model.safetensors")
    for quant in ("auto", "q4", "q8", None):
        with pytest.raises(CheckpointError, match=r"layers.0.attention.wq.weight: .*(finite|NaN)"):
            load(path, quant)


def test_adapters_are_merged_into_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The numbers of a changed matrix are no longer those of its codes."""
    path, numbers = write_packed(tmp_path / "m", "gptq")
    folder = tmp_path / "lora"
    folder.mkdir()
    rng = np.random.default_rng(0)
    b, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((PACKED.kv_dim, 2), (2, PACKED.dim)))
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_{}.weight"
    save_file({key.format("A"): torch.from_numpy(a), key.format("B"): torch.from_numpy(b)},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["v_proj"]})
    )
    pyllama2.export(path, tmp_path / "out.bin", lora=[str(folder)])
    merged = StoredModel.open(tmp_path / "out.bin").weights
    wv = "layers.0.attention.wv.weight"
    assert np.allclose(merged[wv].data, numbers[wv] + b @ a, atol=1e-5)
    with caplog.at_level(logging.WARNING, logger="pyllama2"):
        load_model(str(path), quant="auto", tokenizer=None, lora=[str(folder)], n_ctx=None, kv_dtype=None)
    assert "m (GPTQ int4/32) is used as q4; " in caplog.text
    model = load_model(str(path), quant="q8", tokenizer=None, lora=[str(folder)], n_ctx=None, kv_dtype=None)
    assert np.allclose(model.weights[wv].dequantize(), numbers[wv] + b @ a, atol=0.05)
