"""The tokenizer of a model as keys of a GGUF file; checkpoint/gguf_tokenizer.py lists them.

A vocabulary that is smaller than the model's is filled with unused tokens, as other converters do.
"""

from __future__ import annotations

from ..checkpoint.gguf_tokenizer import ENDS, IGNORES_MERGES, NORMALIZES, PRE_TOKENIZERS
from ..errors import CheckpointError
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.bpe_parts import BpeParts, parse_bpe
from ..tokenizer.pre_tokenizer import known_steps
from ..tokenizer.sentencepiece import open_processor
from ..tokenizer.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_model_proto,
)
from .gguf_file import Value


def tokenizer_keys(spec: TokenizerSpec, vocab_size: int) -> dict[str, Value]:
    """Make the keys of a tokenizer.

    Args:
        spec: the tokenizer.
        vocab_size: the model's number of tokens.

    Raises:
        CheckpointError: the tokenizer is damaged, or GGUF cannot express it.
    """
    keys = _sentencepiece(spec, vocab_size) if spec.kind == "sentencepiece" else _bpe(spec, vocab_size)
    eos_ids = dict.fromkeys(spec.eos_ids)
    if len(eos_ids) > len(ENDS):
        raise CheckpointError(f"{len(eos_ids)} tokens end a text, but GGUF has keys for {len(ENDS)}: {', '.join(ENDS)}")
    special = {"bos": spec.bos_id} | dict(zip(ENDS, eos_ids, strict=False))
    for name, token_id in special.items():
        if token_id is not None:
            keys[f"tokenizer.ggml.{name}_token_id"] = token_id
    keys["tokenizer.ggml.add_bos_token"] = spec.add_bos
    keys["tokenizer.ggml.add_eos_token"] = False
    return keys


def _sentencepiece(spec: TokenizerSpec, vocab_size: int) -> dict[str, Value]:
    try:
        proto = read_model_proto(spec.data)
        processor = open_processor(spec.data)
    except ValueError as error:
        raise CheckpointError(f"the tokenizer is damaged: {error}") from error
    user_defined = {token_id for _, token_id, _ in proto.user_defined}

    def kind_of(token_id: int) -> int:
        if token_id in user_defined:
            return USER_DEFINED
        for kind, is_kind in (
            (UNKNOWN, processor.is_unknown), (CONTROL, processor.is_control), (BYTE, processor.is_byte),
            (UNUSED, processor.is_unused),
        ):  # fmt: skip
            if is_kind(token_id):
                return kind
        return NORMAL

    ids = range(proto.n_pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": _filled([processor.id_to_piece(token_id) for token_id in ids], vocab_size),
        "tokenizer.ggml.scores": [float(processor.get_score(i)) for i in ids] + [0.0] * (vocab_size - len(ids)),
        "tokenizer.ggml.token_type": [kind_of(token_id) for token_id in ids] + [UNUSED] * (vocab_size - len(ids)),
        "tokenizer.ggml.add_space_prefix": proto.add_dummy_prefix,
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }


def _bpe(spec: TokenizerSpec, vocab_size: int) -> dict[str, Value]:
    parts = parse_bpe(spec.data)
    pre = next((name for name in PRE_TOKENIZERS if name != "default" and _is_of(name, parts)), None)
    if pre is None:
        raise CheckpointError(
            "the rules by which the tokenizer cuts or normalizes a text have no name in GGUF "
            f"({', '.join(name for name in PRE_TOKENIZERS if name != 'default')} do)"
        )
    tokens: list[str | None] = [None] * vocab_size
    types = [NORMAL] * vocab_size
    special = {spec.bos_id, *spec.eos_ids}
    for text, token_id in parts.vocab.items():
        tokens[token_id] = text
    for token in parts.added:
        tokens[token.id] = token.content
        types[token.id] = CONTROL if token.special or token.id in special else USER_DEFINED
    for token_id in range(vocab_size):
        if tokens[token_id] is None:
            types[token_id] = UNUSED
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": _filled(tokens, vocab_size),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in parts.merges],
    }


def _is_of(name: str, parts: BpeParts) -> bool:
    """Whether a name of a pre-tokenizer says how a tokenizer cuts and normalizes a text."""
    steps = known_steps({"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[name]})
    says = (steps, name in IGNORES_MERGES, name in NORMALIZES)
    return says == (parts.steps, parts.ignore_merges, parts.nfc)


def _filled(tokens: list[str] | list[str | None], vocab_size: int) -> list[str]:
    """All tokens, with a name for each id that has none."""
    every = [*tokens, *[None] * (vocab_size - len(tokens))]
    return [f"[PAD{token_id}]" if text is None else text for token_id, text in enumerate(every)]
