"""Models written as directories of Hugging Face: safetensors and our reader find the same numbers and tokens."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from helpers.foreign import huggingface_tensors, write_huggingface
from helpers.tiny import GQA, TIED, oracle_logits, random_weights
from helpers.tiny_llama import CHATML, write_tiny
from helpers.tiny_tokenizers import bpe_spec, sentencepiece_model, sentencepiece_spec
from safetensors.torch import load_file

import pyllama2
from pyllama2.checkpoint import open_checkpoint
from pyllama2.cli.program import main
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.writers.sentencepiece_json import tokenizer_json

TEXTS = ["Once upon a time", "naïve 12345 \n\tend", "a fox who lived in the forest"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("config", [GQA, TIED], ids=["gqa", "tied"])
def test_numbers(tmp_path: Path, config: Any, dtype: str) -> None:
    """The tensors are those that transformers' own conversion makes."""
    weights = random_weights(config)
    source = write_tiny(tmp_path / "m.bin", None, weights=weights, **vars(config))
    pyllama2.export(source, tmp_path / "hf", format="huggingface", dtype=dtype)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    expected = huggingface_tensors(config, weights, "F32" if dtype == "float32" else "F16")
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype and (tensors[name] == tensor).all(), name
    with closing(open_checkpoint(tmp_path / "hf")) as written:
        assert written.config == config
        read = {name: tensor.read().astype(np.float32) for name, _, tensor in written.tensors()}
    logits = oracle_logits(config, weights, [1, 5, 7])
    assert np.allclose(oracle_logits(config, read, [1, 5, 7]), logits, atol=1e-5 if dtype == "float32" else 0.05)


def test_there_and_back(tmp_path: Path) -> None:
    before = write_huggingface(tmp_path / "a", GQA, random_weights(GQA))
    pyllama2.export(before, tmp_path / "b", format="huggingface")
    assert load_file(before / "model.safetensors").keys() == load_file(tmp_path / "b" / "model.safetensors").keys()
    values = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("a", "b")]
    assert values[0].items() <= values[1].items()


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("make", [sentencepiece_spec, bpe_spec], ids=["sentencepiece", "bpe"])
def test_tokens_and_template(tmp_path: Path, make: Any, add_bos: bool) -> None:
    spec = replace(make(), add_bos=add_bos, bos_id=make().bos_id or 0)
    path = write_tiny(tmp_path / "m.bin", spec=spec, template=CHATML, vocab_size=400)
    pyllama2.export(path, tmp_path / "hf", format="huggingface")
    with closing(open_checkpoint(path)) as before, closing(open_checkpoint(tmp_path / "hf")) as after:
        assert before.tokenizer is not None and after.tokenizer is not None
        for name in ("kind", "bos_id", "eos_ids", "add_bos"):
            assert getattr(after.tokenizer, name) == getattr(before.tokenizer, name), name
        assert after.chat_template == CHATML
        ours, theirs = (load_tokenizer(c.tokenizer, 400) for c in (before, after) if c.tokenizer)
        assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
        expected = [ours.with_bos(ours.encode(text)) for text in TEXTS]
    package = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert [package.encode(text).ids for text in TEXTS] == expected
    assert [package.decode(package.encode(text).ids) for text in TEXTS] == TEXTS
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}, {"user_defined": ("<|im|>",)}])
def test_sentencepiece_as_json(options: dict[str, Any]) -> None:
    """Its tokens are SentencePiece's, but that special tokens in a text are special."""
    spec = sentencepiece_spec(sentencepiece_model(**options))
    data = tokenizer_json(spec, 340)
    assert data is not None
    package, ours = tokenizers.Tokenizer.from_str(data.decode()), load_tokenizer(spec, 340)
    for text in (
        "",
        "a",
        " a",
        "  a  fox ",
        "the foxes\n\n",
        "\u2581",
        "日本 🦊\u200b\u00a0",
        "oooonnnn  \t",
        "0.5e-3",
    ):
        assert package.encode(text).ids == ours.encode(text), text
        if "\u2581" not in text:
            assert package.decode(ours.encode(text)) == text
    assert package.encode("</s>", add_special_tokens=False).ids == [2]


def test_sentencepiece_that_json_cannot_express(tmp_path: Path) -> None:
    """A model that changes characters has tokenizer.model alone."""
    spec = sentencepiece_spec(sentencepiece_model(normalization_rule_name="nfkc"))
    assert tokenizer_json(spec, 340) is None
    pyllama2.export(write_tiny(tmp_path / "m.bin", spec=spec), tmp_path / "hf", format="huggingface")
    assert (tmp_path / "hf" / "tokenizer.model").exists() and not (tmp_path / "hf" / "tokenizer.json").exists()
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "LlamaTokenizer"


def test_the_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "m.bin", None)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for out in (tmp_path / "there", source):
        with pytest.raises((CheckpointError, ValueError), match=r"exists already|is a file of the model"):
            pyllama2.export(source, out, format="huggingface")
    with pytest.raises(CheckpointError, match="there is no directory"):
        pyllama2.export(source, tmp_path / "none" / "x", format="huggingface")

    def fail(done: int, total: int, name: str) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        pyllama2.export(source, tmp_path / "x", format="huggingface", progress=fail)
    assert {path.name for path in tmp_path.iterdir()} == {"m.bin", "there"}
    os.unlink(tmp_path / "there" / "file")  # an empty directory is filled
    words = ["export", str(source), "-o", f"{tmp_path / 'there'}/", "--format", "huggingface", "--dtype", "float16"]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors"
    }  # fmt: skip
