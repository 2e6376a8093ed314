"""GGUF checkpoints: tensors and config come back as they were written, and what is no Llama is refused."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as TensorType
from helpers.gguf_files import gguf_name, llama3_divisors, model_keys, stored, write_gguf, write_model
from helpers.tiny import CONFIGS, GQA, MHA, oracle_logits, random_weights
from helpers.tiny_tokenizers import sentencepiece_model
from numpy.typing import NDArray

from pyllama2 import _cpu
from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.base import Checkpoint
from pyllama2.checkpoint.gguf import GgufCheckpoint, is_gguf
from pyllama2.checkpoint.gguf_blocks import BLOCK_TYPES
from pyllama2.config import ModelConfig, RopeScaling
from pyllama2.errors import CheckpointError
from pyllama2.storage.mapped import MappedFile
from pyllama2.storage.weights import Weight

# Rows of 64 and 256 numbers, which blocks of 32 and of 256 divide.
BLOCKS_OF_32 = replace(GQA, dim=64, hidden_dim=96, n_heads=4, n_kv_heads=2, head_dim=16)
BLOCKS_OF_256 = replace(BLOCKS_OF_32, dim=256, hidden_dim=256, n_heads=8, head_dim=32, n_layers=1)
TYPES = ("F32", "F16", "BF16", *BLOCK_TYPES)
OTHER_TYPES = (
    "Q8_1", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ3_S", "IQ2_S", "I8", "I16", "I32", "I64", "F64",
    "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def read(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """Every tensor, copied before its pages are released."""
    return {name: tensor.read().copy() for name, _, tensor in checkpoint.tensors()}


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_is_read_as_written(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    extra = {}
    if name == "tied":  # whose scaling is a tensor
        config = replace(config, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
        extra = {"rope_freqs.weight": llama3_divisors(config.head_dim, config.rope_theta, 8.0)}
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_model(tmp_path / "m", config, weights, extra=extra))
    assert isinstance(checkpoint, GgufCheckpoint)
    assert checkpoint.config == config
    assert (checkpoint.tokenizer, checkpoint.chat_template) == (None, None)
    assert (checkpoint.kind, checkpoint.source, checkpoint.files) == ("gguf", "GGUF m", [str(tmp_path / "m")])
    tensors = read(checkpoint)
    assert list(tensors) == list(config.tensor_shapes())
    for tensor, array in weights.items():
        np.testing.assert_array_equal(tensors[tensor], array)
    logits = oracle_logits(checkpoint.config, tensors, TOKENS)
    np.testing.assert_array_equal(logits, oracle_logits(config, weights, TOKENS))


@pytest.mark.parametrize("kind", TYPES)
def test_every_type(tmp_path: Path, kind: str) -> None:
    config = BLOCKS_OF_256 if kind.endswith(("K", "XS")) else BLOCKS_OF_32
    weights = random_weights(config)
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m", config, weights, kind))
    assert checkpoint.config == config
    tensors = read(checkpoint)
    for name, shape in config.tensor_shapes().items():
        stored_type = "F32" if len(shape) == 1 else kind
        expected = gguf.quants.dequantize(stored(weights[name], stored_type), TensorType[stored_type])
        assert checkpoint.tensor(name).dtype == stored_type
        assert tensors[name].dtype == (np.float16 if stored_type == "F16" else np.float32)
        assert tensors[name].shape == shape
        np.testing.assert_array_equal(tensors[name].astype(np.float32), expected)
        weights[name] = expected
    as_float32 = {name: array.astype(np.float32) for name, array in tensors.items()}
    logits = oracle_logits(checkpoint.config, as_float32, TOKENS)
    np.testing.assert_array_equal(logits, oracle_logits(config, weights, TOKENS))


def test_types_may_be_mixed(tmp_path: Path) -> None:
    weights = random_weights(BLOCKS_OF_32)
    types = {gguf_name(name): ("F32", "F16", "Q4_1")[i % 3] for i, name in enumerate(weights)}
    types |= {name: "F32" for name in types if "norm" in name}
    tensors = {gguf_name(name): stored(array, types[gguf_name(name)]) for name, array in weights.items()}
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "m", tensors, model_keys(BLOCKS_OF_32), types))
    for name, array in read(checkpoint).items():
        assert checkpoint.tensor(name).dtype == types[gguf_name(name)]
        np.testing.assert_allclose(array, weights[name], atol=0.05)


def test_q8_0_becomes_q8_without_loss(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m", BLOCKS_OF_32, random_weights(BLOCKS_OF_32), "Q8_0"))
    for name, shape, tensor in checkpoint.tensors():
        if len(shape) == 2:
            matrix = tensor.read()
            codes, scales = _cpu.quantize_matrix(matrix, "q8", 32)
            np.testing.assert_array_equal(Weight(name, "q8", shape, codes, scales, 32).dequantize(), matrix)


@pytest.mark.slow
def test_tensors_are_lazy_and_released(tmp_path: Path) -> None:
    """Opening reads no tensor; reading one takes the memory of its numbers and no more."""
    config = replace(BLOCKS_OF_32, vocab_size=1 << 15)
    path = write_model(tmp_path / "m", config, random_weights(config), "Q4_0")
    n_bytes = config.vocab_size * config.dim * 4
    tracemalloc.start()
    checkpoint = GgufCheckpoint(path)
    tensor = checkpoint.tensor("tok_embeddings.weight")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    first = tensor.read()
    assert n_bytes <= tracemalloc.get_traced_memory()[1] < n_bytes + (2 << 20)
    tracemalloc.stop()
    tensor.release()
    np.testing.assert_array_equal(tensor.read(), first)


def test_arrays_outlive_close(tmp_path: Path) -> None:
    weights = random_weights(GQA)
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m", GQA, weights))
    array = checkpoint.tensor("norm.weight").read()
    checkpoint.close()
    np.testing.assert_array_equal(array, weights["norm.weight"])


def test_is_gguf(tmp_path: Path) -> None:
    for content, expected in [(b"GGUF", True), (b"GGUF\3\0\0\0", True), (b"GGU", False), (b"GGML\1\0\0\0", False)]:
        path = tmp_path / "m"
        path.write_bytes(content)
        with MappedFile(path) as file:
            assert is_gguf(file) == expected
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        GgufCheckpoint(path)


def test_overrides(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", GQA, random_weights(GQA))
    config = open_checkpoint(path, max_seq_len=7, norm_eps=1e-3).config
    assert config == replace(GQA, max_seq_len=7, norm_eps=1e-3)
    with pytest.raises(ValueError, match="max_seq_len"):
        open_checkpoint(path, max_seq_len=0)


def test_tokenizer_file(tmp_path: Path) -> None:
    """It serves a file without a tokenizer and replaces that of another."""
    config = replace(GQA, vocab_size=340)
    weights = random_weights(config)
    model = tmp_path / "tokenizer.model"
    model.write_bytes(sentencepiece_model())
    path = write_model(tmp_path / "m", config, weights, keys={"tokenizer.ggml.model": "no_vocab"})
    checkpoint = GgufCheckpoint(path, tokenizer=str(model))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.data == sentencepiece_model()
    assert checkpoint.files == [str(path), str(model)]

    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
    }
    path = write_model(tmp_path / "own", config, weights, keys=keys)
    checkpoint = GgufCheckpoint(path, tokenizer=str(model))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "sentencepiece"
    assert checkpoint.files == [str(path), str(model)]


_YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
# Metadata that says the same, or something else that is supported.
VARIANTS: dict[str, tuple[ModelConfig, dict[str, Any], dict[str, Any]]] = {
    "lengths_follow_from_dim": (
        GQA,
        dict.fromkeys(["llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"]),
        {},
    ),
    "n_kv_heads_is_n_heads": (MHA, {"llama.attention.head_count_kv": None}, {}),
    "a_number_for_each_layer": (
        GQA,
        {
            "llama.attention.head_count": [6, 6],
            "llama.attention.head_count_kv": [3, 3],
            "llama.feed_forward_length": [100, 100],
        },
        {},
    ),
    "rope_theta_has_a_default": (GQA, {"llama.rope.freq_base": None}, {}),
    "no_scaling": (GQA, {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {}),
    "factor_zero": (GQA, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, {}),
    "factor_without_type": (
        GQA,
        {"llama.rope.scaling.factor": 4.0},
        {"rope_scaling": RopeScaling("linear", 4.0)},
    ),
    "old_name_of_the_factor": (GQA, {"llama.rope.scale_linear": 0.5}, {"rope_scaling": RopeScaling("linear", 0.5)}),
    "yarn": (
        GQA,
        _YARN | {"llama.rope.scaling.original_context_length": 32, "llama.rope.scaling.yarn_beta_fast": 16.0},
        {"rope_scaling": RopeScaling("yarn", 4.0, original_max_seq_len=32, beta_fast=16.0)},
    ),
    "yarn_of_the_whole_context": (
        GQA,
        _YARN | {"llama.rope.scaling.yarn_ext_factor": -1.0},
        {"rope_scaling": RopeScaling("yarn", 4.0, original_max_seq_len=64)},
    ),
    "yarn_with_factors": (
        GQA,
        _YARN | {"llama.rope.scaling.attn_factor": 0.5, "llama.rope.scaling.yarn_attn_factor": 3.0},
        {
            "rope_scaling": RopeScaling(
                "yarn", 4.0, original_max_seq_len=64, attention_factor=1.5 * (0.1 * np.log(4.0) + 1)
            )
        },
    ),
    "no_experts": (GQA, {"llama.expert_count": 0}, {}),
    "one_part": (GQA, {"split.count": 1}, {}),
    "alignment": (GQA, {"general.alignment": 4096}, {}),
    "norm_eps": (GQA, {"llama.attention.layer_norm_rms_epsilon": 1e-6}, {"norm_eps": 1e-6}),
    "keys_of_no_interest": (GQA, {"general.tags": ["a", ""], "x.y": [1.5, 2.5], "z": "\U0001f642" * 99}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_metadata(tmp_path: Path, variant: str) -> None:
    config, keys, changes = VARIANTS[variant]
    weights = random_weights(config)
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m", config, weights, keys=keys))
    assert checkpoint.config == replace(config, **changes)
    np.testing.assert_array_equal(read(checkpoint)["norm.weight"], weights["norm.weight"])


def test_chat_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n\u00e9"
    path = write_model(tmp_path / "m", GQA, random_weights(GQA), keys={"tokenizer.chat_template": template})
    assert GgufCheckpoint(path).chat_template == template


REFUSED_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "split": ({"split.count": 3}, "is one of 3 parts of a model, and must have its name"),
    "no_dim": ({"llama.embedding_length": None}, "lacks the key llama.embedding_length"),
    "no_heads": ({"llama.attention.head_count": None}, "lacks the key llama.attention.head_count"),
    "no_layers": ({"llama.block_count": None}, "lacks the key llama.block_count"),
    "no_context": ({"llama.context_length": None}, "lacks the key llama.context_length"),
    "no_norm_eps": ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
    "dim_is_text": ({"llama.embedding_length": "48"}, "llama.embedding_length should be of type int"),
    "dim_is_float": ({"llama.embedding_length": 48.0}, "llama.embedding_length should be of type int"),
    "dim_is_array": ({"llama.embedding_length": [48]}, "llama.embedding_length should be of type int"),
    "theta_is_text": ({"llama.rope.freq_base": "1e4"}, "llama.rope.freq_base should be of type float"),
    "theta_is_nan": ({"llama.rope.freq_base": float("nan")}, "rope_theta must be between"),
    "eps_is_infinite": ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, "norm_eps must be between"),
    "heads_are_float": ({"llama.attention.head_count": [6.0, 6.0]}, "should be an array of type int"),
    "heads_differ": ({"llama.attention.head_count_kv": [3, 2]}, "head_count_kv differs between layers"),
    "heads_without_end": ({"llama.attention.head_count": [6] * 65537}, "head_count has 65537 numbers instead of one"),
    "zero_heads": (
        {"llama.attention.head_count": 0, "llama.attention.key_length": None},
        "48 is not a multiple of n_heads 0",
    ),
    "zero_kv_heads": ({"llama.attention.head_count_kv": 0}, "n_kv_heads must be between"),
    "no_whole_head": (
        {"llama.attention.head_count": 5, "llama.attention.key_length": None},
        "48 is not a multiple of n_heads 5",
    ),
    "heads_and_kv_heads": ({"llama.attention.head_count_kv": 4}, r"n_heads \(6\) is not a multiple of n_kv_heads"),
    "value_length": ({"llama.attention.value_length": 4}, "value_length is 4, other than head_dim 8"),
    "partial_rotation": ({"llama.rope.dimension_count": 4}, "dimension_count is 4, other than head_dim 8"),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope' is not supported"),
    "yarn_ext_factor": (
        _YARN | {"llama.rope.scaling.yarn_ext_factor": 0.5},
        "yarn_ext_factor other than 1 is not supported",
    ),
    "bad_factor": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": -2.0},
        "rope scaling factor must be between",
    ),
    "layers": ({"llama.block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
    "fewer_layers": ({"llama.block_count": 1}, "unknown tensor 'blk.1.attn_k.weight'"),
    "many_layers": ({"llama.block_count": 4_000_000_000}, "n_layers must be between"),
    "hidden_dim": (
        {"llama.feed_forward_length": 99},
        r"blk.0.ffn_gate.weight is \(100, 48\) and should be \(99, 48\)",
    ),
    "tokens_alone": ({"tokenizer.ggml.tokens": ["a", "b"]}, "m has tokens, but lacks the key tokenizer.ggml.model"),
    "template_is_number": ({"tokenizer.chat_template": 7}, "chat_template should be of type str"),
    "template_is_huge": ({"tokenizer.chat_template": "x" * (1 << 20)}, "tokenizer.chat_template has 1048584 bytes"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS)
def test_refused_metadata(tmp_path: Path, case: str) -> None:
    keys, message = REFUSED_KEYS[case]
    path = write_model(tmp_path / "m", GQA, random_weights(GQA), keys=keys)
    with pytest.raises(CheckpointError, match=message):
        GgufCheckpoint(path)


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    tensors = {gguf_name(name): array for name, array in random_weights(GQA).items()}
    for name, instead in (
        ("qwen3", "Qwen2.5"),
        ("qwen2moe", "dense model"),
        ("gemma3", "a Llama"),
        ("gpt-oss", "Llama"),
    ):
        path = write_gguf(tmp_path / "m", tensors, model_keys(GQA), architecture=name)
        with pytest.raises(CheckpointError, match=f"architecture '{name}' is .* not supported; take .*{instead}"):
            GgufCheckpoint(path)


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_up.bias", "blk.0.attn_q_norm.weight", "rope_factors_long.weight", "x" * 100]
)
def test_other_tensors_are_refused_by_name(tmp_path: Path, name: str) -> None:
    extra = {name: np.zeros(48, np.float32)}
    path = write_model(tmp_path / "m", GQA, random_weights(GQA), extra=extra)
    with pytest.raises(CheckpointError, match=f"unknown tensor '{name}'"):
        GgufCheckpoint(path)


@pytest.mark.parametrize("name", [name for name in GQA.tensor_shapes() if name != "output.weight"])
def test_missing_tensors_are_named(tmp_path: Path, name: str) -> None:
    weights = random_weights(GQA)
    del weights[name]
    with pytest.raises(CheckpointError, match=f"tensor {gguf_name(name)} is missing"):
        GgufCheckpoint(write_model(tmp_path / "m", GQA, weights))


@pytest.mark.parametrize("name", GQA.tensor_shapes())
def test_wrong_shapes_are_named(tmp_path: Path, name: str) -> None:
    weights = random_weights(GQA)
    weights[name] = np.zeros((*weights[name].shape, 2), np.float32)
    with pytest.raises(CheckpointError, match=f"tensor {gguf_name(name)} is .*2\\) and should be"):
        GgufCheckpoint(write_model(tmp_path / "m", GQA, weights))


def test_transposed_matrix(tmp_path: Path) -> None:
    weights = random_weights(GQA)
    weights["layers.0.feed_forward.w2.weight"] = weights["layers.0.feed_forward.w2.weight"].T.copy()
    with pytest.raises(CheckpointError, match=r"ffn_down.weight is \(100, 48\) and should be \(48, 100\)"):
        GgufCheckpoint(write_model(tmp_path / "m", GQA, weights))


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_types_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    size, nbytes = gguf.GGML_QUANT_SIZES[TensorType[kind]]
    tensors = {"token_embd.weight": np.zeros((2, 256 // size * nbytes), np.uint8)}
    path = write_gguf(tmp_path / "m", tensors, model_keys(GQA), {"token_embd.weight": kind})
    message = f"tensor 'token_embd.weight' is {kind}; supported are F32, F16"
    with pytest.raises(CheckpointError, match=message) as caught:
        GgufCheckpoint(path)
    nearest = re.search(r"; take the (\w+) file of the same model$", str(caught.value))
    assert (nearest is None) == kind.startswith(("I8", "I16", "I32", "I64", "F64"))
    assert nearest is None or nearest[1] in BLOCK_TYPES


ROTATIONS = replace(GQA, dim=16, n_heads=1, n_kv_heads=1, head_dim=128, rope_theta=5e5, n_layers=1)


def write_with_divisors(path: Path, config: ModelConfig, divisors: NDArray[Any], **keys: Any) -> Path:
    extra = {"rope_freqs.weight": divisors}
    return write_model(path, config, random_weights(config), extra=extra, keys={f"llama.{k}": keys[k] for k in keys})


@pytest.mark.parametrize(("head_dim", "factor"), [(128, 8.0), (64, 32.0)], ids=["llama-3.1", "llama-3.2"])
def test_llama3_scaling_is_recognized(tmp_path: Path, head_dim: int, factor: float) -> None:
    config = replace(ROTATIONS, head_dim=head_dim)
    divisors = llama3_divisors(head_dim, 5e5, factor)
    assert 1 < len(set(divisors)) < len(divisors)
    result = GgufCheckpoint(write_with_divisors(tmp_path / "m", config, divisors)).config
    assert result == replace(config, rope_scaling=RopeScaling("llama3", factor, 1.0, 4.0, 8192))


def test_divisors_of_one_are_no_scaling(tmp_path: Path) -> None:
    path = write_with_divisors(tmp_path / "m", ROTATIONS, np.ones(64, np.float32))
    assert GgufCheckpoint(path).config == ROTATIONS


LLAMA31 = llama3_divisors(128, 5e5, 8.0)


@pytest.mark.parametrize(
    "divisors",
    [
        llama3_divisors(128, 5e5, 8.0, context=4096),
        LLAMA31[::-1].copy(),
        np.append(LLAMA31[:-1], np.float32(9)),
        np.append(LLAMA31[:-1], np.float32(0)),
        np.full(64, 4, np.float32),
        np.full(64, -1, np.float32),
        np.full(64, np.nan, np.float32),
        np.append(LLAMA31[1:], np.float32(np.inf)),
        LLAMA31[:-1],
        np.stack([LLAMA31, LLAMA31]),
        LLAMA31.astype(np.float16),
    ],
)
def test_other_divisors_are_refused(tmp_path: Path, divisors: NDArray[Any]) -> None:
    path = write_with_divisors(tmp_path / "m", ROTATIONS, divisors)
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight is|scaling factor must be"):
        GgufCheckpoint(path)


def test_two_scalings_are_refused(tmp_path: Path) -> None:
    path = write_with_divisors(tmp_path / "m", ROTATIONS, LLAMA31, **{"rope.scaling.factor": 2.0})
    with pytest.raises(CheckpointError, match=r"rope scaling in tensor rope_freqs.weight is not"):
        GgufCheckpoint(path)


# Where the gguf package finds some tensors of SmolLM2's file.
SMOLLM2_PLACES = [
    ("tok_embeddings.weight", "Q8_0", 1785664),
    ("layers.0.attention.wk.weight", "Q4_1", 33530176),
    ("layers.1.feed_forward.w2.weight", "Q4_1", 34085440),
]


@pytest.mark.slow
def test_smollm2(smollm2_path: Path) -> None:
    checkpoint = GgufCheckpoint(smollm2_path)
    assert checkpoint.config == ModelConfig(
        dim=576,
        hidden_dim=1536,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        max_seq_len=8192,
        norm_eps=1e-5,
        rope_theta=100000.0,
        tied_embeddings=True,
    )
    assert checkpoint.chat_template is not None and "<|im_start|>" in checkpoint.chat_template
    assert Counter(tensor.dtype for _, _, tensor in checkpoint.tensors()) == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    for name, kind, offset in SMOLLM2_PLACES:
        shape = checkpoint.config.tensor_shapes()[name]
        size, nbytes = gguf.GGML_QUANT_SIZES[TensorType[kind]]
        raw = np.fromfile(smollm2_path, np.uint8, math.prod(shape) // size * nbytes, offset=offset)
        expected = gguf.quants.dequantize(raw.reshape(shape[0], -1), TensorType[kind])
        np.testing.assert_array_equal(checkpoint.tensor(name).read(), expected)
