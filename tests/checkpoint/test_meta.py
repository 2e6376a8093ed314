"""Meta checkpoints: any number of shards gives back the model; what does not fit together is refused."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.foreign import rounded, write_meta
from helpers.tiny import GQA, MHA, WIDE_HEADS, oracle_logits, random_weights
from helpers.tiny_tokenizers import bpe_json, sentencepiece_model
from numpy.typing import NDArray

from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.base import Checkpoint
from pyllama2.checkpoint.meta import MetaCheckpoint
from pyllama2.config import ModelConfig, RopeScaling
from pyllama2.errors import CheckpointError

TOKENS = [1, 5, 9, 33, 2, 48, 5, 5, 60, 7]
# hidden_dim, vocab_size and heads that 2 and 3 shards divide
SHARDED = replace(GQA, hidden_dim=96, vocab_size=72)


def as_read(config: ModelConfig) -> ModelConfig:
    return replace(config, max_seq_len=4096)  # params.json has no context length


def read_all(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    return {name: tensor.read().astype(np.float32) for name, _, tensor in checkpoint.tensors()}


def check(checkpoint: Checkpoint, config: ModelConfig, weights: dict[str, NDArray[np.float32]]) -> None:
    assert checkpoint.config == config
    tensors = read_all(checkpoint)
    for name, array in weights.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)
    expected = oracle_logits(config, weights, TOKENS)
    np.testing.assert_allclose(oracle_logits(checkpoint.config, tensors, TOKENS), expected, rtol=1e-4, atol=1e-5)


def edit_params(folder: Path, **changes: Any) -> None:
    """Replace fields of params.json; None removes one."""
    values = json.loads((folder / "params.json").read_text()) | changes
    (folder / "params.json").write_text(
        json.dumps({name: value for name, value in values.items() if value is not None})
    )


def edit_shard(folder: Path, i: int, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of one shard; dots in names are spelled __."""
    path = folder / f"consolidated.{i:02}.pth"
    tensors = torch.load(path) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def refuse(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value).replace(str(path), "")  # whose name has words of the test's
    for word in words:
        assert word in message


