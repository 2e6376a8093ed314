"""Tiny models for the tests: configurations with awkward sizes, random weights, oracle logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllama2.config import ModelConfig, RopeScaling
from pyllama2.storage.model_file import ModelWriter, StoredModel
from pyllama2.storage.weights import Quantization, StorageType, Weight

# heads 6/3 with head_dim 8: n_heads / n_kv_heads (2) differs from n_kv_heads (3), which exposes a wrong un-permute.
GQA = ModelConfig(
    dim=48, hidden_dim=100, n_layers=2, n_heads=6, n_kv_heads=3, head_dim=8, vocab_size=70, max_seq_len=64
)
MHA = ModelConfig(
    dim=64,
    hidden_dim=172,
    n_layers=3,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    vocab_size=97,
    max_seq_len=96,
    norm_eps=1e-6,
)
TIED = ModelConfig(
    dim=32, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=1, head_dim=8, vocab_size=65, max_seq_len=64,
    rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16), tied_embeddings=True,
)  # fmt: skip
# head_dim is not dim / n_heads
WIDE_HEADS = ModelConfig(
    dim=40, hidden_dim=64, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=32, vocab_size=50, max_seq_len=48,
    rope_scaling=RopeScaling("linear", 2.0),
)  # fmt: skip
# with biases of wq, wk and wv, and YaRN scaling
QWEN2 = ModelConfig(
    dim=48, hidden_dim=80, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=8, vocab_size=70, max_seq_len=128,
    rope_theta=1e4, rope_scaling=RopeScaling("yarn", 4.0, original_max_seq_len=32), tied_embeddings=True, qkv_bias=True,
)  # fmt: skip
# with a bias of wo, too
BIASES = ModelConfig(
    dim=48, hidden_dim=96, n_layers=2, n_heads=3, n_kv_heads=3, head_dim=16, vocab_size=60, max_seq_len=64,
    qkv_bias=True, wo_bias=True,
)  # fmt: skip
CONFIGS = {
    "gqa": GQA, "mha": MHA, "tied": TIED, "wide_heads": WIDE_HEADS, "qwen2": QWEN2, "biases": BIASES
}  # fmt: skip


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """float32 tensors under Meta's names, scaled so that activations stay near 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.tensor_shapes().items():
        if name.endswith("norm.weight"):
            weights[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            weights[name] = (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
    return weights


def float_model(config: ModelConfig, weights: dict[str, NDArray[np.float32]]) -> StoredModel:
    """An unquantized model in memory."""
    model = StoredModel(config, Quantization.of("float32"))
    for name, shape in config.tensor_shapes().items():
        model.weights[name] = Weight(name, "float32", shape, weights[name])
    return model


def oracle_logits(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]], tokens: Sequence[int]
) -> NDArray[np.float32]:
    """Logits (len(tokens), vocab_size) of the PyTorch model."""
    import torch

    from pyllama2.model import Transformer

    with torch.inference_mode():
        model = Transformer(config)
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        return model(torch.tensor([list(tokens)])).squeeze(0).numpy()


def quantized_model(
    config: ModelConfig,
    weights: dict[str, NDArray[np.float32]],
    weight_type: str,
    group_size: int = 64,
    output_type: str | None = None,
    layers: tuple[tuple[StorageType, ...], ...] = (),
) -> StoredModel:
    """A model of any storage type in memory, or with layers of mixed types; norms stay float32."""
    from pyllama2._cpu import quantize_matrix

    model = StoredModel(config, replace(Quantization.of(weight_type, group_size, output_type), layers=layers))
    for name, shape in config.tensor_shapes().items():
        kind = model.quantization.storage_of(name, config)
        if kind.group_size:
            data, scales = quantize_matrix(weights[name], kind.type, kind.group_size)
            model.weights[name] = Weight(name, kind.type, shape, data, scales, kind.group_size)
        else:
            model.weights[name] = Weight(name, kind.type, shape, weights[name].astype(kind.type))
    return model


def write_model(path: Path, model: StoredModel) -> Path:
    """model as one of our files."""
    with ModelWriter(path, model) as writer:
        for weight in model.weights.values():
            writer.write(weight)
    return path


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of softmax over the last axis of logits (..., vocab_size)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
