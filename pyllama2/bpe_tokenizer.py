"""Byte-level BPE tokenizers (tokenizer.json), by the tokenizers package.

A token is spelled in an alphabet of 256 printable characters, one for each byte (GPT-2's). Only the
parts that turn text into tokens are handed to the package, after they were checked here:

    model          vocab {token: id}, merges, ignore_merges
    normalizer     none, or NFC
    pre_tokenizer  with a ByteLevel step
    added_tokens   {content, id, special}; special ones are kept from the package altogether, so that
                   no text can ever become one

Truncation, padding, dropout and the post-processor, which change what text means, are left out.
Made by load_tokenizer() in tokenizer.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import CheckpointError
from .tokenizer import Tokenizer, TokenizerSpec, is_chat_marker, utf8

# Llama-3's file has 17 MB and 800,000 items; an item may take 80 bytes of memory.
_MAX_BYTES = 32 << 20
_MAX_ITEMS = 2_000_000
_MAX_IDS = 1 << 24


def _byte_alphabet() -> dict[str, int]:
    """The character for each byte: itself if printable in Latin-1, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class BpeTokenizer(Tokenizer):
    """Encodes as the tokenizers package does, special tokens apart."""

    prepends_space = False

    def __init__(self, spec: TokenizerSpec, vocab_size: int | None) -> None:
        parts = _parse(spec.data)
        vocab, added = parts["model"]["vocab"], parts["added_tokens"]
        self._tokens = {id: token for token, id in vocab.items()}
        if len(self._tokens) != len(vocab):
            raise CheckpointError("the tokenizer gives one id to two tokens")
        special: dict[str, int] = {}
        self._added_bytes: dict[int, bytes] = {}
        for token in added:
            name, id = token["content"], token["id"]
            if vocab.get(name, special.get(name, id)) != id or self._tokens.setdefault(id, name) != name:
                raise CheckpointError(f"the tokenizer's added token {name[:40]!r} has two ids, or shares its id {id}")
            ends_text = id == spec.bos_id or id in spec.eos_ids
            if token.get("special") is True or ends_text or is_chat_marker(name):
                special[name] = id
                vocab.pop(name, None)
            else:
                # With it in the vocabulary, the package takes its id from there instead of counting on.
                vocab[name] = id
                self._added_bytes[id] = name.encode()
        parts["added_tokens"] = [token for token in added if token["content"] not in special]
        n_tokens = 1 + max(self._tokens, default=-1)
        if vocab_size is not None and n_tokens > vocab_size:
            raise CheckpointError(f"the tokenizer has the token id {n_tokens - 1}, the model only {vocab_size} tokens")
        self._encoder = _make_encoder(parts)
        self._missing_bytes = {byte for char, byte in _BYTE_OF.items() if char not in vocab}
        super().__init__(spec, n_tokens if vocab_size is None else vocab_size, special)

    def encode(self, text: str) -> list[int]:
        """See Tokenizer.encode()."""
        if not self._missing_bytes.isdisjoint(utf8(text)):
            char = next(char for char in text if not self._missing_bytes.isdisjoint(char.encode()))
            spelled = char.encode().hex(" ").upper()
            raise ValueError(f"the model's vocabulary has no token for the character {char!r} (bytes {spelled})")
        with _package_errors("the tokenizer cannot encode a text"):
            ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, id: int, *, first: bool = False) -> bytes:
        """See Tokenizer.token_bytes()."""
        id = self._checked_id(id)
        if id in self._special_names:
            return b""
        if id in self._added_bytes:
            return self._added_bytes[id]
        token = self._tokens.get(id, "")
        try:
            return bytes(map(_BYTE_OF.__getitem__, token))
        except KeyError:  # a token that was put into the vocabulary by hand, spelled plainly
            return token.encode()


def _parse(data: bytes) -> dict[str, Any]:
    """The parts of a tokenizer.json that turn text into tokens, checked. Raises CheckpointError."""
    n_items = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > _MAX_BYTES or n_items > _MAX_ITEMS:
        raise CheckpointError(f"a tokenizer.json of {len(data)} bytes and {n_items} items is too large")
    try:
        parts = json.loads(data)
        _check_object(parts, model=dict, added_tokens=list, normalizer=dict, pre_tokenizer=dict)
        model = parts["model"]
        _check_object(model, vocab=dict, merges=list, ignore_merges=bool)
        if model.get("type", "BPE") != "BPE" or not _has_step(parts["pre_tokenizer"], "ByteLevel"):
            raise ValueError("it is not a byte-level BPE (a SentencePiece model needs its tokenizer.model)")
        if parts.get("normalizer") is not None and not _normalizes_to_nfc(parts["normalizer"]):
            raise ValueError("its normalizer is not supported (NFC is)")
        for token in parts.setdefault("added_tokens", []):
            _check_object(token, content=str, id=int, special=bool)
            if not token["content"]:
                raise ValueError("an added token is empty")
            token["content"].encode()
        for name, id in [*model["vocab"].items(), *((token["content"], token["id"]) for token in parts["added_tokens"])]:
            if type(id) is not int or not 0 <= id < _MAX_IDS:
                raise ValueError(f"the token {name[:40]!r} has the id {str(id)[:40]}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"the tokenizer.json is damaged: {error!s:.200}") from error
    return parts
