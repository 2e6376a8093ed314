"""open_checkpoint: the kind is found by looking inside; everything else gets one sentence."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.foreign import llama2c_bytes, write_huggingface, write_meta
from helpers.gguf_files import write_model as write_gguf_model
from helpers.tiny import GQA, float_model, quantized_model, random_weights, write_model
from helpers.tiny_tokenizers import sentencepiece_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllama2.checkpoint import open_checkpoint
from pyllama2.errors import CheckpointError

WEIGHTS = random_weights(GQA)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refuse(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(path) in message
    message = message.replace(str(path), "")  # whose name has words of the test's
    for word in words:
        assert word in message


def make(kind: str, path: Path) -> Path:
    """A model of a kind at a path whose name says nothing, or something wrong."""
    if kind == "pyllama2":
        return write_model(path, float_model(GQA, WEIGHTS))
    if kind == "gguf":
        return write_gguf_model(path, GQA, WEIGHTS)
    if kind == "llama2.c":
        return write(path, llama2c_bytes(GQA, WEIGHTS, 0))
    if kind == "llama2.c v2":
        return write(path, llama2c_bytes(GQA, WEIGHTS, 2, group_size=4))
    return (write_meta if kind == "meta" else write_huggingface)(path, GQA, WEIGHTS)


KINDS = ["pyllama2", "gguf", "llama2.c", "llama2.c v2", "meta", "huggingface"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model", "model.gguf", "model.safetensors", "config.json"])
def test_the_name_says_nothing(tmp_path: Path, kind: str, name: str) -> None:
    checkpoint = open_checkpoint(make(kind, tmp_path / name))
    assert checkpoint.kind == kind.split(" v")[0]
    assert checkpoint.config.dim == GQA.dim
    tensor = checkpoint.tensor("layers.1.attention.wk.weight").read()
    tolerance = 0.01 if kind == "llama2.c v2" else 0
    np.testing.assert_allclose(tensor, WEIGHTS["layers.1.attention.wk.weight"], rtol=0, atol=tolerance)
    checkpoint.close()


@pytest.mark.parametrize("kind", KINDS)
def test_overrides(tmp_path: Path, kind: str) -> None:
    path = make(kind, tmp_path / "m")
    (tmp_path / "t").write_bytes(sentencepiece_model(vocab_size=70, byte_fallback=False))
    checkpoint = open_checkpoint(str(path), tokenizer=tmp_path / "t", max_seq_len=33, norm_eps=0.125)
    assert (checkpoint.config.max_seq_len, checkpoint.config.norm_eps) == (33, 0.125)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.kind == "sentencepiece"
    assert str(tmp_path / "t") in checkpoint.files
    wrong_values: list[dict[str, Any]] = [
        {"max_seq_len": 0}, {"max_seq_len": -1}, {"max_seq_len": 1 << 40}, {"max_seq_len": True}, {"max_seq_len": 2.0},
        {"norm_eps": -1e-9}, {"norm_eps": 1.5}, {"norm_eps": float("nan")}, {"norm_eps": "small"},
    ]  # fmt: skip
    for wrong in wrong_values:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            open_checkpoint(path, **wrong)
    with pytest.raises(CheckpointError, match="absent"):
        open_checkpoint(path, tokenizer=tmp_path / "absent")


def test_quantized_file_of_ours(tmp_path: Path) -> None:
    model = quantized_model(GQA, WEIGHTS, "q8", 32)
    checkpoint = open_checkpoint(write_model(tmp_path / "m", model))
    name = "layers.0.feed_forward.w1.weight"
    assert checkpoint.tensor(name).dtype == "q8"
    np.testing.assert_array_equal(checkpoint.tensor(name).read(), model.weights[name].dequantize())


class TestDirectories:
    def test_both_kinds_in_one(self, tmp_path: Path) -> None:
        write_meta(tmp_path / "m", GQA, WEIGHTS)
        assert open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS)).kind == "huggingface"

    def test_trailing_slash(self, tmp_path: Path) -> None:
        path = write_meta(tmp_path / "m", GQA, WEIGHTS)
        assert open_checkpoint(f"{path}{os.sep}").source == "Meta checkpoint m"

    def test_incomplete(self, tmp_path: Path) -> None:
        refuse(tmp_path, "config.json", "params.json")
        write(tmp_path / "config.json", b"{}")
        refuse(tmp_path, "config.json", "params.json")
        write(tmp_path / "pytorch_model-00001-of-00002.bin", b"PK")
        refuse(tmp_path, "converted to safetensors")
        write(tmp_path / "params.json", b"{}")
        refuse(tmp_path, "consolidated.00.pth")
        write(tmp_path / "model.safetensors", b"{}")
        refuse(tmp_path, "hidden_size")

    def test_directory_of_gguf_files(self, tmp_path: Path) -> None:
        make("gguf", tmp_path / "b.gguf")
        make("gguf", tmp_path / "a.gguf")
        refuse(tmp_path, "a.gguf")

    def test_directory_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def closed(path: object) -> list[str]:  # nothing is closed to root, so modes would not do
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        monkeypatch.setattr(os, "listdir", closed)
        refuse(tmp_path, "cannot read")


class TestFiles:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "empty"),
            (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "web page"),
            (b"  <html lang=en>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git-lfs pointer"),
            (b'{"error": "access denied"}', "JSON"),
            (b"Once upon a time\n", "plain text"),
            (bytes(1000), "zeros"),
            (b"\xde\xad\xbe\xef" * 10, "de ad be ef"),
            (pickle.dumps({"model": [1.0]}), "pickle"),
            (gzip.compress(b"x", mtime=0), "gzip"),
            (b"ggjt" + bytes(40), "GGML"),
            (b"IQ== 0\nIg== 1\n", "tiktoken"),
            (b"24ka\7\0\0\0" + bytes(300), "version 7"),
            (b"24ka", "truncated"),
            (b"GGUF", "m"),
            (b"PK\3\4", "consolidated.00.pth"),
            (b"\x02\0\0\0\0\0\0\0{}", "config.json"),
            (b"\x02\0\0\0\0\0\0\0{{", "JSON"),
            (b"\xff\0\0\0\0\0\0\0{}", "truncated"),
        ],
    )
    def test_what_it_looks_like(self, tmp_path: Path, data: bytes, words: str) -> None:
        refuse(write(tmp_path / "m", data), words)

    def test_archives_and_old_files(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "m", "w") as archive:
            archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
        refuse(tmp_path / "m", "tar archive")
        torch.save({"a": torch.ones(2)}, tmp_path / "m", _use_new_zipfile_serialization=False)
        refuse(tmp_path / "m", "before version 1.6")
        torch.save({"a": torch.ones(2)}, tmp_path / "m")
        refuse(tmp_path / "m", "consolidated.00.pth")

    def test_not_there(self, tmp_path: Path) -> None:
        refuse(tmp_path / "absent", "no file")
        (tmp_path / "link").symlink_to("nowhere")
        refuse(tmp_path / "link", "no file")
        with pytest.raises(CheckpointError):
            open_checkpoint("a\0b")

    def test_special_files(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        refuse(tmp_path / "pipe", "not a regular file")
        refuse(Path("/dev/zero"), "not a regular file")

    @pytest.mark.slow
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.sampled_from([b"", b"GGUF\3\0\0\0", b"PK\3\4", b"24ka\1\0\0\0", b"\x20\0\0\0\0\0\0\0{", b"\x80\x02"]),
        st.binary(max_size=120),
    )
    def test_any_bytes(self, tmp_path: Path, start: bytes, rest: bytes) -> None:
        refuse(write(tmp_path / "m", start + rest))
