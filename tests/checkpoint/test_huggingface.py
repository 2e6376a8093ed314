"""Hugging Face checkpoints: single and sharded give back the model; what is no plain Llama is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.foreign import huggingface_config, huggingface_tensors, rounded, write_huggingface
from helpers.tiny import CONFIGS, GQA, MHA, TIED, oracle_logits, random_weights
from helpers.tiny_tokenizers import SPECIAL, bpe_json, sentencepiece_model
from helpers.work import at_most
from numpy.typing import NDArray
from safetensors.torch import save_file

from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.base import Checkpoint
from pyllama2.checkpoint.huggingface import HuggingFaceCheckpoint
from pyllama2.config import ModelConfig, RopeScaling
from pyllama2.errors import CheckpointError
from pyllama2.storage.tensor_info import TensorInfo
from pyllama2.tokenizer import load_tokenizer

TOKENS = [1, 5, 9, 33, 2, 48, 5, 5, 49, 7]


def read_all(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    return {name: tensor.read().astype(np.float32) for name, _, tensor in checkpoint.tensors()}


def check(checkpoint: Checkpoint, config: ModelConfig, weights: dict[str, NDArray[np.float32]]) -> None:
    assert checkpoint.config == config
    tensors = read_all(checkpoint)
    for name in config.tensor_shapes():
        np.testing.assert_array_equal(tensors[name], weights[name], err_msg=name)
    expected = oracle_logits(config, {name: weights[name] for name in config.tensor_shapes()}, TOKENS)
    np.testing.assert_allclose(oracle_logits(checkpoint.config, tensors, TOKENS), expected, rtol=1e-4, atol=1e-5)


def refuse(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value).replace(str(path), "")  # whose name has words of the test's
    for word in words:
        assert word in message


class TestReading:
    @pytest.mark.parametrize("name", CONFIGS)
    @pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
    def test_every_config_and_type(self, tmp_path: Path, name: str, dtype: str) -> None:
        config = CONFIGS[name]
        weights = rounded(random_weights(config), dtype)
        checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", config, weights, dtype=dtype))
        assert isinstance(checkpoint, HuggingFaceCheckpoint)
        check(checkpoint, config, weights)
        assert checkpoint.tensor("layers.0.attention.wk.weight").dtype == dtype
        assert (checkpoint.kind, checkpoint.source) == ("huggingface", "Hugging Face checkpoint model")
        assert (checkpoint.tokenizer, checkpoint.chat_template) == (None, None)

    def test_several_files(self, tmp_path: Path) -> None:
        weights = random_weights(GQA)
        checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", GQA, weights, n_files=3))
        check(checkpoint, GQA, weights)
        assert len(checkpoint.files) == 4

    def test_path_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = random_weights(GQA)
        folder = write_huggingface(tmp_path / "model", GQA, weights)
        check(open_checkpoint(folder / "model.safetensors"), GQA, weights)
        monkeypatch.chdir(folder)
        check(open_checkpoint("model.safetensors"), GQA, weights)
        (folder / "config.json").unlink()
        refuse(folder / "model.safetensors", "config.json")

    @pytest.mark.slow
    def test_permutation_by_its_meaning(self) -> None:
        """Scores of their rotation by halves on their rows are those of Meta's rotation by neighbours on ours."""
        config = replace(GQA, n_layers=1)
        weights = random_weights(config)
        theirs = huggingface_tensors(config, weights)
        x = torch.from_numpy(np.random.default_rng(1).standard_normal((5, config.dim)).astype(np.float32))
        angles = torch.outer(torch.arange(5.0), torch.tensor(config.rope_frequencies()))  # (position, pair)

        def by_halves(name: str, n_heads: int) -> torch.Tensor:
            states = (x @ theirs[f"model.layers.0.self_attn.{name}.weight"].T).view(5, n_heads, config.head_dim)
            cos, sin = torch.cat([angles.cos()] * 2, 1)[:, None], torch.cat([angles.sin()] * 2, 1)[:, None]
            first, second = states.chunk(2, dim=-1)
            return states * cos + torch.cat([-second, first], -1) * sin

        def by_neighbours(name: str, n_heads: int) -> torch.Tensor:
            states = x @ torch.from_numpy(weights[f"layers.0.attention.{name}.weight"]).T
            pairs = torch.view_as_complex(states.view(5, n_heads, config.head_dim // 2, 2))
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)

        def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(config.n_heads // config.n_kv_heads, 1))

        torch.testing.assert_close(
            scores(by_halves("q_proj", config.n_heads), by_halves("k_proj", config.n_kv_heads)),
            scores(by_neighbours("wq", config.n_heads), by_neighbours("wk", config.n_kv_heads)),
        )

    def test_overrides(self, tmp_path: Path) -> None:
        folder = write_huggingface(tmp_path / "model", GQA, random_weights(GQA))
        assert open_checkpoint(folder, max_seq_len=9, norm_eps=0.5).config == replace(GQA, max_seq_len=9, norm_eps=0.5)
        with pytest.raises(ValueError, match="max_seq_len"):
            open_checkpoint(folder, max_seq_len=-1)

    def test_arrays_outlive_the_checkpoint(self, tmp_path: Path) -> None:
        weights = random_weights(GQA)
        checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", GQA, weights))
        arrays = [checkpoint.tensor(name).read() for name in ("norm.weight", "layers.0.attention.wq.weight")]
        checkpoint.close()
        np.testing.assert_array_equal(arrays[0], weights["norm.weight"])
        np.testing.assert_array_equal(arrays[1], weights["layers.0.attention.wq.weight"])


class TestConfig:
    """Changes of config.json (None removes a field) and what they must give."""

    WEIGHTS = random_weights(GQA)

    def config(self, tmp_path: Path, **changes: Any) -> ModelConfig:
        return open_checkpoint(write_huggingface(tmp_path / "model", GQA, self.WEIGHTS, **changes)).config

    def test_defaults(self, tmp_path: Path) -> None:
        config = self.config(
            tmp_path, head_dim=None, rope_theta=None, rms_norm_eps=None, max_position_embeddings=None, hidden_act=None,
            tie_word_embeddings=None, architectures=None,
        )  # fmt: skip
        assert config == replace(GQA, rope_theta=10000.0, norm_eps=1e-6, max_seq_len=2048)
        weights = random_weights(MHA)
        folder = write_huggingface(tmp_path / "mha", MHA, weights, num_key_value_heads=None, model_type=None)
        check(open_checkpoint(folder), MHA, weights)

    @pytest.mark.parametrize(
        ("changes", "theta", "scaling"),
        [
            ({"rope_theta": 5e5}, 5e5, None),
            ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 1e4, RopeScaling("linear", 4.0)),
            ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2}}, 1e4, RopeScaling("linear", 2)),
            ({"rope_scaling": {"rope_type": "default"}}, 1e4, None),
            ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
            (
                {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 3.0}},
                5e5,
                RopeScaling("linear", 3.0),
            ),
            (
                {"rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
                1e4,
                RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
            ),
        ],
    )  # fmt: skip
    def test_rope(self, tmp_path: Path, changes: dict[str, Any], theta: float, scaling: RopeScaling | None) -> None:
        config = self.config(tmp_path, **changes)
        assert (config.rope_theta, config.rope_scaling) == (theta, scaling)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"attention_bias": True}, "q_proj.bias is missing"),
            ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "q_proj.bias is missing"),
            ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "take Mistral 7B"),
            ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "take Qwen2.5"),
            ({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}, "take a dense Llama"),
            ({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}, "take a Llama of the same size"),
            ({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}, "take a Llama of the same size"),
            ({"num_local_experts": 8}, "mixture of experts"),
            ({"mlp_bias": True}, "mlp_bias"),
            ({"hidden_act": "gelu"}, "gelu"),
            ({"model_type": "mistral"}, "mistral"),
            ({"model_type": 7}, "model_type"),
            ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
            ({"architectures": [None]}, "None"),
            ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
            ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
            *(
                ({"rope_scaling": {"rope_type": "yarn", "factor": math.e, "mscale": a, "mscale_all_dim": b}}, "mscale")
                for a, b in ((10**400, 1.0), (1.0, -10.0), (math.nan, 1.0))
            ),
            ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
            ({"rope_scaling": {"type": "linear"}}, "factor"),
            ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
            ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor"),
            ({"rope_scaling": {"type": 3}}, "type"),
            ({"rope_scaling": "linear"}, "rope_scaling"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_embeddings"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}}, "freq"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
            ({"hidden_size": None}, "hidden_size"),
            ({"hidden_size": 47, "head_dim": None}, "multiple"),
            ({"hidden_size": "48"}, "hidden_size"),
            ({"hidden_size": 10**40}, "hidden_size"),
            ({"num_attention_heads": 0}, "num_attention_heads"),
            ({"num_attention_heads": 100, "head_dim": None}, "multiple of n_heads 100"),
            ({"num_attention_heads": 3}, "q_proj"),
            ({"num_key_value_heads": 4}, "n_kv_heads"),
            ({"num_key_value_heads": 6}, "k_proj"),
            ({"head_dim": 7}, "head_dim"),
            ({"head_dim": 16}, "q_proj"),
            ({"num_hidden_layers": 3}, "model.layers.2."),
            ({"num_hidden_layers": 1}, "unknown tensor 'model.layers.1."),
            ({"num_hidden_layers": 10**9}, "n_layers"),
            ({"intermediate_size": 99}, "gate_proj"),
            ({"vocab_size": 71}, "embed_tokens"),
            ({"vocab_size": 70.0}, "vocab_size"),
            ({"rms_norm_eps": -1.0}, "norm_eps"),
            ({"rope_theta": 0.0}, "rope_theta"),
            ({"max_position_embeddings": 0}, "max_position_embeddings"),
            ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ],
    )
    def test_refused(self, tmp_path: Path, changes: dict[str, Any], word: str) -> None:
        refuse(write_huggingface(tmp_path / "model", GQA, self.WEIGHTS, **changes), word)

    def test_damaged_json(self, tmp_path: Path) -> None:
        folder = write_huggingface(tmp_path / "model", GQA, self.WEIGHTS)
        text = json.dumps(huggingface_config(GQA))
        for content in ("", "[]", text[:-1], text + "}", text.replace('"head_dim"', '"hidden_act"')):
            (folder / "config.json").write_text(content)
            refuse(folder, "config.json")


