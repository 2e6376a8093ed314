"""Tiny models with tokenizers, and logits processors that make them say what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.tiny import quantized_model, random_weights, write_model
from helpers.tiny_tokenizers import bpe_spec, sentencepiece_spec
from pyllama2 import Completion, Llama
from pyllama2.config import ModelConfig
from pyllama2.tokenizer.base import TokenizerSpec

CONFIG = ModelConfig(
    dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, vocab_size=340, max_seq_len=64
)
PROMPT = "Once upon a time"
PROMPTS = [PROMPT, "The capital", "a little fox who lived in the forest", "[INST] What"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def write_tiny(
    path: Path,
    kind: str | None = "sentencepiece",
    weight_type: str = "float32",
    *,
    template: str | None = None,
    spec: TokenizerSpec | None = None,
    weights: dict[str, NDArray[np.float32]] | None = None,
    **config: Any,
) -> Path:
    """One of our files, of CONFIG with changes; kind of its tokenizer is "sentencepiece", "bpe" or None."""
    changed = replace(CONFIG, **config)
    model = quantized_model(changed, random_weights(changed) if weights is None else weights, weight_type)
    specs = {"sentencepiece": sentencepiece_spec, "bpe": bpe_spec}
    model.tokenizer = spec if spec is not None or kind is None else specs[kind]()
    model.chat_template = template
    model.source = "a tiny model"
    return write_model(path, model)


def says(ids: Sequence[int], n_prompt: int) -> Callable[[list[int], NDArray[np.float32]], None]:
    """A logits processor after which the text is ids, whatever the model thinks; n_prompt tokens are the prompt."""

    def force(token_ids: list[int], logits: NDArray[np.float32]) -> None:
        wanted = ids[len(token_ids) - n_prompt]
        logits[:] = -np.inf
        logits[wanted] = 0

    return force


def forced(llm: Llama, text_or_ids: str | list[int], prompt: str | list[int] = PROMPT, **sampling: Any) -> Completion:
    """The completion when the model says exactly text_or_ids."""
    ids = text_or_ids if isinstance(text_or_ids, list) else llm.tokenizer.encode(text_or_ids)
    n_prompt = len(llm.tokenize(prompt)) if isinstance(prompt, str) else len(prompt)
    return llm.generate(prompt, logits_processors=[says(ids, n_prompt)], max_tokens=len(ids), **sampling)


def same(a: Completion, b: Completion) -> bool:
    """Whether two completions differ at most in their timings, and in what was in the cache before them."""
    usage = replace(a.usage, cached_tokens=b.usage.cached_tokens)
    return replace(a, timings=b.timings, usage=usage) == b
