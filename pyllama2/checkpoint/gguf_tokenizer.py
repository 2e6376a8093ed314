"""The tokenizer in the metadata of a GGUF file.

    tokenizer.ggml.model           "llama": SentencePiece, "gpt2": byte-level BPE
    tokenizer.ggml.tokens          texts; "llama" spells a space as U+2581
    tokenizer.ggml.token_type      as in SentencePiece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    tokenizer.ggml.scores          "llama" only: higher scores are merged first
    tokenizer.ggml.merges          "gpt2" only: "left right", in the order in which they are merged
    tokenizer.ggml.pre             "gpt2" only: the name of the pre-tokenizer
    tokenizer.ggml.add_space_prefix                                      "llama" only: put a space before a text
    tokenizer.ggml.{bos,eos,eot,eom,unknown}_token_id, .add_bos_token    special tokens

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from ..errors import CheckpointError
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.limits import MAX_MERGES, MAX_TOKENS, check_special_tokens
from ..tokenizer.pre_tokenizer import Step, byte_level, digits, split
from ..tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, build_model
from .gguf_header import Metadata

ENDS = ("eos", "eot", "eom")  # tokens that end a text: of the text, the turn and the message
_SPECIAL = (UNKNOWN, CONTROL, USER_DEFINED)
# The steps of each pre-tokenizer in tokenizer.ggml.pre, as a tokenizer.json has them.
PRE_TOKENIZERS: dict[str, list[Step]] = {
    "default": [byte_level(use_regex=True)],
    "gpt-2": [byte_level(use_regex=True)],
    "smollm": [digits(each=True), byte_level(use_regex=True)],
    "llama-bpe": [split("llama-bpe"), byte_level(use_regex=False)],
    "qwen2": [split("qwen2"), byte_level(use_regex=False)],
    "deepseek-r1-qwen": [split("qwen2"), byte_level(use_regex=False)],
    "tekken": [split("tekken"), byte_level(use_regex=False)],
}
IGNORES_MERGES = ("llama-bpe", "tekken")  # a piece of text that is a token becomes that token without merging
NORMALIZES = ("qwen2",)  # to NFC


def read_tokenizer(metadata: Metadata, vocab_size: int) -> TokenizerSpec | None:
    """Make the tokenizer of a GGUF file.

    Args:
        metadata: the file's keys.
        vocab_size: the model's number of tokens.

    Returns:
        The tokenizer, None when the file has none.

    Raises:
        CheckpointError: the tokenizer is damaged or not supported, or has more tokens than the model.
    """
    model = metadata.find("tokenizer.ggml.model", str)
    if model is None and "tokenizer.ggml.tokens" in metadata:
        raise CheckpointError(f"{metadata.path} has tokens, but lacks the key tokenizer.ggml.model")
    if model is None or model in ("no_vocab", "none"):
        return None
    if model not in ("llama", "gpt2"):
        raise CheckpointError(
            f"{metadata.path}: a tokenizer of type {model[:40]!r} is not supported (llama and gpt2 are)"
        )
    tokens, types = _read_tokens(metadata, vocab_size)
    bos_id = _token_id(metadata, "bos", len(tokens))
    ends = [_token_id(metadata, name, len(tokens)) for name in ENDS]
    eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    for token_id in (bos_id, *eos_ids):
        if token_id is not None and types[token_id] == NORMAL:
            types[token_id] = CONTROL  # text must never become BOS or EOS, even if the file allows it
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
    """Return texts and types of all tokens, checked."""
    tokens = metadata.texts("tokenizer.ggml.tokens", min(vocab_size, MAX_TOKENS))
    if "" in tokens:
        raise CheckpointError(f"{metadata.path}: token {tokens.index('')} is empty")
    if len(set(tokens)) < len(tokens):
        repeated = Counter(tokens).most_common(1)[0][0]
        raise CheckpointError(f"{metadata.path}: the token {repeated[:80]!r} appears twice")
    types = metadata.array("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise CheckpointError(f"{metadata.path}: {len(tokens)} tokens have {len(types)} types")
    wrong = np.flatnonzero((types < NORMAL) | (types > BYTE))
    if len(wrong):
        raise CheckpointError(f"{metadata.path}: token {wrong[0]} is of the unknown type {types[wrong[0]]}")
    try:
        check_special_tokens([tokens[token_id] for token_id in np.flatnonzero(np.isin(types, _SPECIAL))])
    except ValueError as error:
        raise CheckpointError(f"{metadata.path}: {error}") from error
    return tokens, types.tolist()


def _token_id(metadata: Metadata, name: str, n_tokens: int) -> int | None:
    """Return the id of a special token, None when the file has none."""
    token_id = metadata.find(f"tokenizer.ggml.{name}_token_id", int)
    if token_id is not None and not 0 <= token_id < n_tokens:
        raise CheckpointError(f"{metadata.path}: {name}_token_id is {token_id}, but there are {n_tokens} tokens")
    return token_id


def _sentencepiece_model(
    metadata: Metadata, tokens: list[str], types: list[int], bos_id: int | None, eos_ids: tuple[int, ...]
) -> bytes:
    scores = metadata.array("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise CheckpointError(f"{metadata.path}: {len(tokens)} tokens have {len(scores)} scores")
    wrong = np.flatnonzero(~(np.abs(scores) <= np.finfo(np.float32).max))  # true for NaN, too
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
    """Make a tokenizer.json.

    Unused tokens are left out. Unknown and control tokens are special, so that text never becomes one. A
    user-defined token is an added token, which is never split.
    """
    if pre not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{metadata.path}: the pre-tokenizer {pre[:40]!r} is not supported ({', '.join(PRE_TOKENIZERS)} are)"
        )
    vocab = {token: token_id for token_id, token in enumerate(tokens) if types[token_id] != UNUSED}
    added_ids = [token_id for token_id, kind in enumerate(types) if kind in _SPECIAL]
    added = [
        {"id": token_id, "content": tokens[token_id], "special": types[token_id] != USER_DEFINED, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for token_id in added_ids
    ]
    model = {
        "type": "BPE",
        "ignore_merges": pre in IGNORES_MERGES,
        "vocab": vocab,
        "merges": _read_merges(metadata, vocab),
    }
    parts = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "decoder": byte_level(use_regex=True),
        "model": model,
    }
    if pre in NORMALIZES:
        parts["normalizer"] = {"type": "NFC"}
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()


def _read_merges(metadata: Metadata, vocab: dict[str, int]) -> list[str]:
    merges = metadata.texts("tokenizer.ggml.merges", MAX_MERGES)
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(f"{metadata.path}: the merge {merge[:80]!r} does not join two tokens into a third")
    return merges
