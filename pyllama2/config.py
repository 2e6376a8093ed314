"""ModelConfig: the dimensions of a Llama, validated once. They are kept nowhere else."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

# Bounds far above any Llama, low enough that products of two of them fit in 63 bits.
_MAX_WIDTH = 1 << 20
_MAX_VOCAB = 1 << 24
_MAX_LAYERS = 4096
_MAX_LENGTH = 1 << 26
_BIASES = ("qkv_bias", "wo_bias")


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE frequencies are scaled for contexts longer than the model was trained for.

    "linear" divides every frequency by factor. "llama3" divides low frequencies by factor, keeps high ones, and
    interpolates between them. A frequency is low if its wavelength is above original_max_seq_len / low_freq_factor
    tokens, and high if it is below original_max_seq_len / high_freq_factor (source: Llama 3.1's reference code).
    "yarn" interpolates between the numbers of the pairs that turn beta_slow and beta_fast times in the trained
    context, and multiplies cosines and sines by attention_factor, which makes attention sharper (arXiv:2309.00071).

    Attributes:
        kind: "linear", "llama3" or "yarn".
        factor: what frequencies are divided by.
        low_freq_factor: bound of the low frequencies; for "llama3" only.
        high_freq_factor: bound of the high frequencies; for "llama3" only.
        original_max_seq_len: the trained context in tokens; not for "linear".
        beta_fast: bound of the high frequencies, in turns; for "yarn" only.
        beta_slow: bound of the low frequencies, in turns; for "yarn" only.
        attention_factor: factor of cosines and sines. None for "yarn": 0.1 ln(factor) + 1.

    Raises:
        ValueError: the kind is unknown, or a number is out of range.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ValueError(f"rope scaling {str(self.kind)[:40]!r} is not supported (linear, llama3 and yarn are)")
        _check_float("rope scaling factor", self.factor, 1e-3, 1e6)
        _check_float("low_freq_factor", self.low_freq_factor, 1e-6, 1e6)
        _check_float("high_freq_factor", self.high_freq_factor, 1e-6, 1e6)
        _check_int("original_max_seq_len", self.original_max_seq_len, 1, _MAX_LENGTH)
        _check_float("beta_fast", self.beta_fast, 1e-6, 1e6)
        _check_float("beta_slow", self.beta_slow, 1e-6, 1e6)
        if self.attention_factor is not None:
            _check_float("attention_factor", self.attention_factor, 1e-3, 1e3)
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be greater than low_freq_factor")
        if self.kind == "yarn" and self.beta_fast < self.beta_slow:
            raise ValueError("beta_fast must not be less than beta_slow")

    @property
    def default_attention_factor(self) -> float:
        """What "yarn" multiplies cosines and sines by if attention_factor is None."""
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0

    def to_values(self) -> dict[str, Any]:
        """The fields as our file stores them. Only "yarn" has its own, so that older versions read the others."""
        values = asdict(self)
        if self.kind != "yarn":
            for name in ("beta_fast", "beta_slow", "attention_factor"):
                del values[name]
        return values


@dataclass(frozen=True)
class ModelConfig:
    """The dimensions and constants of one Llama.

    Attributes:
        dim: width of the residual stream.
        hidden_dim: width inside the feed-forward network.
        n_layers: the number of blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; each is shared by n_heads / n_kv_heads query heads.
        head_dim: width of one head (dim / n_heads in every Llama-2).
        vocab_size: the number of tokens.
        max_seq_len: longest sequence, in tokens, that the model was made for.
        norm_eps: added to the mean square in RMSNorm.
        rope_theta: base of the RoPE frequencies.
        rope_scaling: how these are scaled for longer contexts; None: not at all.
        tied_embeddings: whether the output matrix is the embedding matrix.
        qkv_bias: whether wq, wk and wv have biases, as in Qwen2.
        wo_bias: whether wo has a bias, which only some Llamas with qkv_bias have.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    wo_bias: bool = False

    def __post_init__(self) -> None:
        _check_int("dim", self.dim, 1, _MAX_WIDTH)
        _check_int("hidden_dim", self.hidden_dim, 1, _MAX_WIDTH)
        _check_int("n_layers", self.n_layers, 1, _MAX_LAYERS)
        _check_int("n_heads", self.n_heads, 1, _MAX_WIDTH)
        _check_int("n_kv_heads", self.n_kv_heads, 1, _MAX_WIDTH)
        _check_int("head_dim", self.head_dim, 2, 1024)
        _check_int("vocab_size", self.vocab_size, 1, _MAX_VOCAB)
        _check_int("max_seq_len", self.max_seq_len, 1, _MAX_LENGTH)
        _check_float("norm_eps", self.norm_eps, 0.0, 1.0)
        _check_float("rope_theta", self.rope_theta, 1.0, 1e12)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) is not a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) is odd; rotations need pairs")
        if self.q_dim > _MAX_WIDTH:
            raise ValueError(f"n_heads x head_dim ({self.q_dim}) is too large")
        for name in ("tied_embeddings", *_BIASES):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false")
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn" and self.rope_theta <= 1:
            raise ValueError("rope_theta must be greater than 1 with yarn scaling")
        if self.wo_bias and not self.qkv_bias:
            raise ValueError("a model with wo_bias has qkv_bias, too")

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every tensor, in file order.

        Matrices are (outputs, inputs), biases (outputs,), norms (dim,). A model with tied embeddings has no
        output.weight.
        """
        dim, hidden = self.dim, self.hidden_dim
        shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab_size, dim)}
        for i in range(self.n_layers):
            layer = f"layers.{i}."
            shapes[layer + "attention_norm.weight"] = (dim,)
            shapes[layer + "attention.wq.weight"] = (self.q_dim, dim)
            shapes[layer + "attention.wk.weight"] = (self.kv_dim, dim)
            shapes[layer + "attention.wv.weight"] = (self.kv_dim, dim)
            shapes[layer + "attention.wo.weight"] = (dim, self.q_dim)
            if self.qkv_bias:
                shapes[layer + "attention.wq.bias"] = (self.q_dim,)
                shapes[layer + "attention.wk.bias"] = (self.kv_dim,)
                shapes[layer + "attention.wv.bias"] = (self.kv_dim,)
            if self.wo_bias:
                shapes[layer + "attention.wo.bias"] = (dim,)
            shapes[layer + "ffn_norm.weight"] = (dim,)
            shapes[layer + "feed_forward.w1.weight"] = (hidden, dim)
            shapes[layer + "feed_forward.w2.weight"] = (dim, hidden)
            shapes[layer + "feed_forward.w3.weight"] = (hidden, dim)
        shapes["norm.weight"] = (dim,)
        if not self.tied_embeddings:
            shapes["output.weight"] = (self.vocab_size, dim)
        return shapes

    @property
    def n_parameters(self) -> int:
        """The number of weights, biases included."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def rope_frequencies(self) -> list[float]:
        """The RoPE frequency of each pair, head_dim / 2 of them, in radians per position.

        Pair i turns by theta^(-2i / head_dim) (RoFormer, arXiv:2104.09864), scaled as rope_scaling says.
        """
        frequencies = [self.rope_theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        scaling = self.rope_scaling
        if scaling is None:
            return frequencies
        if scaling.kind == "linear":
            return [f / scaling.factor for f in frequencies]
        if scaling.kind == "yarn":
            return _yarn_frequencies(frequencies, scaling, self.rope_theta)
        return [_llama3_frequency(f, scaling) for f in frequencies]

    @property
    def rope_attention_factor(self) -> float:
        """What cosines and sines are multiplied by: 1 unless rope_scaling is "yarn"."""
        scaling = self.rope_scaling
        if scaling is None or scaling.kind != "yarn":
            return 1.0
        return scaling.default_attention_factor if scaling.attention_factor is None else scaling.attention_factor

    def to_json(self) -> str:
        """The config as a JSON object, as our file stores it.

        Biases are named only in models that have some, so that older versions read the files of the others.
        """
        values = {name: value for name, value in asdict(self).items() if value or name not in _BIASES}
        if self.rope_scaling is not None:
            values["rope_scaling"] = self.rope_scaling.to_values()
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Make the config from the JSON object of to_json().

        Raises:
            ValueError: a field is unknown, missing or wrong.
        """
        values = _known_fields(cls, json.loads(text))
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = RopeScaling(**_known_fields(RopeScaling, values["rope_scaling"]))
        return cls(**values)


def default_head_dim(dim: int, n_heads: int) -> int:
    """The head_dim of a model whose file does not say it: dim / n_heads.

    Raises:
        ValueError: n_heads does not divide dim.
    """
    if n_heads < 1 or dim % n_heads:
        raise ValueError(f"dim {dim} is not a multiple of n_heads {n_heads}")
    return dim // n_heads


def _known_fields(cls: type, values: Any) -> dict[str, Any]:
    """Check that a JSON value is an object with the fields of the dataclass cls: none unknown, none missing."""
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be a JSON object")
    for name in values:
        if name not in {f.name for f in fields(cls)}:
            raise ValueError(f"{cls.__name__} has no field {name[:40]!r}")
    for field in fields(cls):
        if field.default is MISSING and field.name not in values:
            raise ValueError(f"{cls.__name__} lacks {field.name}")
    return values


def _llama3_frequency(frequency: float, scaling: RopeScaling) -> float:
    wavelength = 2 * math.pi / frequency
    # How often a pair turns in the original context: high frequencies often, low ones seldom.
    turns = scaling.original_max_seq_len / wavelength
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - blend) * frequency / scaling.factor + blend * frequency


def _yarn_frequencies(frequencies: list[float], scaling: RopeScaling, theta: float) -> list[float]:
    """Pairs below number `first` keep their frequency, those from `last` on have it divided by factor."""
    head_dim = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:  # in the trained context
        return head_dim * math.log(scaling.original_max_seq_len / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_dim - 1)
    result = []
    for i, frequency in enumerate(frequencies):
        divided = min(max((i - first) / max(last - first, 0.001), 0.0), 1.0)
        result.append(divided * frequency / scaling.factor + (1 - divided) * frequency)
    return result


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, not {str(value)[:40]!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, not {str(value)[:40]}")


def _check_float(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {str(value)[:40]!r}")
    if not low <= value <= high:  # also false for NaN
        raise ValueError(f"{name} must be between {low} and {high}, not {str(value)[:40]}")