class TestTensors:
    WEIGHTS = random_weights(GQA)

    def test_tied(self, tmp_path: Path) -> None:
        weights = random_weights(TIED)
        check(open_checkpoint(write_huggingface(tmp_path / "a", TIED, weights)), TIED, weights)
        copy = {"lm_head.weight": torch.from_numpy(weights["tok_embeddings.weight"].copy())}
        check(open_checkpoint(write_huggingface(tmp_path / "b", TIED, weights, extra=copy)), TIED, weights)
        folder = write_huggingface(tmp_path / "c", TIED, weights, tie_word_embeddings=False)
        refuse(folder, "lm_head.weight is missing")

    def test_rotation_frequencies_are_ignored(self, tmp_path: Path) -> None:
        extra = {
            f"model.{place}rotary_emb.inv_freq": torch.ones(4, dtype=torch.float64)
            for place in ("", "layers.0.self_attn.")
        }
        check(open_checkpoint(write_huggingface(tmp_path / "m", GQA, self.WEIGHTS, extra=extra)), GQA, self.WEIGHTS)

    @pytest.mark.parametrize(
        "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight", "score.weight", "x"]
    )
    def test_unknown(self, tmp_path: Path, name: str) -> None:
        refuse(write_huggingface(tmp_path / "m", GQA, self.WEIGHTS, extra={name: torch.ones(2)}), "unknown", repr(name))

    def test_missing(self, tmp_path: Path) -> None:
        weights = {name: array for name, array in self.WEIGHTS.items() if name != "layers.1.ffn_norm.weight"}
        refuse(write_huggingface(tmp_path / "m", GQA, weights), "model.layers.1.post_attention_layernorm.weight")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
    def test_other_types(self, tmp_path: Path, dtype: torch.dtype) -> None:
        extra = {"model.norm.weight": torch.ones(GQA.dim).to(dtype)}
        refuse(write_huggingface(tmp_path / "m", GQA, self.WEIGHTS, extra=extra), "model.norm.weight", "BF16")

    def test_truncated(self, tmp_path: Path) -> None:
        folder = write_huggingface(tmp_path / "m", GQA, self.WEIGHTS)
        data = (folder / "model.safetensors").read_bytes()
        for length in (0, 7, 8, 9, 100, len(data) - 1):
            (folder / "model.safetensors").write_bytes(data[:length])
            refuse(folder, "model.safetensors")


