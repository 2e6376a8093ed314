"""Targets of model files: every kind of checkpoint is opened, all of its tensors are read, its tokenizer is used.

foreign.py and gguf_files.py import torch and other large packages, so they are imported where seeds are made.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers.tiny import quantized_model, random_weights, write_model
from numpy.typing import NDArray

from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.pickle_reader import read_state_dict
from pyllama2.config import ModelConfig, RopeScaling
from pyllama2.errors import CheckpointError
from pyllama2.storage.weights import StorageType, Weight
from pyllama2.tokenizer.base import TokenizerSpec

from .mutation import mutate_head, mutate_json, mutate_safetensors
from .target import Folder, Target, file_of
from .tokenizers import TINY_BPE, use_tokenizer

CONFIG = ModelConfig(
    dim=8, hidden_dim=12, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, vocab_size=9, max_seq_len=16
)
_SCALED = replace(CONFIG, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16), tied_embeddings=True)


def use_checkpoint(path: str | Path) -> None:
    """Open it and read everything that it has."""
    with closing(open_checkpoint(path)) as checkpoint:
        for name, shape, tensor in checkpoint.tensors():
            whole = tensor.read()
            assert whole.shape == shape and whole.dtype in (np.float32, np.float16)
            assert tensor.read_rows(0, shape[0]).shape == shape
            for kind in (StorageType("q4", 32), StorageType("q8", 64)) if tensor.codes is not None else ():
                if (codes := tensor.codes(kind)) is not None:
                    Weight.of_codes(name, kind, shape, *codes)
        if checkpoint.tokenizer is not None:
            use_tokenizer(checkpoint.tokenizer, checkpoint.config.vocab_size)
        assert checkpoint.chat_template is None or isinstance(checkpoint.chat_template, str)


def _use_file(data: bytes) -> None:
    with file_of(data) as path:
        use_checkpoint(path)


def _use_folder(name: str, make_others: Callable[[], dict[str, bytes]]) -> Callable[[bytes], None]:
    """Opens a directory of which the file called name is given; the others are right."""
    folder = functools.cache(lambda: Folder(name, make_others()))
    return lambda data: use_checkpoint(folder().holding(data))


def _own_files() -> list[bytes]:
    """Our files of every type, one of them with all that a file can have."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("float32", "float16", "q8", "q4"):
            config = _SCALED if kind == "q8" else CONFIG
            model = quantized_model(config, random_weights(config), kind, 32)
            if kind == "q4":
                model.tokenizer = TokenizerSpec("bpe", TINY_BPE, None, (0,), False)
                model.chat_template = "{{ messages[0].content }}"
            files.append(write_model(Path(folder, kind), model).read_bytes())
    return files


_TOKENS = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "d", "c"]
_SENTENCEPIECE_KEYS: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": _TOKENS,
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, 0.0, -5.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 4, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
_BPE_KEYS: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ċ", "c", "d"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 1, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
}
# Rows of 256 for the types in blocks of that size, and as few of them as possible.
_WIDE = ModelConfig(
    dim=256, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, vocab_size=9, max_seq_len=16,
    tied_embeddings=True,
)  # fmt: skip
_LINEAR = replace(CONFIG, rope_scaling=RopeScaling("linear", 2.0))
_QWEN2 = replace(CONFIG, rope_scaling=RopeScaling("yarn", 4.0, original_max_seq_len=8), qkv_bias=True)


def _gguf_files() -> list[bytes]:
    """GGUF files with each kind of tokenizer, and with blocks of several types."""
    import helpers.gguf_files as gguf_files

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        files = [
            gguf_files.write_model(path, CONFIG, random_weights(CONFIG), keys=_SENTENCEPIECE_KEYS).read_bytes(),
            gguf_files.write_model(path, _LINEAR, random_weights(_LINEAR), "F16", _BPE_KEYS).read_bytes(),
            gguf_files.write_model(path, _QWEN2, random_weights(_QWEN2)).read_bytes(),
        ]
        for block_type in ("Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "Q3_K", "IQ4_XS"):
            tensors: dict[str, NDArray[Any]] = {}
            types = {}
            for name, array in random_weights(_WIDE).items():
                theirs = gguf_files.gguf_name(name)
                types[theirs] = block_type if array.ndim == 2 and array.shape[1] == _WIDE.dim else "F32"
                tensors[theirs] = gguf_files.stored(array, types[theirs])
            files.append(gguf_files.write_gguf(path, tensors, gguf_files.model_keys(_WIDE), types).read_bytes())
        return files


def _llama2c_files() -> list[bytes]:
    from helpers.foreign import llama2c_bytes

    files = [llama2c_bytes(CONFIG, random_weights(CONFIG), version, 4) for version in (0, 1, 2)]
    return [*files, llama2c_bytes(_SCALED, random_weights(_SCALED), 0)]


@functools.cache
def _torch_files() -> list[bytes]:
    """consolidated.00.pth in float32 and bfloat16, by torch.save."""
    from helpers.foreign import write_meta

    files = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("F32", "BF16"):
            write_meta(Path(folder), CONFIG, random_weights(CONFIG), dtype=dtype)
            files.append(Path(folder, "consolidated.00.pth").read_bytes())
    return files


def _pickles() -> list[bytes]:
    """What a torch file of two tensors holds besides their numbers."""
    import torch

    file = io.BytesIO()
    torch.save({"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))}, file)
    archive = zipfile.ZipFile(file)
    return [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]


def _params_json() -> bytes:
    values = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "vocab_size": -1, "norm_eps": 1e-5}
    return json.dumps(values | {"rope_theta": 1e4}).encode()


def _hf_config(config: ModelConfig = CONFIG, **changes: Any) -> bytes:
    from helpers.foreign import huggingface_config

    return json.dumps(huggingface_config(config, **changes)).encode()


def _hf_configs() -> list[bytes]:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 1, "mscale_all_dim": 2}
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8}
    return [
        _hf_config(),
        _hf_config(_LINEAR),
        _hf_config(rope_scaling=yarn),
        _hf_config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        _hf_config(**mistral),
    ]


