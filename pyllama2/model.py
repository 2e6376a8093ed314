"""Llama in PyTorch, written to be read. It runs, it trains, and the tests trust it.

A Llama predicts the next token of a text. It maps T token ids to T vectors of vocab_size
logits, where softmax(logits[t]) is its probability for each possible token number t + 1.

    tokens -> tok_embeddings -> Block x n_layers -> RMSNorm -> output -> logits

    Block:    h = x + Attention(RMSNorm(x))        where tokens look at earlier tokens
              y = h + FeedForward(RMSNorm(h))      where each token thinks by itself

x is the residual stream: one vector of length dim per token, to which every block adds.
Letters in the shapes beside the tensors:

    B  sequences in the batch      D  dim           H  n_heads (queries)           E  head_dim
    T  new tokens of each          F  hidden_dim    K  n_kv_heads (keys, values)   V  vocab_size
    S  all tokens so far: those in the cache, then the T new ones

Attention costs T x S dot products, everything else is T rows through matrices. In a
generation T is 1 and S grows, so the keys and values of earlier tokens are kept in a KVCache
rather than computed again.

Llama: arXiv:2302.13971, Llama 2: arXiv:2307.09288. The compiled backends run the same steps
under the same names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig


class RMSNorm(nn.Module):
    """y_i = w_i x_i / sqrt(mean(x^2) + eps): every vector gets length about sqrt(D) (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))  # (D,)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        """Normalise x in float32, then scale it."""
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)  # (B, T, 1)
        return (x32 * scale).type_as(x) * self.weight