class TestReading:
    @pytest.mark.parametrize("config", [MHA, GQA], ids=["mha", "gqa"])
    @pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
    def test_one_shard(self, tmp_path: Path, config: ModelConfig, dtype: str) -> None:
        weights = rounded(random_weights(config), dtype)
        checkpoint = open_checkpoint(write_meta(tmp_path / "model", config, weights, dtype=dtype))
        assert isinstance(checkpoint, MetaCheckpoint)
        check(checkpoint, as_read(config), weights)
        tensor = checkpoint.tensor("layers.0.attention.wq.weight")
        assert tensor.dtype == dtype
        assert tensor.read().dtype == (np.float16 if dtype == "F16" else np.float32)
        assert (checkpoint.kind, checkpoint.source) == ("meta", "Meta checkpoint model")
        assert (checkpoint.tokenizer, checkpoint.chat_template) == (None, None)
        assert [Path(file).name for file in checkpoint.files] == ["params.json", "consolidated.00.pth"]

    @pytest.mark.parametrize("n_shards", [2, 3])
    @pytest.mark.parametrize("embedding_axis", [0, 1], ids=["llama3", "llama2"])
    @pytest.mark.parametrize("dtype", ["F16", "BF16"])
    def test_shards(self, tmp_path: Path, n_shards: int, embedding_axis: int, dtype: str) -> None:
        config = replace(SHARDED, n_heads=6, n_kv_heads=6) if n_shards == 2 else SHARDED
        weights = rounded(random_weights(config), dtype)
        write_meta(tmp_path / "model", config, weights, n_shards=n_shards, embedding_axis=embedding_axis, dtype=dtype)
        checkpoint = open_checkpoint(tmp_path / "model")
        check(checkpoint, as_read(config), weights)
        wo = checkpoint.tensor("layers.1.attention.wo.weight")
        assert wo.read().dtype == (np.float16 if dtype == "F16" else np.float32)
        assert len(checkpoint.files) == 1 + n_shards

    def test_shards_that_are_views(self, tmp_path: Path) -> None:
        # torch.chunk without clone(): every shard's file holds whole storages with strides
        config = replace(SHARDED, n_heads=6, n_kv_heads=6)
        weights = random_weights(config)
        folder = write_meta(tmp_path / "model", config, weights, n_shards=2)
        for i in range(2):
            views = {}
            for name, tensor in torch.load(folder / f"consolidated.{i:02}.pth").items():
                if name != "rope.freqs" and tensor.ndim == 2:
                    whole = torch.from_numpy(weights[name])
                    tensor = torch.chunk(whole, 2, 0 if tensor.shape[0] < whole.shape[0] else 1)[i]
                views[name] = tensor
            torch.save(views, folder / f"consolidated.{i:02}.pth")
        check(open_checkpoint(folder), as_read(config), weights)

    def test_path_of_a_shard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = random_weights(GQA)
        folder = write_meta(tmp_path / "model", GQA, weights)
        check(open_checkpoint(folder / "consolidated.00.pth"), as_read(GQA), weights)
        monkeypatch.chdir(folder)
        check(open_checkpoint("consolidated.00.pth"), as_read(GQA), weights)
        shutil.copy(folder / "consolidated.00.pth", folder / "model.pth")
        refuse(folder / "model.pth", "consolidated.00.pth")

    def test_arrays_outlive_the_checkpoint(self, tmp_path: Path) -> None:
        weights = random_weights(GQA)
        checkpoint = open_checkpoint(write_meta(tmp_path / "model", GQA, weights))
        array = checkpoint.tensor("norm.weight").read()
        checkpoint.close()
        np.testing.assert_array_equal(array, weights["norm.weight"])

    def test_overrides(self, tmp_path: Path) -> None:
        folder = write_meta(tmp_path / "model", GQA, random_weights(GQA))
        checkpoint = open_checkpoint(folder, max_seq_len=99, norm_eps=0.25)
        assert checkpoint.config == replace(GQA, max_seq_len=99, norm_eps=0.25)
        for wrong in ({"max_seq_len": 0}, {"max_seq_len": 1.5}, {"norm_eps": -1.0}, {"norm_eps": float("nan")}):
            with pytest.raises(ValueError, match="must be"):
                open_checkpoint(folder, **wrong)


