"""The PyTorch model against formulas written out again, and its cache against itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import CONFIGS, GQA, MHA, float_model, oracle_logits, quantized_model, random_weights, write_model

from pyllama2.config import ModelConfig
from pyllama2.model import Transformer

TOKENS = [1, 5, 9, 33, 2, 2, 48, 7, 11, 0, 3]


def plain_logits(config: ModelConfig, weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The forward pass in float64, one token, head and position at a time."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    frequencies = np.array(config.rope_frequencies())

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return w[name] * x / np.sqrt(np.mean(x * x) + config.norm_eps)

    def rope(head: np.ndarray, position: int) -> np.ndarray:
        turn = config.rope_attention_factor * np.exp(1j * position * frequencies)
        pairs = (head[0::2] + 1j * head[1::2]) * turn
        return np.stack([pairs.real, pairs.imag], axis=1).reshape(-1)

    def product(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    rows, keys, values = [], {}, {}
    for t, token in enumerate(tokens):
        x = w["tok_embeddings.weight"][token]
        for i in range(config.n_layers):
            layer = f"layers.{i}."
            a = norm(x, layer + "attention_norm.weight")
            q = product(layer + "attention.wq", a).reshape(config.n_heads, -1)
            k = product(layer + "attention.wk", a).reshape(config.n_kv_heads, -1)
            keys[i, t] = np.stack([rope(head, t) for head in k])
            values[i, t] = product(layer + "attention.wv", a).reshape(config.n_kv_heads, -1)
            out = []
            for h in range(config.n_heads):
                shared = h // (config.n_heads // config.n_kv_heads)
                query = rope(q[h], t)
                scores = np.array([query @ keys[i, s][shared] for s in range(t + 1)]) / np.sqrt(config.head_dim)
                p = np.exp(scores - scores.max())
                p /= p.sum()
                out.append(sum(p[s] * values[i, s][shared] for s in range(t + 1)))
            x = x + product(layer + "attention.wo", np.concatenate(out))
            f = norm(x, layer + "ffn_norm.weight")
            gate = w[layer + "feed_forward.w1.weight"] @ f
            up = w[layer + "feed_forward.w3.weight"] @ f
            x = x + w[layer + "feed_forward.w2.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        output = w["tok_embeddings.weight" if config.tied_embeddings else "output.weight"]
        rows.append(output @ norm(x, "norm.weight"))
    return np.stack(rows)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_the_formulas(config: ModelConfig) -> None:
    weights = random_weights(config, seed=1)
    expected = plain_logits(config, weights, TOKENS)
    assert oracle_logits(config, weights, TOKENS) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("config", [GQA, MHA], ids=["gqa", "mha"])
def test_cache_changes_nothing(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(config).eval()
    tokens = torch.randint(0, config.vocab_size, (2, 20))
    with torch.inference_mode():
        whole = model(tokens)
        cache = model.new_cache(batch_size=2)
        parts = [model(tokens[:, a:b], cache) for a, b in [(0, 7), (7, 8), (8, 20)]]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_a_full_context_is_refused_and_generation_ends_there() -> None:
    model = Transformer(GQA).eval()
    with pytest.raises(ValueError, match=f"{GQA.max_seq_len + 1} tokens"):
        model(torch.zeros(1, GQA.max_seq_len + 1, dtype=torch.long))
    prompt = [1] * (GQA.max_seq_len - 3)
    assert len(list(model.generate(prompt, 100))) == 3


def test_generate_is_the_argmax_of_the_logits() -> None:
    weights = random_weights(GQA)
    model = Transformer(GQA)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    text = [3, 1, 4]
    generated = list(model.generate(text, 12))
    for i, token in enumerate(generated):
        assert token == oracle_logits(GQA, weights, text + generated[:i])[-1].argmax()


def test_gradients_reach_every_parameter() -> None:
    model = Transformer(GQA)
    model(torch.tensor([TOKENS])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_load_from_our_file(config: ModelConfig, tmp_path: Path) -> None:
    weights = random_weights(config, seed=2)
    loaded = Transformer.load(write_model(tmp_path / "m.bin", float_model(config, weights)))
    with torch.inference_mode():
        logits = loaded(torch.tensor([TOKENS]))[0].numpy()
    assert np.array_equal(logits, oracle_logits(config, weights, TOKENS))


def test_load_refuses_quantized_files(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.bin", quantized_model(GQA, random_weights(GQA), "q8", 32))
    with pytest.raises(ValueError, match="quantized"):
        Transformer.load(path)