def rope_table(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the angle position * frequency_i, each (T, E / 2), for positions (T,); YaRN scales them."""
    frequencies = torch.tensor(config.rope_frequencies(), dtype=torch.float64)  # (E/2,)
    angles = torch.outer(positions.double().cpu(), frequencies)  # (T, E/2)
    cos, sin = angles.cos() * config.rope_attention_factor, angles.sin() * config.rope_attention_factor
    return cos.float().to(positions.device), sin.float().to(positions.device)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, heads, E)
    """Turn each adjacent pair (x_2i, x_2i+1) of a head by the angle of its position (arXiv:2104.09864).

    (a, b) -> (a cos - b sin, a sin + b cos), so that the dot product of a query turned for
    position p with a key turned for position q depends on p - q only.
    """
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # each (B, T, heads, E/2)
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, E/2)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)  # (B, T, heads, E/2, 2)
    return turned.flatten(-2).type_as(x)


class KVCache:
    """Keys and values of one layer for the first `length` tokens of B sequences."""

    def __init__(self, config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (batch_size, config.max_seq_len, config.n_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (B, max_seq_len, K, E)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:  # (B, T, K, E) each
        """Add T tokens; returns the keys and values of all S tokens so far, (B, S, K, E) each."""
        start, self.length = self.length, self.length + keys.shape[1]
        self.keys[:, start : self.length] = keys
        self.values[:, start : self.length] = values
        return self.keys[:, : self.length], self.values[:, : self.length]


class Attention(nn.Module):
    """Each token asks a question (q), and gathers the values (v) of the tokens whose key (k) answers it.

        out_t = sum over s <= t of softmax_s(q_t . k_s / sqrt(E)) v_s        for each head

    With n_kv_heads < n_heads, H / K query heads share a key and value head (GQA, arXiv:2305.13245).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.queries_per_kv = config.n_heads // config.n_kv_heads
        # No Llama-2 has biases. Qwen2 has those of wq, wk and wv, which shift what a token asks for and answers to.
        self.wq = nn.Linear(config.dim, config.q_dim, bias=config.qkv_bias)  # weight (H*E, D)
        self.wk = nn.Linear(config.dim, config.kv_dim, bias=config.qkv_bias)  # weight (K*E, D)
        self.wv = nn.Linear(config.dim, config.kv_dim, bias=config.qkv_bias)  # weight (K*E, D)
        self.wo = nn.Linear(config.q_dim, config.dim, bias=config.wo_bias)  # weight (D, H*E)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:  # x (B, T, D)
        """Attention of T new tokens to themselves and to the tokens in the cache."""
        heads = (-1, self.head_dim)
        q = apply_rope(self.wq(x).unflatten(-1, heads), cos, sin)  # (B, T, H, E)
        k = apply_rope(self.wk(x).unflatten(-1, heads), cos, sin)  # (B, T, K, E)
        v = self.wv(x).unflatten(-1, heads)  # (B, T, K, E)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, S, K, E)
        k = k.repeat_interleave(self.queries_per_kv, dim=2)  # (B, S, H, E)
        v = v.repeat_interleave(self.queries_per_kv, dim=2)

        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T or S, E)
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5  # (B, H, T, S)
        n_new, n_all = scores.shape[-2:]
        # New token t stands at position S - T + t and may see positions up to its own.
        future = torch.ones(n_new, n_all, dtype=torch.bool, device=x.device).triu(n_all - n_new + 1)  # (T, S)
        scores = scores.float().masked_fill(future, float("-inf"))
        weights = scores.softmax(-1).type_as(v)  # (B, H, T, S)
        out = weights @ v  # (B, H, T, E)
        return self.wo(out.transpose(1, 2).flatten(-2))  # (B, T, D)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x), where silu(z) = z / (1 + e^-z) (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)  # weight (F, D)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)  # weight (D, F)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)  # weight (F, D)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        """Widen to hidden_dim twice, let one gate the other, and narrow again."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, each normalised before and added after."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:  # (B, T, D)
        """The residual stream after this layer."""
        h = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    """The whole model. Parameters have the names and shapes of config.tensor_shapes()."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)  # weight (V, D)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied_embeddings:
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False)  # weight (V, D)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix (V, D), which a tied model shares with its embeddings."""
        return self.tok_embeddings.weight if self.config.tied_embeddings else self.output.weight

    def new_cache(self, batch_size: int = 1) -> list[KVCache]:
        """An empty cache for every layer."""
        weight = self.tok_embeddings.weight
        return [KVCache(self.config, batch_size, weight.device, weight.dtype) for _ in self.layers]

    def forward(self, tokens: Tensor, cache: list[KVCache] | None = None) -> Tensor:  # (B, T) int64
        """Logits (B, T, V) in float32. With a cache the tokens continue the sequences in it.

        Raises:
            ValueError: the sequences would be longer than config.max_seq_len.
        """
        start = cache[0].length if cache else 0
        end = start + tokens.shape[1]
        if end > self.config.max_seq_len:
            raise ValueError(f"{end} tokens do not fit in a context of {self.config.max_seq_len}")
        cos, sin = rope_table(self.config, torch.arange(start, end, device=tokens.device))  # (T, E/2)
        x = self.tok_embeddings(tokens)  # (B, T, D)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache[i] if cache else None)
        return F.linear(self.norm(x), self.output_weight).float()  # (B, T, V)

    @torch.inference_mode()
    def generate(self, tokens: list[int], max_tokens: int) -> Iterator[int]:
        """Continue a prompt greedily, token by token: always the most likely one.

        Stops after max_tokens or when the context is full, but not at an end-of-text token.
        """
        cache = self.new_cache()
        room = self.config.max_seq_len - len(tokens)
        new = torch.tensor([tokens], device=self.tok_embeddings.weight.device)  # (1, T)
        for _ in range(min(max_tokens, room)):
            logits = self(new, cache)[0, -1]  # (V,)
            token = int(logits.argmax())
            yield token
            new = torch.tensor([[token]], device=new.device)  # from now on T = 1

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Transformer:
        """Load one of our float32 or float16 files, as float32.

        Our files are safetensors files whose metadata holds the config.

        Raises:
            ValueError: the file is quantized, or not one of ours.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "config" not in metadata:
                raise ValueError(f"{os.fspath(path)!r} is not a pyllama2 file")
            config = ModelConfig.from_json(metadata["config"])
            if any(name.endswith(".scales") for name in file.keys()):  # noqa: SIM118 (not a dict)
                raise ValueError(f"{os.fspath(path)!r} is quantized; this model computes in float32")
            weights = {name: file.get_tensor(name).float() for name in config.tensor_shapes()}
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        return model.eval()