@functools.cache
def _packed(name: str) -> dict[str, bytes]:
    """The files of a quantized checkpoint, one of helpers.packed.KINDS."""
    from helpers.packed import write_packed

    config = replace(CONFIG, dim=32, hidden_dim=40, head_dim=8, n_heads=4)
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write_packed(Path(folder, "m"), name, config)
        return {file.name: file.read_bytes() for file in path.iterdir()}


@functools.cache
def _safetensors() -> list[bytes]:
    """model.safetensors in float32 and bfloat16, by the safetensors package."""
    from helpers.foreign import write_huggingface

    files = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("F32", "BF16"):
            write_huggingface(Path(folder), CONFIG, random_weights(CONFIG), dtype=dtype)
            files.append(Path(folder, "model.safetensors").read_bytes())
    return files


def _index() -> bytes:
    weights = _safetensors()[0]
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    places = {name: "part.safetensors" for name in header if name != "__metadata__"}
    return json.dumps({"metadata": {"total_size": 0}, "weight_map": places}).encode()


_TOKENIZER_CONFIG = {
    "bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "chat_template": "{{ messages }}",
    "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
}  # fmt: skip
_REFUSES = (CheckpointError,)

MODELS = (
    Target("gguf", _use_file, _REFUSES, _gguf_files, mutate_head),
    Target("own_file", _use_file, _REFUSES, _own_files, mutate_safetensors),
    Target("llama2c", _use_file, _REFUSES, _llama2c_files),
    Target(
        "safetensors",
        _use_folder("model.safetensors", lambda: {"config.json": _hf_config()}),
        _REFUSES,
        _safetensors,
        mutate_safetensors,
    ),
    Target(
        "config_json",
        _use_folder("config.json", lambda: {"model.safetensors": _safetensors()[0]}),
        _REFUSES,
        _hf_configs,
        mutate_json,
    ),
    Target(
        "gptq",
        _use_folder("model.safetensors", lambda: {"config.json": _packed("gptq apart")["config.json"]}),
        _REFUSES,
        lambda: [_packed(name)["model.safetensors"] for name in ("gptq", "gptq apart")],
        mutate_safetensors,
    ),
    Target(
        "awq_config_json",
        _use_folder("config.json", lambda: {"model.safetensors": _packed("awq")["model.safetensors"]}),
        _REFUSES,
        lambda: [_packed("awq")["config.json"]],
        mutate_json,
    ),
    Target(
        "index_json",
        _use_folder(
            "model.safetensors.index.json",
            lambda: {"part.safetensors": _safetensors()[0], "config.json": _hf_config()},
        ),
        _REFUSES,
        lambda: [_index()],
        mutate_json,
    ),
    Target(
        "tokenizer_config_json",
        _use_folder(
            "tokenizer_config.json",
            lambda: {
                "model.safetensors": _safetensors()[0],
                "config.json": _hf_config(),
                "tokenizer.json": TINY_BPE,
            },
        ),
        _REFUSES,
        lambda: [json.dumps(_TOKENIZER_CONFIG).encode()],
        mutate_json,
    ),
    Target("pth", _use_folder("consolidated.00.pth", lambda: {"params.json": _params_json()}), _REFUSES, _torch_files),
    Target("pickle", lambda data: read_state_dict(data, "file.pth"), _REFUSES, _pickles),
    Target(
        "params_json",
        _use_folder("params.json", lambda: {"consolidated.00.pth": _torch_files()[0]}),
        _REFUSES,
        lambda: [_params_json()],
        mutate_json,
    ),
)
