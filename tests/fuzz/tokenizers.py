"""Targets of tokenizer files: each is read, and what it gives is used on texts that a stranger may write."""

from __future__ import annotations

import json
from contextlib import suppress

from pyllama2.checkpoint.tokenizer_files import read_tokenizer_file
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import TokenizerSpec
from pyllama2.tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, build_model

from .mutation import mutate_json
from .target import Target, file_of

_VOCAB_SIZE = 300
_TEXTS = ("ab a\nb", "<s>ab</s> <|im_start|>", "é🦙\u2581\0", "a" * 50 + "0123", "")


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _bpe(**changes: object) -> bytes:
    parts: dict[str, object] = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": True},
            {"id": 1, "content": "</s>", "special": True},
            {"id": 8, "content": "<x>", "special": False, "normalized": False},
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
        },
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5, "Ċ": 6, "Ġa": 7},
            "merges": [["a", "b"], ["Ġ", "a"]],
        },
    }
    return json.dumps(parts | changes).encode()


TINY_BPE = _bpe(pre_tokenizer=_BYTE_LEVEL, normalizer={"type": "NFC"})
_PIECES = [
    ("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<x>", 0.0, USER_DEFINED),
    ("\u2581", -1.0, NORMAL), ("a", -2.0, NORMAL), ("b", -3.0, NORMAL), ("ab", -4.0, NORMAL), ("\u2581a", -5.0, NORMAL),
]  # fmt: skip
_BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def _sentencepiece(with_bytes: bool) -> bytes:
    return build_model([*_PIECES, *(_BYTES if with_bytes else ())], unk_id=0, bos_id=1, eos_id=2)


def _sentencepiece_as_json() -> bytes:
    """A SentencePiece model in Hugging Face's spelling."""
    vocab = {text: token_id for token_id, (text, _, _) in enumerate(_PIECES)}
    return _bpe(
        added_tokens=[{"id": token_id, "content": _PIECES[token_id][0], "special": True} for token_id in range(3)],
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        pre_tokenizer=None,
        post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]},
        model={
            "type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocab,
            "merges": ["a b", ["\u2581", "a"]],
        },
    )  # fmt: skip


def use_tokenizer(spec: TokenizerSpec, vocab_size: int | None) -> None:
    """Load it and turn texts into tokens and back. No text may become a special token, whatever the file says.

    A file may also have texts begin or end with a token that is ordinary text, such as a line break; it stays that.
    """
    tokenizer = load_tokenizer(spec, vocab_size)
    special = set(tokenizer.special_tokens.values())
    for text in _TEXTS:
        with suppress(ValueError):  # a character that the vocabulary has no token for
            ids = tokenizer.encode(text)
            assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
            assert special.isdisjoint(ids), (text, ids)
            tokenizer.decode(ids).encode()
    for token_id in range(min(tokenizer.vocab_size, _VOCAB_SIZE)):
        assert isinstance(tokenizer.token_bytes(token_id), bytes) and isinstance(tokenizer.piece(token_id), str)


def _use_json(data: bytes) -> None:
    """A tokenizer.json, as it lies beside a model and as our file holds it."""
    try:
        with file_of(data) as path:
            use_tokenizer(read_tokenizer_file(path, _VOCAB_SIZE), _VOCAB_SIZE)
    except CheckpointError:
        use_tokenizer(TokenizerSpec("bpe", data, 0, (1,), True), _VOCAB_SIZE)
    else:
        with suppress(CheckpointError):  # SentencePiece in this spelling is none
            use_tokenizer(TokenizerSpec("bpe", data, 0, (1,), True), _VOCAB_SIZE)


def _use_model(data: bytes) -> None:
    """A tokenizer.model of SentencePiece or a .bin of llama2.c, and what our file holds of the former."""
    with file_of(data) as path:
        use_tokenizer(read_tokenizer_file(path), None)
    if data[:1] == b"\n":
        use_tokenizer(TokenizerSpec("sentencepiece", data, 1, (2,), True), _VOCAB_SIZE)


def _models() -> list[bytes]:
    from helpers.foreign import llama2c_tokenizer

    named = [(text.encode(), 0.0) for text in ("<unk>", "\n<s>\n", "\n</s>\n", "a", "b", "ab", " a")]
    return [_sentencepiece(False), _sentencepiece(True), llama2c_tokenizer(named)]


TOKENIZERS = (
    Target("tokenizer_json", _use_json, (CheckpointError,), lambda: [_bpe(), _sentencepiece_as_json()], mutate_json),
    Target("tokenizer_model", _use_model, (CheckpointError,), _models),
)
