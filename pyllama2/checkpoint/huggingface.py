"""Hugging Face checkpoints: a directory with config.json, safetensors files and a tokenizer.

    model.safetensors, or model.safetensors.index.json = {"weight_map": {tensor: file name}} and its files

Their wq and wk rotate the two halves of a head, (i, i + head_dim/2), where model.py rotates adjacent rows,
(2i, 2i + 1). Their rows are therefore permuted, and reading undoes that:

    row (head, half, i) of theirs = row (head, i, half) of ours        half in {0, 1}, i < head_dim/2

Sources: https://huggingface.co/docs/transformers/model_doc/llama and its convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError
from ..shown import shown
from ..storage.mapped import MappedFile
from ..storage.safetensors import TensorInfo, read_header
from .base import Checkpoint, LazyTensor, with_overrides
from .huggingface_config import read_config
from .huggingface_tokenizer import read_tokenizer
from .json_file import JsonObject
from .stored_tensor import StoredTensor, check_dtype

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
}


class HuggingFaceCheckpoint(Checkpoint):
    """A directory of Hugging Face.

    Args:
        path: the directory
        tokenizer: path of a tokenizer file that replaces the directory's own
        max_seq_len: longest sequence in tokens, instead of that of config.json
        norm_eps: epsilon of RMSNorm, instead of that of config.json

    Raises:
        CheckpointError: a file is missing, damaged or not supported
        ValueError: max_seq_len or norm_eps is out of range
    """

    kind = "huggingface"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: str | None = None,
        max_seq_len: int | None = None,
        norm_eps: float | None = None,
    ) -> None:
        folder = os.fspath(path)
        config, config_file = read_config(os.path.join(folder, "config.json"))
        self._mapped: list[MappedFile] = []
        self._tensors = _checked_tensors(folder, config, self._map_tensors(folder))
        self.config = with_overrides(config, max_seq_len=max_seq_len, norm_eps=norm_eps)
        directory_tokenizer = read_tokenizer(folder, config_file, tokenizer, config.vocab_size)
        self.tokenizer = directory_tokenizer.spec
        self.chat_template = directory_tokenizer.chat_template
        self.files = [config_file.path, *(file.path for file in self._mapped), *directory_tokenizer.files]
        self.source = f"Hugging Face checkpoint {shown(os.path.basename(os.path.abspath(folder)))}"

    def tensor(self, name: str) -> LazyTensor:
        stored = self._tensors[name]
        if name.endswith("attention.wq.weight"):
            return replace(stored.lazy(), read=partial(_unpermuted, stored, self.config.n_heads))
        if name.endswith("attention.wk.weight"):
            return replace(stored.lazy(), read=partial(_unpermuted, stored, self.config.n_kv_heads))
        return stored.lazy()

    def close(self) -> None:
        for file in self._mapped:
            file.close()

    def _map_tensors(self, folder: str) -> dict[str, tuple[MappedFile, TensorInfo]]:
        """Map the files; returns every tensor by its name in the directory."""
        if os.path.exists(os.path.join(folder, SINGLE)):
            return self._map_file(os.path.join(folder, SINGLE))
        stored: dict[str, tuple[MappedFile, TensorInfo]] = {}
        index = _read_index(os.path.join(folder, INDEX))
        for file_name in sorted(index):
            tensors = self._map_file(os.path.join(folder, file_name))
            announced = index[file_name]
            for name in sorted(announced ^ tensors.keys()):
                problem = "is missing, though" if name in announced else "is there, but not as"
                raise CheckpointError(f"{folder}/{file_name}: tensor {name[:80]!r} {problem} {INDEX} says")
            stored |= tensors
        return stored

    def _map_file(self, path: str) -> dict[str, tuple[MappedFile, TensorInfo]]:
        file = MappedFile(path)
        self._mapped.append(file)
        return {name: (file, info) for name, info in read_header(file).tensors.items()}


def _read_index(path: str) -> dict[str, set[str]]:
    """Return the names of the tensors in each file. Raises CheckpointError unless every file is a plain file name."""
    index = JsonObject.read(path)
    weight_map = index.get("weight_map", dict)
    if not weight_map:
        raise CheckpointError(f"{path} lacks its weight_map")
    names: dict[str, set[str]] = {}
    for name, place in weight_map.items():
        if not isinstance(place, str) or place in ("", ".", "..") or not {"/", "\\", "\0"}.isdisjoint(place):
            raise CheckpointError(f"{path}: tensor {name[:80]!r} is in {str(place)[:80]!r}, which is no file name")
        names.setdefault(place, set()).add(name)
    return names


def _checked_tensors(
    folder: str, config: ModelConfig, stored: dict[str, tuple[MappedFile, TensorInfo]]
) -> dict[str, StoredTensor]:
    """Return the tensors by our names. Raises CheckpointError if one is missing, unknown, or of a wrong shape or type.

    Takes them out of stored.
    """
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        theirs = _their_name(name)
        if theirs not in stored:
            raise CheckpointError(f"{folder}: tensor {theirs} is missing")
        file, info = stored.pop(theirs)
        if info.shape != shape:
            raise CheckpointError(f"{file.path}: tensor {theirs} is {info.shape}, config.json makes it {shape}")
        check_dtype(file.path, theirs, info.dtype)
        tensors[name] = StoredTensor(file, info.dtype, shape, info.offset)
    # A tied model may come with a copy of its embedding. The frequencies of the rotation follow from the config.
    ignored = "lm_head.weight" if config.tied_embeddings else ""
    unknown = [name for name in stored if name != ignored and not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise CheckpointError(f"{folder}: unknown tensor {min(unknown)[:80]!r}; this is not a plain Llama")
    return tensors


def _their_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_IN_LAYER[rest]}"


def _unpermuted(stored: StoredTensor, n_heads: int) -> NDArray[Any]:
    """Read wq or wk with its rows in model.py's order."""
    rows, columns = stored.shape
    halves = stored.read().reshape(n_heads, 2, rows // n_heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)
