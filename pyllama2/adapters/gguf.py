"""Reads LoRA adapters in GGUF files, which llama.cpp's convert_lora_to_gguf.py writes.

    general.type "adapter"   adapter.type "lora"   adapter.lora.alpha
    blk.7.attn_q.weight.lora_a (r, inputs)    blk.7.attn_q.weight.lora_b (outputs, r)
    token_embd.weight.lora_a (vocabulary, r)  token_embd.weight.lora_b (dim, r)

    factor = alpha / r; 1 if alpha is 0

Rows are in the order of the GGUF models of the same architecture.
Source: https://github.com/ggml-org/llama.cpp (convert_lora_to_gguf.py, src/llama-adapter.cpp).
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ..checkpoint.gguf import ARCHITECTURES, HALVES, NAMES
from ..checkpoint.gguf_header import read_header
from ..checkpoint.stored_tensor import StoredTensor, check_dtype
from ..config import ModelConfig
from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from .adapter import Change, rows_in_our_order


def read_gguf(file: MappedFile, config: ModelConfig, scale: float) -> dict[str, Change]:
    """Read an adapter.

    Args:
        file: the mapped file.
        config: the model's dimensions.
        scale: what the changes are multiplied by.

    Returns:
        The changes by our names of the tensors.

    Raises:
        CheckpointError: the file is damaged, or is not an adapter of such a model.
    """
    header = read_header(file)
    find = header.metadata.find
    if find("general.type", str) != "adapter":
        raise CheckpointError(f"{file.path} is a model, not an adapter")
    kind, architecture = find("adapter.type", str), find("general.architecture", str)
    if kind != "lora" or architecture not in ARCHITECTURES:
        raise CheckpointError(f"{file.path} is an adapter of type {str(kind)[:40]!r} for {str(architecture)[:40]!r}")
    alpha = find("adapter.lora.alpha", float) or 0.0
    ours = {NAMES.of(name): name for name in config.tensor_shapes()}
    pairs: dict[str, dict[str, NDArray[Any]]] = {}
    for name, info in header.tensors.items():
        base, _, part = name.rpartition(".lora_")
        if part not in ("a", "b") or len(info.shape) != 2:
            raise CheckpointError(f"{file.path}: tensor {name[:120]!r} is not of LoRA (.lora_a and .lora_b are)")
        if base not in ours:
            raise CheckpointError(f"{file.path} changes {base[:120]!r}, which the model does not have")
        check_dtype(file.path, name, info.dtype)
        matrix = StoredTensor(file, info.dtype, info.shape, info.offset).read().copy()
        pairs.setdefault(ours[base], {})[part] = matrix
    changes = {}
    for name, pair in pairs.items():
        if set(pair) != {"a", "b"}:
            raise CheckpointError(f"{file.path}: of the two matrices for {name} one is missing")
        a, b = pair["a"], pair["b"]
        if name == "tok_embeddings.weight":
            a, b = b.T, a
        if architecture in HALVES:
            b = rows_in_our_order(name, b, config)
        changes[name] = Change(a, b, scale * (alpha / len(a) if alpha else 1.0))
    return changes