class TestParams:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_meta(tmp_path / "model", GQA, random_weights(GQA))

    def test_nested(self, folder: Path) -> None:
        values = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps({"model": values, "dataset": "x"}))
        assert open_checkpoint(folder).config == as_read(GQA)

    def test_rope(self, folder: Path) -> None:
        edit_params(folder, rope_theta=500000.0, use_scaled_rope=True)
        config = open_checkpoint(folder).config
        assert (config.rope_theta, config.rope_scaling) == (500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
        edit_params(folder, use_scaled_rope=False)
        assert open_checkpoint(folder).config.rope_scaling is None

    def test_norm_eps_is_kept(self, folder: Path) -> None:
        edit_params(folder, norm_eps=1e-6)
        assert open_checkpoint(folder).config.norm_eps == 1e-6
        edit_params(folder, norm_eps=None)
        assert open_checkpoint(folder).config.norm_eps == 1e-5

    def test_vocabulary(self, folder: Path) -> None:
        for vocab_size in (GQA.vocab_size, -1, None):
            edit_params(folder, vocab_size=vocab_size)
            assert open_checkpoint(folder).config.vocab_size == GQA.vocab_size
        edit_params(folder, vocab_size=GQA.vocab_size + 1)
        refuse(folder, "vocab_size is 71", "70 rows")

    def test_head_dim(self, tmp_path: Path) -> None:
        folder = write_meta(tmp_path / "wide", replace(WIDE_HEADS, rope_scaling=None), random_weights(WIDE_HEADS))
        refuse(folder, "wq")
        edit_params(folder, head_dim=WIDE_HEADS.head_dim)
        assert open_checkpoint(folder).config.head_dim == WIDE_HEADS.head_dim

    def test_hidden_dim_comes_from_the_weights(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            edit_params(folder, multiple_of=4, ffn_dim_multiplier=0.78)  # int(0.78 * 128) = 99 -> 100
            assert open_checkpoint(folder).config.hidden_dim == GQA.hidden_dim
            assert not caplog.records
            edit_params(folder, multiple_of=256, ffn_dim_multiplier=None)
            assert open_checkpoint(folder).config.hidden_dim == GQA.hidden_dim
        assert "256" in caplog.text

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"dim": None}, "lacks dim"),
            ({"n_heads": None}, "lacks n_heads"),
            ({"n_layers": None}, "lacks n_layers"),
            ({"dim": "48"}, "dim"),
            ({"dim": 48.0}, "dim"),
            ({"dim": True}, "bool"),
            ({"dim": 0}, "dim"),
            ({"dim": 10**30}, "dim"),
            ({"dim": 96}, "tok_embeddings"),
            ({"n_heads": 5}, "multiple"),
            ({"n_heads": 12}, "wk"),
            ({"n_kv_heads": 4}, "n_kv_heads"),
            ({"n_kv_heads": None}, "wk"),
            ({"n_layers": 1}, "unknown tensor 'layers.1."),
            ({"n_layers": 3}, "layers.2."),
            ({"n_layers": 10**9}, "n_layers"),
            ({"norm_eps": "small"}, "norm_eps"),
            ({"norm_eps": 2.0}, "norm_eps"),
            ({"rope_theta": 0.5}, "rope_theta"),
            ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
            ({"multiple_of": 0}, "multiple_of"),
            ({"sliding_window": "wide"}, "sliding_window"),
            ({"vocab_size": "many"}, "vocab_size"),
        ],
    )
    def test_refused(self, folder: Path, changes: dict[str, Any], word: str) -> None:
        edit_params(folder, **changes)
        refuse(folder, word)

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000,
         b'{"dim": ' + b"9" * 5000 + b"}", b'{"a": [' + b"0," * 600_000 + b"0]}", b" " * (17 << 20)],
    )  # fmt: skip
    def test_damaged_json(self, folder: Path, content: bytes) -> None:
        (folder / "params.json").write_bytes(content)
        refuse(folder, "params.json")

    def test_a_field_given_twice(self, folder: Path) -> None:
        text = (folder / "params.json").read_text()
        (folder / "params.json").write_text(text.replace('"dim": 48', '"dim": 48, "dim": 48'))
        refuse(folder, "twice")

    def test_missing(self, folder: Path) -> None:
        (folder / "params.json").unlink()
        refuse(folder, "params.json")


