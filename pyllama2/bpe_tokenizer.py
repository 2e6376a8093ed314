"""Byte-level BPE tokenizers (tokenizer.json), by the tokenizers package.

A token is spelled in an alphabet of 256 printable characters, one for each byte (GPT-2's). Only the
parts that turn text into tokens are handed to the package, after they were checked here:

    model          type BPE, vocab {token: id}, merges, ignore_merges
    normalizer     none, or NFC
    pre_tokenizer  with a ByteLevel step
    added_tokens   {content, id, special}; the special ones are kept from the package altogether, so
                   that no text can become one

Truncation, padding, dropout and the post-processor, which would change a text, are left out.
Made by load_tokenizer() in tokenizer.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import CheckpointError
from .exit_gate import GATE
from .tokenizer import Tokenizer, TokenizerSpec, is_chat_marker, utf8

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")

# Llama-3's file has 17 MB and a million items; an item may take 80 bytes of memory.
_MAX_BYTES = 32 << 20
_MAX_ITEMS = 1_200_000
_MAX_IDS = 1 << 24


def _byte_alphabet() -> dict[str, int]:
    """The byte of each character: a printable Latin-1 character is its own byte, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class BpeTokenizer(Tokenizer):
    """Encodes as the tokenizers package does, special tokens apart.

    Added tokens that are not special come from text, as their file wants, except those spelled like
    chat markers and those that begin or end a text, which are taken as special.
    """

    prepends_space = False

    def __init__(self, spec: TokenizerSpec, vocab_size: int | None) -> None:
        parts = _parse(spec.data)
        vocab = parts["model"]["vocab"]
        self._tokens: dict[int, str] = {id: token for token, id in vocab.items()}
        if len(self._tokens) != len(vocab):
            raise CheckpointError("the tokenizer gives one id to two tokens")
        special: dict[str, int] = {}
        text_tokens = []
        for token in parts["added_tokens"]:
            name, id = token["content"], token["id"]
            if vocab.get(name, special.get(name, id)) != id or self._tokens.setdefault(id, name) != name:
                raise CheckpointError(f"the tokenizer's added token {name[:40]!r} has two ids, or shares its id {id}")
            if token["special"] or id == spec.bos_id or id in spec.eos_ids or is_chat_marker(name):
                special[name] = id
                vocab.pop(name, None)
            else:
                vocab[name] = id  # from where the package takes it; else it would number it anew
                text_tokens.append(token)
        n_tokens = 1 + max(self._tokens, default=-1)
        if vocab_size is not None and n_tokens > vocab_size:
            raise CheckpointError(f"the tokenizer has a token {n_tokens - 1}, the model only {vocab_size} tokens")
        self._plain: dict[int, bytes] = {token["id"]: token["content"].encode() for token in text_tokens}
        self._missing_bytes = {byte for char, byte in _BYTE_OF.items() if char not in vocab}
        self._encoder = _make_encoder(parts | {"added_tokens": text_tokens})
        super().__init__(spec, n_tokens if vocab_size is None else vocab_size, special)

    def encode(self, text: str) -> list[int]:
        """See Tokenizer.encode()."""
        if not self._missing_bytes.isdisjoint(utf8(text)):
            char = next(char for char in text if not self._missing_bytes.isdisjoint(char.encode()))
            raise ValueError(
                f"the model's vocabulary has no token for the character {char!r} (bytes {char.encode().hex(' ')})"
            )
        with GATE, _package_errors("the tokenizer failed on a text"):
            ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, id: int, *, first: bool = False) -> bytes:
        """See Tokenizer.token_bytes()."""
        id = self._checked_id(id)
        if id in self._special_names:
            return b""
        if id in self._plain:
            return self._plain[id]
        token = self._tokens.get(id, "")
        try:
            return bytes(map(_BYTE_OF.__getitem__, token))
        except KeyError:  # a token that somebody put into the vocabulary as plain text
            return token.encode()


def _make_encoder(parts: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as PackageTokenizer

    with _package_errors("the tokenizer.json is damaged"):
        return PackageTokenizer.from_str(json.dumps(parts))


@contextmanager
def _package_errors(what: str) -> Iterator[None]:
    """Turns the package's errors into CheckpointError: exceptions, and panics of its Rust code."""
    try:
        yield
    except BaseException as error:
        # PanicException derives from BaseException, and there is no module to import it from.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {error!s:.200}") from error


def _parse(data: bytes) -> dict[str, Any]:
    """The parts of a tokenizer.json that turn text into tokens, checked. Raises CheckpointError."""
    n_items = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > _MAX_BYTES or n_items > _MAX_ITEMS:
        raise CheckpointError(f"a tokenizer.json of {len(data)} bytes and {n_items} items is too large")
    try:
        return _checked_parts(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot use the tokenizer.json: {error!s:.200}") from error


def _checked_parts(root: Any) -> dict[str, Any]:
    """A tokenizer.json with nothing in it but what is listed at the top. Raises ValueError."""
    model = _field(root, "model", dict)
    pre_tokenizer = _field(root, "pre_tokenizer", dict)
    normalizer = _field(root, "normalizer", dict, {})
    if model.get("type", "BPE") != "BPE" or "ByteLevel" not in _steps(pre_tokenizer, "pretokenizers"):
        raise ValueError("it is no byte-level BPE (a SentencePiece model needs its tokenizer.model)")
    unknown = _steps(normalizer, "normalizers") - {"NFC"} if normalizer else ()
    if unknown:
        raise ValueError(f"its normalizer {min(unknown)[:40]!r} is not supported (NFC is)")

    vocab = _field(model, "vocab", dict)
    added = [
        {
            "content": _field(token, "content", str),
            "id": _field(token, "id", int),
            "special": _field(token, "special", bool, False),
            **{name: _field(token, name, bool, False) for name in ("single_word", "lstrip", "rstrip", "normalized")},
        }
        for token in _field(root, "added_tokens", list, [])
    ]
    for name, id in [*vocab.items(), *((token["content"], token["id"]) for token in added)]:
        if not name or type(id) is not int or not 0 <= id < _MAX_IDS:
            raise ValueError(f"its token {name[:40]!r} has the id {str(id)[:40]}")
        name.encode()  # UnicodeEncodeError, a ValueError, for what JSON can spell and no text holds
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer or None,
        "pre_tokenizer": pre_tokenizer,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": _field(model, "merges", list),
            "ignore_merges": _field(model, "ignore_merges", bool, False),
        },
    }


def _field(parent: Any, name: str, kind: type[T], default: T | None = None) -> T:
    """parent[name], checked to be a kind; the default when it is absent or null. Raises ValueError."""
    value = parent.get(name) if isinstance(parent, dict) else None
    if value is None and default is not None:
        return default
    if type(value) is not kind:
        raise ValueError(f"its {name!r} is missing or not a {kind.__name__}")
    return value


def _steps(node: Any, children: str) -> set[str]:
    """The types of a component's steps, those inside of Sequence steps too."""
    kind = _field(node, "type", str)
    if kind != "Sequence":
        return {kind}
    return set().union(*(_steps(child, children) for child in _field(node, children, list)))
