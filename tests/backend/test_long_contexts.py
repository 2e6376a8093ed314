"""Thousands of positions: scaled RoPE, many spans of attention, keys and values of each type, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiny import quantized_model, random_weights
from numpy.typing import NDArray

from pyllama2._cpu import CpuBackend
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig, RopeScaling

# One layer: the logits of the last token need only the keys and values that come straight from the embeddings.
CONFIG = ModelConfig(
    dim=32, hidden_dim=48, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, vocab_size=50, max_seq_len=32768,
    rope_theta=1e4, rope_scaling=RopeScaling("yarn", 16.0, original_max_seq_len=2048),
)  # fmt: skip
TOLERANCES = {"float32": 2e-4, "float16": 5e-3, "int8": 5e-2}


def sharp_weights() -> dict[str, NDArray[np.float32]]:
    """Weights with which a query prefers some positions, near ones and far ones."""
    weights = random_weights(CONFIG)
    weights["layers.0.attention.wq.weight"] *= 6
    return weights


def last_logits(weights: dict[str, NDArray[np.float32]], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The logits of the last token, as model.py defines them, in float64."""
    w = {name.removeprefix("layers.0."): array.astype(np.float64) for name, array in weights.items()}

    def norm(x: NDArray[np.float64], weight: str) -> NDArray[np.float64]:
        rms = np.sqrt(np.square(x).mean(-1, keepdims=True) + CONFIG.norm_eps)
        return np.asarray(x / rms * w[weight])

    def rotate(x: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        angles = np.outer(positions, CONFIG.rope_frequencies())[:, None]
        cos, sin = (f(angles) * CONFIG.rope_attention_factor for f in (np.cos, np.sin))
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)

    n, groups = len(tokens), CONFIG.n_heads // CONFIG.n_kv_heads
    x = w["tok_embeddings.weight"][tokens]
    normed = norm(x, "attention_norm.weight")
    heads = (-1, CONFIG.head_dim)
    k = rotate((normed @ w["attention.wk.weight"].T).reshape(n, *heads), np.arange(n)).repeat(groups, 1)
    v = (normed @ w["attention.wv.weight"].T).reshape(n, *heads).repeat(groups, 1)
    q = rotate((normed[-1:] @ w["attention.wq.weight"].T).reshape(1, *heads), np.array([n - 1]))[0]
    scores = np.einsum("he,nhe->hn", q, k) / np.sqrt(CONFIG.head_dim)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    last = x[-1] + w["attention.wo.weight"] @ np.einsum("hn,nhe->he", share, v).ravel()
    normed = norm(last, "ffn_norm.weight")
    gate = w["feed_forward.w1.weight"] @ normed
    hidden = gate / (1 + np.exp(-gate)) * (w["feed_forward.w3.weight"] @ normed)
    last = last + w["feed_forward.w2.weight"] @ hidden
    return np.asarray(w["output.weight"] @ norm(last, "norm.weight"))


@pytest.mark.parametrize("kv_dtype", TOLERANCES)
@pytest.mark.parametrize("n", [16384, 32768])
def test_the_last_token_of_a_long_text(n: int, kv_dtype: str) -> None:
    weights = sharp_weights()
    tokens = np.random.default_rng(n).integers(0, CONFIG.vocab_size, n)
    expected = last_logits(weights, tokens)
    backend = CpuBackend(quantized_model(CONFIG, weights, "float32"), n_threads=2, kv_dtype=kv_dtype)
    cache = backend.new_cache(1, n)
    found = backend.forward(Batch.of_sequence(tokens.tolist()), cache)[0]
    assert np.abs(found - expected).max() < TOLERANCES[kv_dtype] * np.abs(expected).max()
    again = backend.forward(Batch.of_sequence(tokens[-1:].tolist(), start=n - 1), cache)[0]
    assert again.tobytes() == found.tobytes()  # its spans are shared among the threads, those of a prompt are not
    alone = CpuBackend(quantized_model(CONFIG, weights, "float32"), n_threads=1, kv_dtype=kv_dtype)
    single = alone.forward(Batch.of_sequence(tokens[-1:].tolist(), start=n - 1), cache)[0]
    assert single.tobytes() == found.tobytes()


def test_far_positions_matter() -> None:
    """What the first of these tests would miss, if attention forgot what is far away."""
    weights = sharp_weights()
    tokens = np.random.default_rng(16384).integers(0, CONFIG.vocab_size, 16384)
    near = last_logits(weights, tokens)
    tokens[:8192] = (tokens[:8192] + 1) % CONFIG.vocab_size
    far = last_logits(weights, tokens)
    assert np.abs(near - far).max() > 2 * TOLERANCES["float16"] * np.abs(near).max()
