"""llama2.c's files: three versions give back the model; headers and sizes that do not fit are refused."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.foreign import llama2c_bytes, llama2c_quantized
from helpers.tiny import GQA, MHA, oracle_logits, random_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.llama2c import Llama2cCheckpoint, is_llama2c
from pyllama2.config import ModelConfig
from pyllama2.errors import CheckpointError
from pyllama2.storage.mapped import MappedFile
from pyllama2.tokenizer import load_tokenizer

TOKENS = [1, 5, 9, 33, 2, 48, 5, 5, 49, 7]
# What the format cannot say is Llama-2's.
MHA_LLAMA2 = replace(MHA, norm_eps=1e-5)
TIED = replace(GQA, tied_embeddings=True)
CONFIGS = {"gqa": GQA, "mha": MHA_LLAMA2, "tied": TIED}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Llama2cCheckpoint(path)
    assert str(path) in str(caught.value)
    message = str(caught.value).replace(str(path), "")  # whose name has words of the test's
    for word in words:
        assert word in message


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_version(tmp_path: Path, name: str, version: int) -> None:
    config = CONFIGS[name]
    weights = random_weights(config)
    group_size = 4  # GQA's hidden_dim of 100 is a multiple of it; groups of w2 then end with the rows
    path = write(tmp_path / "model.bin", llama2c_bytes(config, weights, version, group_size))
    if version == 2:
        for tensor, array in weights.items():
            if array.ndim == 2:
                codes, scales = llama2c_quantized(array, group_size)
                weights[tensor] = (codes.astype(np.float32) * scales).reshape(array.shape)
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, Llama2cCheckpoint)
    assert checkpoint.config == config
    tensors = {}
    for tensor, shape, lazy in checkpoint.tensors():
        tensors[tensor] = lazy.read()
        assert tensors[tensor].shape == shape
        assert lazy.dtype == ("Q8_0" if version == 2 and len(shape) == 2 else "F32")
        np.testing.assert_array_equal(tensors[tensor], weights[tensor], err_msg=tensor)
    assert tensors.keys() == weights.keys()
    expected = oracle_logits(config, weights, TOKENS)
    np.testing.assert_allclose(oracle_logits(checkpoint.config, tensors, TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert (checkpoint.kind, checkpoint.source) == ("llama2.c", "llama2.c model.bin")
    assert (checkpoint.tokenizer, checkpoint.chat_template) == (None, None)
    assert checkpoint.files == [str(path)]
    checkpoint.close()
    np.testing.assert_array_equal(tensors["norm.weight"], weights["norm.weight"])


def test_groups_that_run_across_rows(tmp_path: Path) -> None:
    config = replace(GQA, n_layers=1)
    weights = random_weights(config)
    checkpoint = open_checkpoint(write(tmp_path / "m", llama2c_bytes(config, weights, 2, group_size=16)))
    name = "layers.0.feed_forward.w2.weight"  # rows of 100 numbers
    error = np.abs(checkpoint.tensor(name).read() - weights[name]).max()
    assert 0 < error < np.abs(weights[name]).max() / 200


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "m", llama2c_bytes(GQA, random_weights(GQA), 0))
    assert open_checkpoint(path, max_seq_len=5, norm_eps=0.5).config == replace(GQA, max_seq_len=5, norm_eps=0.5)
    with pytest.raises(ValueError, match="norm_eps"):
        open_checkpoint(path, norm_eps=7)


def test_stories260k(other_models: Path) -> None:
    checkpoint = open_checkpoint(other_models / "stories260K.bin", tokenizer=other_models / "tok512.bin")
    assert checkpoint.config == ModelConfig(
        dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4, head_dim=8, vocab_size=512, max_seq_len=512,
        tied_embeddings=True,
    )  # fmt: skip
    assert checkpoint.files == [str(other_models / "stories260K.bin"), str(other_models / "tok512.bin")]
    assert checkpoint.tokenizer is not None
    tokenizer = load_tokenizer(checkpoint.tokenizer, 512)
    prompt = tokenizer.encode("Once upon a time")
    assert prompt == [403, 407, 261, 378]
    tensors = {name: tensor.read() for name, _, tensor in checkpoint.tensors()}
    ids = [1, *prompt]
    for _ in range(11):
        ids.append(int(oracle_logits(checkpoint.config, tensors, ids)[-1].argmax()))
    assert tokenizer.decode(ids) == "Once upon a time, there was a little girl named Lily."


class TestHeaders:
    @pytest.mark.parametrize("version", [0, 1, 2])
    def test_sizes(self, tmp_path: Path, version: int) -> None:
        config = replace(GQA, n_layers=1)
        data = llama2c_bytes(config, random_weights(config), version)
        for wrong in (data[:-1], data[:-4], data + b"\0", data + bytes(4 * GQA.dim)):
            refuse(write(tmp_path / "m", wrong), str(len(data)), str(len(wrong)))

    @pytest.mark.slow
    @pytest.mark.parametrize("version", [0, 1, 2])
    def test_truncation_in_the_header(self, tmp_path: Path, version: int) -> None:
        config = replace(GQA, n_layers=1)
        data = llama2c_bytes(config, random_weights(config), version)
        for length in range(1, 300):
            refuse(write(tmp_path / "m", data[:length]))

    @pytest.mark.parametrize("version", [0, 1, 2])
    @pytest.mark.parametrize("field", range(7))
    def test_numbers(self, tmp_path: Path, version: int, field: int) -> None:
        config = replace(GQA, n_layers=1)
        data = bytearray(llama2c_bytes(config, random_weights(config), version))
        offset = 4 * field + (0 if version == 0 else 8)
        value = struct.unpack_from("<i", data, offset)[0]
        for wrong in (0, -1, value + 1, 2 * value, 1 << 20, (1 << 31) - 1, -(1 << 31)):
            struct.pack_into("<i", data, offset, wrong)
            if (version and field == 6 and wrong > 0) and wrong < 1 << 26:
                assert open_checkpoint(write(tmp_path / "m", bytes(data))).config.max_seq_len == wrong  # no tables
            else:
                refuse(write(tmp_path / "m", bytes(data)))

    def test_versions_and_flags(self, tmp_path: Path) -> None:
        config = replace(GQA, n_layers=1)
        data = llama2c_bytes(config, random_weights(config), 2)
        for version in (0, 3, -1):
            refuse(write(tmp_path / "m", data[:4] + struct.pack("<i", version) + data[8:]), f"version {version}")
        refuse(write(tmp_path / "m", data[:36] + b"\2" + data[37:]), "damaged")
        refuse(write(tmp_path / "m", data[:36] + b"\1" + data[37:]), "bytes")
        for group_size in (0, -8, 7, 1 << 30):
            refuse(write(tmp_path / "m", data[:37] + struct.pack("<i", group_size) + data[41:]), "group size")

    @pytest.mark.slow
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(1, 64), min_size=7, max_size=7), st.booleans())
    def test_any_header(self, tmp_path: Path, numbers: list[int], magic: bool) -> None:
        data = (b"24ka\2\0\0\0" if magic else b"") + struct.pack("<7i", *numbers) + bytes(300)
        path = write(tmp_path / "m", data)
        with MappedFile(path) as file:
            assert is_llama2c(file) or not magic
        try:
            Llama2cCheckpoint(path)
        except CheckpointError:
            return
        raise AssertionError("no file of 300 bytes is a model")
