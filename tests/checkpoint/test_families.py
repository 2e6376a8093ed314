"""Models of other families: the logits that transformers gives, there and back through all formats, their limits."""

from __future__ import annotations

import importlib.util
import json
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.backend_contract import all_logits
from helpers.families import FAMILIES, REFERENCE, transformers_logits
from helpers.foreign import write_huggingface, write_meta
from helpers.gguf_files import write_model
from helpers.tiny import BIASES, GQA, QWEN2, oracle_logits, random_weights
from numpy.typing import NDArray

import pyllama2
from pyllama2._cpu import CpuBackend
from pyllama2.checkpoint import open_checkpoint
from pyllama2.convert import convert_in_memory
from pyllama2.errors import CheckpointError
from pyllama2.loading import load_model
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Quantization


def reference(name: str) -> NDArray[np.float32]:
    return np.array(json.loads(REFERENCE.read_text())["logits"][name], np.float32)


def load(path: Path, type: str = "float32") -> StoredModel:
    with closing(open_checkpoint(path)) as checkpoint:
        return convert_in_memory(checkpoint, Quantization.of(type, 32))


def last_logits(path: Path, tokens: list[int], type: str = "float32") -> NDArray[np.float32]:
    return all_logits(CpuBackend(load(path, type), n_threads=2), tokens)[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    family, expected = FAMILIES[name], reference(name)
    path = family.write(tmp_path / "m")
    assert np.abs(last_logits(path, family.tokens()) - expected).max() < 1e-4
    with closing(open_checkpoint(path)) as checkpoint:
        weights = {name: tensor.read().astype(np.float32) for name, _, tensor in checkpoint.tensors()}
        assert np.abs(oracle_logits(checkpoint.config, weights, family.tokens())[-1] - expected).max() < 1e-4
    assert np.abs(last_logits(path, family.tokens(), "q8") - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_is_what_transformers_gives(name: str) -> None:
    assert np.abs(transformers_logits(FAMILIES[name]) - reference(name)).max() < 1e-4


@pytest.mark.parametrize("format", ["pyllama2", "gguf", "huggingface"])
@pytest.mark.parametrize("name", ["qwen2", "qwen2 yarn", "llama yarn", "llama biases", "mistral window"])
def test_there_and_back(tmp_path: Path, name: str, format: str) -> None:
    family = FAMILIES[name]
    before = family.write(tmp_path / "before")
    pyllama2.export(before, tmp_path / "after", format=format)
    first, second = load(before), load(tmp_path / "after")
    # attention_factor is a float32 in a GGUF file.
    assert second.config.rope_attention_factor == pytest.approx(first.config.rope_attention_factor, rel=1e-6)
    assert replace(second.config, rope_scaling=first.config.rope_scaling) == first.config
    assert second.config.rope_frequencies() == pytest.approx(first.config.rope_frequencies(), rel=1e-6)
    for tensor in first.config.tensor_shapes():
        assert np.array_equal(first.weights[tensor].data, second.weights[tensor].data), tensor
    assert np.abs(last_logits(tmp_path / "after", family.tokens()) - reference(name)).max() < 1e-4


@pytest.mark.parametrize("format", ["gguf", "huggingface"])
def test_what_the_written_model_is_called(tmp_path: Path, format: str) -> None:
    for i, (config, kind) in enumerate(((GQA, "llama"), (QWEN2, "qwen2"), (BIASES, "llama"))):
        source = write_huggingface(tmp_path / str(i), config, random_weights(config))
        out = tmp_path / f"{source.name}.out"
        pyllama2.export(source, out, format=format)
        if format == "gguf":
            assert f"{kind}.embedding_length".encode() in out.read_bytes()
        else:
            values = json.loads((out / "config.json").read_text())
            assert values["model_type"] == kind
            assert values.get("attention_bias", False) is (config is BIASES)


def test_configs_without_biases_are_stored_as_before() -> None:
    values = json.loads(GQA.to_json())
    assert not values.keys() & {"qkv_bias", "wo_bias"}
    assert json.loads(QWEN2.to_json())["qkv_bias"] is True


@pytest.mark.parametrize(
    ("name", "limit", "reason"),
    [("mistral window", 24, "sliding window"), ("llama dynamic", 64, "dynamic RoPE scaling")],
)
def test_where_a_context_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, limit: int, reason: str
) -> None:
    path = FAMILIES[name].write(tmp_path / "m")
    with caplog.at_level(logging.WARNING, logger="pyllama2"):
        model = load_model(str(path), quant=None, tokenizer=None, n_ctx=None, kv_dtype=None)
    assert model.config.max_seq_len == limit
    assert f"the context ends at {limit} tokens: " in caplog.text and reason in caplog.text
    with pytest.raises(ValueError, match=f"between 1 and {limit}.*{reason}"):
        load_model(str(path), quant=None, tokenizer=None, n_ctx=limit + 1, kv_dtype=None)
    with pytest.raises(ValueError, match=f"at most {limit}: .*{reason}"):
        pyllama2.export(path, tmp_path / "out", max_seq_len=limit + 1)
    caplog.clear()
    pyllama2.export(path, tmp_path / "out", max_seq_len=limit - 1)
    assert reason not in caplog.text  # the user wants it to end there
    assert load(tmp_path / "out").config.max_seq_len == limit - 1


def test_a_window_that_is_longer_than_the_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It does not end the context, but one that a user makes longer."""
    weights = random_weights(GQA)
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 100}
    folder = write_huggingface(tmp_path / "m", GQA, weights, **mistral)
    path = write_model(tmp_path / "m.gguf", GQA, weights, keys={"llama.attention.sliding_window": 100})
    for model in (folder, path):
        with caplog.at_level(logging.WARNING, logger="pyllama2"):
            load_model(str(model), quant=None, tokenizer=None, n_ctx=None, kv_dtype=None)
        assert "context ends" not in caplog.text
        with pytest.raises(ValueError, match="n_ctx must be between 1 and 64, not 65: the model was made for that"):
            load_model(str(model), quant=None, tokenizer=None, n_ctx=65, kv_dtype=None)
        with closing(open_checkpoint(model, max_seq_len=100)) as checkpoint:
            assert checkpoint.config.max_seq_len == 100
        with pytest.raises(ValueError, match="at most 100: it is the model's sliding window"):
            open_checkpoint(model, max_seq_len=101)


def test_the_window_of_other_formats(tmp_path: Path) -> None:
    weights = random_weights(GQA)
    path = write_model(tmp_path / "m.gguf", GQA, weights, keys={"llama.attention.sliding_window": 16})
    folder = write_meta(tmp_path / "meta", GQA, weights)
    params = folder / "params.json"
    params.write_text(json.dumps(json.loads(params.read_text()) | {"sliding_window": 16, "head_dim": GQA.head_dim}))
    for model in (path, folder):
        with closing(open_checkpoint(model)) as checkpoint:
            assert checkpoint.config.max_seq_len == 16
            assert "sliding window" in checkpoint.why_it_ends
    path = write_model(tmp_path / "m.gguf", GQA, weights, keys={"llama.attention.sliding_window": np.int32(-16)})
    with pytest.raises(CheckpointError, match=r"max_seq_len must be between 1 and .*, not -16"):
        open_checkpoint(path)


def test_a_mistral_that_does_not_say_its_window(tmp_path: Path) -> None:
    changes = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 32768}
    folder = write_huggingface(tmp_path / "m", GQA, random_weights(GQA), **changes)
    assert load(folder).config.max_seq_len == 4096
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"sliding_window": None}))
    assert load(folder).config.max_seq_len == 32768


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"use_sliding_window": False, "sliding_window": 24}, 128),
        ({"use_sliding_window": True, "sliding_window": 24}, 24),
        ({"use_sliding_window": True, "sliding_window": None, "max_position_embeddings": 8192}, 8192),
        ({"use_sliding_window": True, "max_position_embeddings": 8192}, 4096),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 24}, 24),
        ({"layer_types": ["full_attention", "full_attention"], "sliding_window": None}, 128),
    ],
)
def test_the_window_of_qwen2(tmp_path: Path, changes: dict[str, Any], length: int) -> None:
    folder = write_huggingface(tmp_path / "m", QWEN2, random_weights(QWEN2))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    assert load(folder).config.max_seq_len == length


def test_yarn_reaches_as_far_as_its_factor(tmp_path: Path) -> None:
    """Qwen2.5 comes with YaRN and the context from before it."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    folder = write_huggingface(tmp_path / "m", GQA, random_weights(GQA), rope_scaling=scaling)
    assert load(folder).config.max_seq_len == 256