class TestIndex:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_huggingface(tmp_path / "model", GQA, random_weights(GQA), n_files=2)

    @staticmethod
    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    @pytest.mark.parametrize(
        "place", ["../model.safetensors", "/etc/passwd", "a/b", "a\\b", "", ".", "..", "a\0b", 3, None]
    )
    def test_places_outside(self, folder: Path, place: Any) -> None:
        self.edit(folder, lambda index: index["weight_map"].update({"model.norm.weight": place}))
        refuse(folder, "model.norm.weight", "no file name")

    def test_wrong_place(self, folder: Path) -> None:
        places = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]

        def swap(index: dict[str, Any]) -> None:
            weight_map = index["weight_map"]
            weight_map["model.norm.weight"] = places[1 - places.index(weight_map["model.norm.weight"])]

        self.edit(folder, swap)
        refuse(folder, "model.norm.weight", "index.json")

    def test_missing_file(self, folder: Path) -> None:
        (folder / "model-00002-of-00002.safetensors").unlink()
        refuse(folder, "model-00002-of-00002.safetensors")

    def test_not_in_the_index(self, folder: Path) -> None:
        self.edit(folder, lambda index: index["weight_map"].pop("model.norm.weight"))
        refuse(folder, "model.norm.weight", "not as")

    def test_twice(self, folder: Path) -> None:
        save_file({"model.norm.weight": torch.ones(GQA.dim)}, folder / "third.safetensors")
        self.edit(folder, lambda index: index["weight_map"].update({"third": "third.safetensors"}))
        refuse(folder, "third")

    @pytest.mark.slow
    def test_many_files(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Looking through all names for each file would run 800 million lines."""
        tensor = (None, TensorInfo("F32", (1,), 0, 4))
        names = {f"{i}.safetensors": {f"{i}.{j}": tensor for j in range(50)} for i in range(4000)}
        weight_map = {name: file for file, tensors in names.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        monkeypatch.setattr(HuggingFaceCheckpoint, "_map_file", lambda self, path: dict(names[Path(path).name]))
        with at_most(lines=5_000_000):
            refuse(folder, "tensor model.embed_tokens.weight is missing")

    def test_damaged(self, folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        for content in (b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b"x", b'{"weight_map": {"a": {}}}'):
            path.write_bytes(content)
            refuse(folder, "index.json")


class TestTokenizer:
    CONFIG = replace(GQA, vocab_size=350, dim=24, n_heads=3, n_kv_heads=3, hidden_dim=16, n_layers=1)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_huggingface(tmp_path / "model", self.CONFIG, random_weights(self.CONFIG))

    @staticmethod
    def put(folder: Path, name: str, values: Any) -> None:
        (folder / name).write_text(json.dumps(values))

    def set_config(self, folder: Path, **changes: Any) -> None:
        self.put(folder, "config.json", huggingface_config(self.CONFIG, **changes))

    def test_byte_level_bpe(self, folder: Path) -> None:
        self.put(folder, "tokenizer.json", bpe_json())
        self.put(folder, "tokenizer_config.json", {"bos_token": SPECIAL[2], "eos_token": {"content": SPECIAL[3]}})
        checkpoint = open_checkpoint(folder)
        spec = checkpoint.tokenizer
        assert spec is not None
        assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("bpe", 2, (3,), False)
        assert spec.data == (folder / "tokenizer.json").read_bytes()
        tokenizer = load_tokenizer(spec, self.CONFIG.vocab_size)
        assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"
        assert [Path(file).name for file in checkpoint.files] == [
            "config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json",
        ]  # fmt: skip

    def test_bos_from_the_post_processor(self, folder: Path) -> None:
        parts = bpe_json()
        template = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        }
        parts["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
        self.put(folder, "tokenizer.json", parts)
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert (spec.bos_id, spec.add_bos, spec.eos_ids) == (0, True, (1, 3))  # </s> and <|im_end|> by their names
        self.put(folder, "tokenizer_config.json", {"add_bos_token": False})
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert (spec.bos_id, spec.add_bos) == (0, False)

    def test_sentencepiece_is_preferred(self, folder: Path) -> None:
        self.put(folder, "tokenizer.json", bpe_json())
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("sentencepiece", 1, (2,), True)
        assert spec.data == sentencepiece_model()
        (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # Llama-3's, which is of another kind
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert spec.kind == "bpe"

    def test_special_ids_from_everywhere(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        self.set_config(folder, bos_token_id=1, eos_token_id=2)
        self.put(folder, "generation_config.json", {"eos_token_id": [7, 2, 9]})
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert (spec.bos_id, spec.eos_ids) == (1, (7, 2, 9))
        self.put(folder, "generation_config.json", {"bos_token_id": 5, "eos_token_id": None})
        self.put(folder, "tokenizer_config.json", {"bos_token": None, "eos_token": "<s>", "add_bos_token": False})
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (5, (2, 1), False)

    @pytest.mark.parametrize("value", ["2", 2.0, True, -1, [2, None], [[2]], 1 << 40, {"a": 1}, [2] * 10_001])
    def test_bad_ids(self, folder: Path, value: Any) -> None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        self.set_config(folder, eos_token_id=value)
        refuse(folder, "eos_token_id")

    def test_tokens_added_to_a_sentencepiece_model(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        added = {
            "0": {"content": "<unk>", "special": True},
            "340": {"content": "<|im_end|>", "special": True},
            "341": {"content": "<think>", "special": False},
            "400": {"content": "beyond", "special": True},
        }
        self.put(folder, "tokenizer_config.json", {"added_tokens_decoder": added, "eos_token": "<|im_end|>"})
        spec = open_checkpoint(folder).tokenizer
        assert spec is not None
        assert spec.eos_ids == (340,)
        tokenizer = load_tokenizer(spec, self.CONFIG.vocab_size)
        plain = load_tokenizer(replace(spec, data=sentencepiece_model(), eos_ids=()), self.CONFIG.vocab_size)
        text = "Once upon a time <|im_end|> 😀"
        assert tokenizer.encode(text) == plain.encode(text)
        assert tokenizer.special_tokens["<|im_end|>"] == 340
        assert 341 in tokenizer.encode("a <think> b")
        assert tokenizer.token_bytes(341) == b"<think>"
        added["341"] = {"content": "\ud800"}
        self.put(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
        refuse(folder, "tokenizer_config.json", "surrogates")
        added["341"] = {"content": "x" * 129}
        self.put(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
        refuse(folder, "tokenizer_config.json", "129 characters")
        added["341"] = {"special": False}
        self.put(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
        refuse(folder, "341")

    def test_given(self, folder: Path, tmp_path: Path) -> None:
        self.put(folder, "tokenizer.json", {"damaged": 1})
        (tmp_path / "other.model").write_bytes(sentencepiece_model())
        checkpoint = open_checkpoint(folder, tokenizer=tmp_path / "other.model")
        assert checkpoint.tokenizer is not None
        assert checkpoint.tokenizer.kind == "sentencepiece"
        assert str(tmp_path / "other.model") in checkpoint.files

    def test_rules_of_no_known_tokenizer(self, folder: Path) -> None:
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        rules = {"type": "Sequence", "pretokenizers": [step] * 40}
        self.put(folder, "tokenizer.json", bpe_json() | {"pre_tokenizer": rules})
        refuse(folder, "tokenizer.json", "40 steps")

    def test_too_many_special_tokens(self, folder: Path) -> None:
        added = [{"id": 1000 + i, "content": f"<{i}>", "special": True} for i in range(10_001)]
        self.put(folder, "tokenizer.json", bpe_json() | {"added_tokens": added})
        refuse(folder, "tokenizer.json", "10001 special tokens are more than 10000")

    def test_too_many_tokens(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocab_size=360))
        refuse(folder, "360", "350")

    @pytest.mark.parametrize(
        ("settings", "template"),
        [
            ({"chat_template": "{{ x }}"}, "{{ x }}"),
            ({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
            ({"chat_template": [{"name": "tools", "template": "t"}]}, None),
            ({"chat_template": [3, {"name": [], "template": "t"}, {"name": "default", "template": 4}]}, None),
            ({}, None),
        ],
    )
    def test_chat_template(self, folder: Path, settings: dict[str, Any], template: str | None) -> None:
        self.put(folder, "tokenizer_config.json", settings)
        assert open_checkpoint(folder).chat_template == template

    def test_chat_template_of_its_own_file(self, folder: Path) -> None:
        self.put(folder, "tokenizer_config.json", {"chat_template": "old"})
        (folder / "chat_template.jinja").write_text("new ä")
        checkpoint = open_checkpoint(folder)
        assert checkpoint.chat_template == "new ä"
        assert str(folder / "chat_template.jinja") in checkpoint.files
        (folder / "chat_template.jinja").write_bytes(b"\xff")
        refuse(folder, "UTF-8")
        (folder / "chat_template.jinja").write_bytes(b"x" * ((1 << 20) + 1))
        refuse(folder, "limit")

    def test_chat_template_with_half_a_character(self, folder: Path) -> None:
        self.put(folder, "tokenizer_config.json", {"chat_template": "{{ x }}\ud83d"})
        refuse(folder, "the chat template is not Unicode text: surrogates not allowed")

    def test_chat_template_too_long(self, folder: Path) -> None:
        self.put(folder, "tokenizer_config.json", {"chat_template": "x" * ((1 << 20) + 1)})
        refuse(folder, "too long")

    def test_damaged_settings(self, folder: Path) -> None:
        for name in ("tokenizer_config.json", "generation_config.json"):
            (folder / "tokenizer.model").write_bytes(sentencepiece_model())
            (folder / name).write_text("[")
            refuse(folder, name)
            (folder / name).unlink()
