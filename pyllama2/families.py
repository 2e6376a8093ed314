"""Which models are computed as a Llama is, and what to take instead of one that is not.

llama      no biases, or with attention_bias those of wq, wk, wv and wo
mistral    a Llama, whose attention may have a sliding window
qwen2      a Llama with biases of wq, wk and wv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The families by their names in "architectures" of a config.json. Its "model_type" has the names on the right.
FAMILIES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}
# How weights may be quantized, by "quant_method" of a config.json, and what to take instead of others.
QUANT_METHODS = ("gptq", "awq")
QUANT_INSTEAD = "take the original model, its 4-bit GPTQ or AWQ version, or a GGUF file of it"


@dataclass(frozen=True)
class ContextLimit:
    """The longest context that can be computed.

    Attributes:
        n_tokens: its length.
        reason: why it ends there, as the end of a sentence.
    """

    n_tokens: int
    reason: str

    @classmethod
    def of_window(cls, n_tokens: int) -> ContextLimit:
        """The limit of a sliding window, up to which all attention is the same as without one."""
        return cls(n_tokens, "it is the model's sliding window, and attention beyond it is not supported")


# What others lack or have more of, by a part of their names, and the nearest model that can be used.
_OTHERS = {
    "forsequenceclassification": ("a classifier", "the language model that it was made from"),
    "mixtral": ("a mixture of experts", "Mistral 7B"),
    "moe": ("a mixture of experts", "the dense model of the same family"),
    "gpt_oss": ("a mixture of experts", "a dense Llama"),
    "gptoss": ("a mixture of experts", "a dense Llama"),
    "gpt-oss": ("a mixture of experts", "a dense Llama"),
    "deepseek": ("a mixture of experts with latent attention", "its distillation into Llama or Qwen2"),
    "llama4": ("a mixture of experts", "Llama 3"),
    "mllama": ("a model that also sees images", "the text model Llama 3"),
    "llava": ("a model that also sees images", "the text model that it was made from"),
    "vl": ("a model that also sees images", "the text model of the same family"),
    "qwen3": ("a model that normalizes queries and keys", "Qwen2.5"),
    "qwen": ("another architecture", "Qwen2.5"),
    "gemma": ("another architecture", "a Llama of the same size"),
    "phi": ("another architecture", "a Llama of the same size"),
    "mistral": ("another architecture", "Mistral 7B or Mistral Nemo"),
}


def refusal(kind: str) -> str:
    """Say in a part of a sentence why models of a kind cannot be used, and what can be used instead.

    Args:
        kind: what a file calls it, such as "MixtralForCausalLM" or "gemma2".
    """
    what, nearest = next(
        (entry for part, entry in _OTHERS.items() if part in kind.lower()), ("another architecture", "a Llama")
    )
    return f"{kind[:40]!r} is {what}, which is not supported; take {nearest} (llama, mistral and qwen2 are supported)"


def refused(config: Mapping[str, Any]) -> str:
    """Say in a part of a sentence why a model cannot be used, and what can be used instead; "" if it may.

    Args:
        config: a config.json that nobody has checked.
    """
    names = config.get("architectures")
    kinds = [*(names if isinstance(names, list) else []), config.get("model_type") or "llama"]
    for kind in map(str, kinds):
        if kind not in FAMILIES and kind not in FAMILIES.values():
            return f"a model of type {refusal(kind)}"
    settings = config.get("quantization_config")
    if isinstance(settings, dict):
        method = str(settings.get("quant_method", "unknown")).lower()
        if method not in QUANT_METHODS:
            return f"weights quantized by {method[:40]!r} are not supported; {QUANT_INSTEAD}"
    return ""
