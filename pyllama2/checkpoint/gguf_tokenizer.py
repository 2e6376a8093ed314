"""The tokenizer in the metadata of a GGUF file.

    tokenizer.ggml.model           "llama": SentencePiece, "gpt2": byte-level BPE
    tokenizer.ggml.tokens          texts; of "llama" with U+2581 for a space
    tokenizer.ggml.token_type      as in SentencePiece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    tokenizer.ggml.scores          "llama" only: the higher, the sooner merged
    tokenizer.ggml.merges          "gpt2" only: "left right", the first merged first
    tokenizer.ggml.pre             "gpt2" only: the name of the rule that cuts a text before merging
    tokenizer.ggml.add_space_prefix                                      "llama" only: put a space before a text
    tokenizer.ggml.{bos,eos,eot,unknown}_token_id, .add_bos_token        special tokens

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Used by gguf.py.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from ..errors import CheckpointError
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.limits import MAX_MERGES, MAX_TOKENS, check_special_tokens
from ..tokenizer.pre_tokenizer import Step, byte_level, digits, split
from ..tokenizer.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, build_model
from .gguf_header import Metadata

_SPECIAL = (UNKNOWN, CONTROL, USER_DEFINED)
# How each rule of tokenizer.ggml.pre is written in a tokenizer.json: the steps that cut a text.
_PRE_TOKENIZERS: dict[str, list[Step]] = {
    "default": [byte_level(use_regex=True)],
    "gpt-2": [byte_level(use_regex=True)],
    "smollm": [digits(each=True), byte_level(use_regex=True)],
    "llama-bpe": [split("llama-bpe"), byte_level(use_regex=False)],
}


def read_tokenizer(metadata: Metadata, vocab_size: int) -> TokenizerSpec | None:
    """The tokenizer, for a model of vocab_size tokens; None when the file has none. Raises CheckpointError."""
    model = metadata.find("tokenizer.ggml.model", str)
    if model is None or model in ("no_vocab", "none"):
        return None
    if model not in ("llama", "gpt2"):
        raise CheckpointError(
            f"{metadata.path}: a tokenizer of type {model[:40]!r} is not supported (llama and gpt2 are)"
        )
    tokens, types = _read_tokens(metadata, vocab_size)
    bos_id = _token_id(metadata, "bos", len(tokens))
    ends = [_token_id(metadata, name, len(tokens)) for name in ("eos", "eot")]
    eos_ids = tuple(dict.fromkeys(id for id in ends if id is not None))
    for id in (bos_id, *eos_ids):
        if id is not None and types[id] == NORMAL:
            types[id] = CONTROL  # whatever the file says, no text may begin or end a sequence
    pre = metadata.find("tokenizer.ggml.pre", str) or "default"
    add_bos = metadata.find("tokenizer.ggml.add_bos_token", bool)
    if add_bos is None:
        add_bos = model == "llama" or pre == "llama-bpe"
    add_bos = add_bos and bos_id is not None
    if model == "llama":
        data = _sentencepiece_model(metadata, tokens, types, bos_id, eos_ids)
        return TokenizerSpec("sentencepiece", data, bos_id, eos_ids, add_bos)
    return TokenizerSpec("bpe", _tokenizer_json(metadata, tokens, types, pre), bos_id, eos_ids, add_bos)


def _read_tokens(metadata: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens."""
    tokens = metadata.texts("tokenizer.ggml.tokens", min(vocab_size, MAX_TOKENS))
    if "" in tokens:
        raise CheckpointError(f"{metadata.path}: token {tokens.index('')} is empty")
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise CheckpointError(f"{metadata.path}: the token {twice[:80]!r} appears twice")
    types = metadata.array("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise CheckpointError(f"{metadata.path}: {len(tokens)} tokens have {len(types)} types")
    wrong = np.flatnonzero((types < NORMAL) | (types > BYTE))
    if len(wrong):
        raise CheckpointError(f"{metadata.path}: token {wrong[0]} is of the unknown type {types[wrong[0]]}")
    try:
        check_special_tokens([tokens[id] for id in np.flatnonzero(np.isin(types, _SPECIAL))])
    except ValueError as error:
        raise CheckpointError(f"{metadata.path}: {error}") from error
    return tokens, types.tolist()


def _token_id(metadata: Metadata, name: str, n_tokens: int) -> int | None:
    """The id of a special token, None when the file names none."""
    id = metadata.find(f"tokenizer.ggml.{name}_token_id", int)
    if id is not None and not 0 <= id < n_tokens:
        raise CheckpointError(f"{metadata.path}: {name}_token_id is {id}, but there are {n_tokens} tokens")
    return id


def _sentencepiece_model(
    metadata: Metadata, tokens: list[str], types: list[int], bos_id: int | None, eos_ids: tuple[int, ...]
) -> bytes:
    scores = metadata.array("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise CheckpointError(f"{metadata.path}: {len(tokens)} tokens have {len(scores)} scores")
    wrong = np.flatnonzero(~(np.abs(scores) <= np.finfo(np.float32).max))  # NaN is wrong, too
    if len(wrong):
        raise CheckpointError(f"{metadata.path}: token {wrong[0]} has the score {scores[wrong[0]]}")
    unk_id = types.index(UNKNOWN) if UNKNOWN in types else _token_id(metadata, "unknown", len(tokens))
    if unk_id is None or types.count(UNKNOWN) > 1:
        raise CheckpointError(f"{metadata.path}: the tokenizer should have one unknown token")
    types[unk_id] = UNKNOWN  # some converters call it a control token
    prepends_space = metadata.find("tokenizer.ggml.add_space_prefix", bool)
    return build_model(
        list(zip(tokens, scores.tolist(), types, strict=True)),
        unk_id=unk_id,
        bos_id=bos_id,
        eos_id=eos_ids[0] if eos_ids else None,
        add_dummy_prefix=prepends_space is not False,
    )


def _tokenizer_json(metadata: Metadata, tokens: list[str], types: list[int], pre: str) -> bytes:
    """The tokenizer as the tokenizers package stores it.

    Unused tokens are left out. Unknown and control tokens are special, so that no text becomes one;
    user-defined ones are whole pieces of text.
    """
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{metadata.path}: the pre-tokenizer {pre[:40]!r} is not supported ({', '.join(_PRE_TOKENIZERS)} are)"
        )
    vocab = {token: id for id, token in enumerate(tokens) if types[id] != UNUSED}
    added_ids = [id for id, type in enumerate(types) if type in _SPECIAL]
    added = [
        {"id": id, "content": tokens[id], "special": types[id] != USER_DEFINED, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for id in added_ids
    ]
    model = {
        "type": "BPE",
        "ignore_merges": pre == "llama-bpe",  # a text that is a token as it stands becomes that token
        "vocab": vocab,
        "merges": _read_merges(metadata, vocab),
    }
    parts = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": byte_level(use_regex=True),
        "model": model,
    }
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()


def _read_merges(metadata: Metadata, vocab: dict[str, int]) -> list[str]:
    merges = metadata.texts("tokenizer.ggml.merges", MAX_MERGES)
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(f"{metadata.path}: the merge {merge[:80]!r} does not join two tokens into a third")
    return merges
