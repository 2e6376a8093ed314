"""Writes a model as a directory of Hugging Face, which transformers, vLLM and mlx-lm open.

    config.json, generation_config.json        dimensions and special tokens
    model.safetensors                          float32 or float16, under Hugging Face's names
    tokenizer.json, tokenizer_config.json      and tokenizer.model of a SentencePiece model

A model with biases of wq, wk and wv is a Qwen2, others are Llamas. Their wq and wk rotate the two halves of a head, so
that their rows are permuted; see checkpoint/row_order.py.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..checkpoint.base import Checkpoint
from ..checkpoint.huggingface import NAMES
from ..checkpoint.row_order import in_their_order
from ..config import ModelConfig
from ..errors import CheckpointError
from ..process.interrupts import Interrupts
from ..storage.floats import as_float
from ..storage.new_file import NewFile
from ..storage.safetensors import make_header
from ..storage.tensor_info import TensorInfo
from ..tokenizer import load_tokenizer
from ..tokenizer.base import Tokenizer, TokenizerSpec
from .sentencepiece_json import tokenizer_json

_STORED = {"float32": "F32", "float16": "F16"}


def write_huggingface(
    checkpoint: Checkpoint,
    out: str,
    dtype: str,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Write an open checkpoint as a directory, which appears when it is complete.

    Args:
        checkpoint: stays open.
        out: path of the directory, which must not exist, or be empty.
        dtype: type of all weights, "float32" or "float16".
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: a number does not fit, or out cannot be written.
    """
    out = out.rstrip(os.sep) or out
    if os.path.lexists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise CheckpointError(f"cannot write {out}: it exists already; a directory of Hugging Face needs a new name")
    temporary = os.path.join(os.path.dirname(out), f".{os.path.basename(out)[:20]}.{secrets.token_hex(8)}.part")
    files = {"config.json": _config(checkpoint, dtype), "generation_config.json": _special_ids(checkpoint.tokenizer)}
    with Interrupts() as interrupts:
        try:
            os.mkdir(temporary)
            with interrupts.allowed():
                _write_tensors(checkpoint, os.path.join(temporary, "model.safetensors"), dtype, progress)
                for name, values in files.items():
                    _write(temporary, name, json.dumps(values, indent=2).encode() + b"\n")
                if checkpoint.tokenizer is not None:
                    _write_tokenizer(temporary, checkpoint, checkpoint.tokenizer)
            if os.path.isdir(out):
                os.rmdir(out)
            os.rename(temporary, out)
        except OSError as error:
            raise CheckpointError(f"cannot write {out}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(
    checkpoint: Checkpoint,
    path: str,
    dtype: str,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    config = checkpoint.config
    layout: dict[str, TensorInfo] = {}
    offset = 0
    for name, shape in config.tensor_shapes().items():
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        layout[NAMES.of(name)] = TensorInfo(_STORED[dtype], shape, offset, nbytes)
        offset += nbytes
    done, total = 0, config.n_parameters
    with NewFile(path) as file:
        file.write(make_header(layout, {"format": "pt"}))
        for name, shape, tensor in checkpoint.tensors():
            array = in_their_order(name, as_float(name, tensor.read(), np.dtype(dtype)), config)
            file.write(np.ascontiguousarray(array).data.cast("B"))
            done += prod(shape)
            if progress is not None:
                progress(done, total, name)


def _config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    config = checkpoint.config
    qwen2 = config.qkv_bias and not config.wo_bias
    values: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM" if qwen2 else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen2 else "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
    }
    if qwen2:
        values["use_sliding_window"] = False
    else:
        values |= {"attention_bias": config.qkv_bias, "mlp_bias": False}
    return values | _special_ids(checkpoint.tokenizer)


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        values |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    elif scaling.kind == "yarn":
        values |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": config.rope_attention_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    return values


def _special_ids(spec: TokenizerSpec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    eos: int | list[int] | None = list(spec.eos_ids) or None
    if eos is not None and len(spec.eos_ids) == 1:
        eos = spec.eos_ids[0]
    return {"bos_token_id": spec.bos_id, "eos_token_id": eos}


def _write_tokenizer(folder: str, checkpoint: Checkpoint, spec: TokenizerSpec) -> None:
    tokenizer = load_tokenizer(spec, checkpoint.config.vocab_size)
    settings: dict[str, Any] = {"add_bos_token": spec.add_bos, "add_eos_token": False}
    settings["model_max_length"] = checkpoint.config.max_seq_len
    settings["clean_up_tokenization_spaces"] = False
    for name, token_id in (("bos_token", spec.bos_id), ("eos_token", next(iter(spec.eos_ids), None))):
        if token_id is not None:
            settings[name] = tokenizer.piece(token_id)
    if spec.kind == "sentencepiece":
        settings |= {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "legacy": True}
        _write(folder, "tokenizer.model", spec.data)
        as_json = tokenizer_json(spec, checkpoint.config.vocab_size)
        if as_json is not None:  # which is read as it is, without the package sentencepiece
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            _write(folder, "tokenizer.json", _with_bos(replace(spec, data=as_json), tokenizer))
    else:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        _write(folder, "tokenizer.json", _with_bos(spec, tokenizer))
    if checkpoint.chat_template is not None:
        settings["chat_template"] = checkpoint.chat_template
    _write(folder, "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n")


def _with_bos(spec: TokenizerSpec, tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json that puts BOS before a text if the model wants it, as transformers expects of the file."""
    values = json.loads(spec.data)  # it was checked when the tokenizer was loaded
    if not spec.add_bos or spec.bos_id is None or values.get("post_processor"):
        return spec.data
    bos = tokenizer.piece(spec.bos_id)
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [spec.bos_id], "tokens": [bos]}},
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _write(folder: str, name: str, data: bytes) -> None:
    with NewFile(os.path.join(folder, name)) as file:
        file.write(data)