class TestShardsThatDoNotFit:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_meta(tmp_path / "model", SHARDED, random_weights(SHARDED), n_shards=3)

    def test_missing_files(self, folder: Path) -> None:
        (folder / "consolidated.01.pth").unlink()
        refuse(folder, "consolidated.01.pth is missing")
        (folder / "consolidated.02.pth").unlink()
        refuse(folder, "1 shard(s)", "a shard missing")
        (folder / "consolidated.00.pth").unlink()
        refuse(folder, "consolidated.00.pth")

    def test_too_many_files(self, folder: Path) -> None:
        shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.03.pth")
        refuse(folder, "4 shard(s)")

    def test_missing_tensors(self, folder: Path) -> None:
        edit_shard(folder, 1, layers__1__attention__wo__weight=None)
        refuse(folder, "consolidated.01.pth", "layers.1.attention.wo.weight", "missing")
        for i in range(3):
            edit_shard(folder, i, layers__1__attention__wo__weight=None)
        refuse(folder, "layers.1.attention.wo.weight is missing")

    def test_missing_output(self, folder: Path) -> None:
        for i in range(3):
            edit_shard(folder, i, output__weight=None)
        refuse(folder, "output.weight is missing")

    def test_unknown_tensors(self, folder: Path) -> None:
        edit_shard(folder, 2, layers__0__attention__wq__bias=torch.ones(16))
        refuse(folder, "consolidated.00.pth", "wq.bias", "missing")
        for i in range(3):
            edit_shard(folder, i, layers__0__attention__wq__bias=torch.ones(16))
        refuse(folder, "unknown tensor 'layers.0.attention.wq.bias'")

    def test_rotation_frequencies_are_ignored(self, folder: Path) -> None:
        for i in range(3):
            edit_shard(folder, i, layers__0__attention__inner_attention__rope__freqs=torch.ones(4), rope__freqs=None)
        assert open_checkpoint(folder).config == as_read(SHARDED)

    def test_shapes_that_differ(self, folder: Path) -> None:
        edit_shard(folder, 1, layers__0__attention_norm__weight=torch.ones(47))
        refuse(folder, "layers.0.attention_norm.weight", "(47,)", "(48,)")

    def test_types_that_differ(self, folder: Path) -> None:
        edit_shard(folder, 1, norm__weight=torch.ones(48).half())
        refuse(folder, "norm.weight", "F16", "F32")

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("tok_embeddings.weight", (72,)),
            ("tok_embeddings.weight", (72, 17)),
            ("layers.0.feed_forward.w1.weight", (32, 47)),
            ("layers.0.feed_forward.w1.weight", (32,)),
            ("layers.0.feed_forward.w2.weight", (48, 33)),
            ("layers.1.attention.wq.weight", (48, 48)),
            ("layers.1.attention.wk.weight", (4, 48)),
            ("output.weight", (72, 16)),
            ("norm.weight", (48, 1)),
        ],
    )
    def test_wrong_shapes(self, folder: Path, name: str, shape: tuple[int, ...]) -> None:
        for i in range(3):
            edit_shard(folder, i, **{name.replace(".", "__"): torch.ones(shape)})
        refuse(folder)

    def test_damaged_shard(self, folder: Path) -> None:
        path = folder / "consolidated.02.pth"
        path.write_bytes(path.read_bytes()[:-100])
        refuse(folder, "consolidated.02.pth", "truncated")


class TestTokenizer:
    CONFIG = replace(GQA, vocab_size=340, dim=24, n_heads=3, n_kv_heads=3, hidden_dim=16, n_layers=1)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_meta(tmp_path / "model", self.CONFIG, random_weights(self.CONFIG))

    def test_places(self, folder: Path, tmp_path: Path) -> None:
        assert open_checkpoint(folder).tokenizer is None
        above = tmp_path / "tokenizer.model"
        above.write_bytes(sentencepiece_model())
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tokenizer is not None
        assert checkpoint.tokenizer.data == sentencepiece_model()
        assert (checkpoint.tokenizer.bos_id, checkpoint.tokenizer.eos_ids, checkpoint.tokenizer.add_bos) == (
            1,
            (2,),
            True,
        )
        assert Path(checkpoint.files[-1]).resolve() == above
        other = sentencepiece_model(vocab_size=320)
        (folder / "tokenizer.model").write_bytes(other)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tokenizer is not None
        assert checkpoint.tokenizer.data == other

    def test_given(self, folder: Path, tmp_path: Path) -> None:
        (folder / "tokenizer.model").write_bytes(b"damaged")
        (tmp_path / "tokenizer.json").write_text(json.dumps(bpe_json()))
        checkpoint = open_checkpoint(folder, tokenizer=tmp_path / "tokenizer.json")
        assert checkpoint.tokenizer is not None
        assert checkpoint.tokenizer.kind == "bpe"
        assert checkpoint.files[-1] == str(tmp_path / "tokenizer.json")
        refuse(folder, "absent", tokenizer=tmp_path / "absent")

    def test_llama3_vocabulary(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
        refuse(folder, "tiktoken", "tokenizer.json")

    def test_more_tokens_than_the_model(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocab_size=350))
        refuse(folder, "350", "340")
