"""Rows of a tensor on their own: those of the whole tensor, from every kind of checkpoint, and its size in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from helpers.foreign import llama2c_bytes, write_huggingface, write_meta
from helpers.gguf_files import write_model as write_gguf_model
from helpers.tiny import GQA, MHA, quantized_model, random_weights, write_model

from pyllama2.checkpoint import open_checkpoint
from pyllama2.config import ModelConfig

# Rows that blocks of 32 divide; heads that the shards share evenly.
CONFIG = replace(GQA, dim=64, hidden_dim=96, n_heads=4, n_kv_heads=2, head_dim=16, vocab_size=72)
SPANS = [(0, 1), (0, 8), (3, 5), (7, 17), (8, 16), (30, 33)]


def native(dtype: str) -> Callable[[Path], Path]:
    return lambda path: write_model(path / "m.bin", quantized_model(CONFIG, random_weights(CONFIG), dtype))


def gguf(dtype: str) -> Callable[[Path], Path]:
    return lambda path: write_gguf_model(path / "m.gguf", CONFIG, random_weights(CONFIG), dtype)


def llama2c(version: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        # Groups of 128 run across rows of 64 and of 96.
        data = llama2c_bytes(CONFIG, random_weights(CONFIG), version, group_size=128)
        (path / "m.bin").write_bytes(data)
        return path / "m.bin"

    return write


KINDS: dict[str, Callable[[Path], Path]] = {
    **{f"native {dtype}": native(dtype) for dtype in ("float32", "float16", "q8", "q4")},
    **{f"gguf {dtype}": gguf(dtype) for dtype in ("F32", "F16", "BF16", "Q8_0", "Q4_1")},
    "llama2.c 0": llama2c(0),
    "llama2.c 2": llama2c(2),
    "meta": lambda path: write_meta(path, CONFIG, random_weights(CONFIG), dtype="BF16"),
    "meta, 2 shards": lambda path: write_meta(path, CONFIG, random_weights(CONFIG), n_shards=2, dtype="F16"),
    "meta, embedding by rows": lambda path: write_meta(
        path, CONFIG, random_weights(CONFIG), n_shards=2, embedding_axis=0
    ),
    "hugging face": lambda path: write_huggingface(path, CONFIG, random_weights(CONFIG), dtype="BF16"),
}
BITS = {
    "float32": 32, "F32": 32, "float16": 16, "F16": 16, "BF16": 16, "q8": 8 + 16 / 64, "q4": 4 + 16 / 64,
    "Q8_0": 8 + 16 / 32, "Q4_1": 4 + 32 / 32,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    for name, shape, tensor in open_checkpoint(KINDS[kind](tmp_path)).tensors():
        whole = tensor.read()
        if kind == "hugging face" and name.endswith(("wq.weight", "wk.weight")):
            assert tensor.read_rows(0, shape[0]).sum() == pytest.approx(whole.sum(), abs=1e-3)
            continue  # their order is another, see below
        for start, stop in [*SPANS, (0, shape[0]), (shape[0] - 1, shape[0])]:
            result = tensor.read_rows(start, min(stop, shape[0]))
            assert result.dtype == whole.dtype
            np.testing.assert_array_equal(result, whole[start:stop], err_msg=f"{name} {start} {stop}")


@pytest.mark.parametrize("config", [GQA, MHA])
def test_hugging_face_gives_stored_order(config: ModelConfig, tmp_path: Path) -> None:
    """Every row once, whichever its place."""
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, config, weights))
    for name in ("layers.0.attention.wq.weight", "layers.1.attention.wk.weight"):
        rows = checkpoint.tensor(name).read_rows(0, len(weights[name]))
        assert not np.array_equal(rows, weights[name])
        np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(weights[name], axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes(kind: str, tmp_path: Path) -> None:
    """Counted once for norms that every shard has. llama2.c's scales are float32."""
    for name, shape, tensor in open_checkpoint(KINDS[kind](tmp_path)).tensors():
        bits = BITS[tensor.dtype]
        if kind == "llama2.c 2" and len(shape) == 2:
            bits = 8 + 32 / 128
        if tensor.dtype in ("q8", "q4"):  # padded to whole groups and blocks of 8 rows
            shape = (-(-shape[0] // 8) * 8, -(-shape[1] // 64) * 64)
        assert tensor.nbytes == prod(shape) * bits / 8, name
