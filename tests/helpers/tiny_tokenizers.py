"""Tiny tokenizers of both kinds, made here: a trained SentencePiece model and a byte-level BPE."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer, TokenizerSpec

CORPUS = [
    "Once upon a time there was a little fox who lived in the forest.",
    "[INST] What is the capital of France? [/INST] The capital of France is Paris.",
    "<<SYS>> You are helpful. <</SYS>> system user assistant 0123456789",
]
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


@functools.cache
def sentencepiece_model(user_defined: tuple[str, ...] = (), **options: Any) -> bytes:
    """A .model with <unk> <s> </s>, 256 byte pieces and a few more, trained like Llama-2's."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 340,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": list(user_defined),
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(sentence_iterator=iter(CORPUS * 3), model_writer=model, **(settings | options))
    return model.getvalue()


def sentencepiece_spec(data: bytes | None = None) -> TokenizerSpec:
    return TokenizerSpec("sentencepiece", sentencepiece_model() if data is None else data, 1, (2,), True)


@functools.cache
def _bpe_text(special: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return str(tokenizer.to_str())


def bpe_json(special: tuple[str, ...] = SPECIAL) -> dict[str, Any]:
    """A tokenizer.json with 256 bytes, some merges, and the special tokens as ids 0, 1, 2, ..."""
    parts: dict[str, Any] = json.loads(_bpe_text(special))
    return parts


def bpe_spec(parts: dict[str, Any] | None = None, **changes: Any) -> TokenizerSpec:
    data = json.dumps(bpe_json() if parts is None else parts).encode()
    return TokenizerSpec(**({"kind": "bpe", "data": data, "bos_id": 0, "eos_ids": (1,), "add_bos": False} | changes))


def tiny_tokenizer(kind: str) -> Tokenizer:
    """The tokenizer of either kind, "sentencepiece" or "bpe"."""
    return load_tokenizer(sentencepiece_spec() if kind == "sentencepiece" else bpe_spec())
