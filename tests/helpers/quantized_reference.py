"""The forward pass of a quantized model in numpy, with activations quantized as the backends do it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Weight

Array = NDArray[np.float64]


def quantize_activations(x: Array, weight: Weight) -> Array:
    """x (tokens, columns) as codes and one float32 scale per group have it: int8 for q4, int16 for q8."""
    group, limit = weight.group_size, 127 if weight.type == "q4" else 32767
    tokens, columns = x.shape
    padded = np.zeros((tokens, -(-columns // group) * group), np.float32)
    padded[:, :columns] = x
    groups = padded.reshape(tokens, -1, group)
    largest = np.abs(groups).max(-1, keepdims=True)
    largest[largest < np.float32(limit * 2.0**-100)] = 0  # so small that GPUs would flush some numbers to zero
    codes = np.rint(groups * np.divide(limit, largest, out=np.zeros_like(largest), where=largest > 0))
    return (codes * (largest / limit)).astype(np.float64).reshape(tokens, -1)[:, :columns]


def reference_logits(model: StoredModel, tokens: list[int]) -> Array:
    """Logits (len(tokens), vocab_size) of all tokens at once."""
    config = model.config
    n, e = len(tokens), config.head_dim
    weights = {name: weight.dequantize().astype(np.float64) for name, weight in model.weights.items()}
    angles = np.outer(np.arange(n), config.rope_frequencies())
    turn = config.rope_attention_factor * np.exp(1j * angles)[:, None, :]  # (n, 1, e/2)
    future = np.triu(np.ones((n, n), bool), 1)

    def norm(x: Array, name: str) -> Array:
        return weights[name] * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.norm_eps)

    def product(name: str, x: Array) -> Array:
        y = quantize_activations(x, model.weights[name]) @ weights[name].T
        return y + weights.get(name.removesuffix("weight") + "bias", 0.0)

    def rope(x: Array) -> Array:  # (n, heads, e)
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    x = weights["tok_embeddings.weight"][tokens]
    for i in range(config.n_layers):
        layer = f"layers.{i}."
        a = norm(x, layer + "attention_norm.weight")
        q = rope(product(layer + "attention.wq.weight", a).reshape(n, -1, e))
        k = rope(product(layer + "attention.wk.weight", a).reshape(n, -1, e))
        v = product(layer + "attention.wv.weight", a).reshape(n, -1, e)
        share = config.n_heads // config.n_kv_heads
        k, v = np.repeat(k, share, 1), np.repeat(v, share, 1)
        scores = np.einsum("the,she->hts", q, k) / np.sqrt(e)
        scores[:, future] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hts,she->the", p / p.sum(-1, keepdims=True), v).reshape(n, -1)
        x = x + product(layer + "attention.wo.weight", attended)
        f = norm(x, layer + "ffn_norm.weight")
        gate = product(layer + "feed_forward.w1.weight", f)
        hidden = gate / (1 + np.exp(-gate)) * product(layer + "feed_forward.w3.weight", f)
        x = x + product(layer + "feed_forward.w2.weight", hidden)
    output = "tok_embeddings.weight" if config.tied_embeddings else "output.weight"
    return product(output, norm(x, "norm.weight"))
