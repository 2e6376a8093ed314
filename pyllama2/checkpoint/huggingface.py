"""Hugging Face checkpoints: a directory with config.json, safetensors files and a tokenizer.

    model.safetensors, or model.safetensors.index.json = {"weight_map": {tensor: file name}} and its files

The models are Llama, Mistral and Qwen2 (huggingface_config.py). The rows of their wq and wk are in another order than
in model.py (row_order.py), and reading undoes that.

Source: https://huggingface.co/docs/transformers/model_doc/llama.
"""

from __future__ import annotations

import os

from ..config import ModelConfig
from ..errors import CheckpointError
from ..shown import shown
from ..storage.mapped import MappedFile
from ..storage.safetensors import read_header
from ..storage.tensor_info import TensorInfo
from .base import Checkpoint, LazyTensor
from .huggingface_config import read_config
from .huggingface_tokenizer import read_tokenizer
from .json_file import JsonObject
from .packed_matrix import PARTS, PackedMatrix
from .quantization_config import Packing
from .row_order import read_in_our_order
from .stored_tensor import StoredTensor, check_dtype
from .tensor_names import TensorNames, check_tensors
from .title import title_of

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

NAMES = TensorNames(
    "model.layers",
    {
        "tok_embeddings": "model.embed_tokens",
        "attention_norm": "input_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "norm": "model.norm",
        "output": "lm_head",
    },
)


class HuggingFaceCheckpoint(Checkpoint):
    """A directory of Hugging Face."""

    kind = "huggingface"

    def __init__(self, path: str | os.PathLike[str], tokenizer: str | None = None) -> None:
        folder = os.fspath(path)
        description = read_config(os.path.join(folder, "config.json"))
        self.config, self.limit, config_file = description.config, description.limit, description.file
        self._mapped: list[MappedFile] = []
        self._tensors = self._map_tensors(folder)
        self._packed = {} if description.packing is None else self._take_packed(description.packing)
        shapes = {n: info.shape for n, (_, info) in self._tensors.items() if not _is_unused(n, self.config)}
        plain = list(shapes)
        shapes |= {name: matrix.shape for name, matrix in self._packed.items()}
        check_tensors(folder, self.config, shapes, NAMES.of)
        for name in plain:
            file, info = self._tensors[name]
            check_dtype(file.path, name, info.dtype)
        directory_tokenizer = read_tokenizer(folder, config_file, tokenizer, self.config.vocab_size)
        self.tokenizer = directory_tokenizer.spec
        self.chat_template = directory_tokenizer.chat_template
        self.files = [config_file.path, *(file.path for file in self._mapped), *directory_tokenizer.files]
        self.source = f"Hugging Face checkpoint {shown(title_of(folder))}"

    def tensor(self, name: str) -> LazyTensor:
        theirs = NAMES.of(name)
        if theirs in self._packed:
            tensor = self._packed[theirs].lazy()
        else:
            file, info = self._tensors[theirs]
            tensor = StoredTensor(file, info.dtype, info.shape, info.offset).lazy()
        return read_in_our_order(name, tensor, self.config)

    def close(self) -> None:
        for file in self._mapped:
            file.close()

    def _take_packed(self, packing: Packing) -> dict[str, PackedMatrix]:
        """Take the parts of quantized matrices out of the tensors; returns the matrices by the names of weights.

        Some programs store a bias of zeros for every matrix. These biases are taken out, too.
        """
        parts: dict[str, dict[str, tuple[MappedFile, TensorInfo]]] = {}
        for name in list(self._tensors):
            matrix, _, part = name.rpartition(".")
            if part in PARTS:
                parts.setdefault(matrix, {})[part] = self._tensors.pop(name)
        for name in (f"{matrix}.weight" for matrix in parts):
            if name in self._tensors:
                raise CheckpointError(
                    f"{self._tensors[name][0].path}: tensor {name[:80]!r} is there twice, as qweight too"
                )
        wanted = {NAMES.of(name) for name in self.config.tensor_shapes()}
        for name in (f"{matrix}.bias" for matrix in parts):
            if name in self._tensors and name not in wanted:
                file, info = self._tensors[name]
                check_dtype(file.path, name, info.dtype)
                if not StoredTensor(file, info.dtype, info.shape, info.offset).read().any():
                    del self._tensors[name]
        return {f"{matrix}.weight": PackedMatrix.open(matrix, found, packing) for matrix, found in parts.items()}

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


def _is_unused(name: str, config: ModelConfig) -> bool:
    """Whether a tensor may be there though the config has no place for it."""
    if name == "lm_head.weight":  # a copy of the embedding
        return config.tied_embeddings
    return name.endswith("rotary_emb.inv_freq")  # frequencies of the rotation, which follow from the config
