"""Byte-level BPE tokenizers (tokenizer.json), using the tokenizers package.

A token is spelled in an alphabet of 256 printable characters, one for each byte (GPT-2's). bpe_parts.py
checks a tokenizer.json. The package does not get the special tokens, so that no text can become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..process.exit_gate import GATE
from .base import Tokenizer, TokenizerSpec, is_chat_marker, utf8
from .bpe_parts import AddedToken, BpeParts, parse_bpe
from .pre_tokenizer import make_pre_tokenizer

if TYPE_CHECKING:
    import tokenizers

# The longest word or run of spaces, in characters. The package's regular expressions may backtrack that far, and it
# panics at ten million steps.
_MAX_RUN = 1_000_000
_RUNS = re.compile(r"\s+|\S+")


def _byte_alphabet() -> dict[str, int]:
    """Map each character to its byte: printable Latin-1 characters to their own, U+0100 and up to the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class BpeTokenizer(Tokenizer):
    """A tokenizer with the results of the tokenizers package, except that text never becomes special tokens.

    Text may become added tokens that the file does not call special. The exceptions are tokens spelled like
    chat markers, BOS and EOS, which count as special.

    Args:
        spec: its data is a tokenizer.json.
        vocab_size: the model's number of tokens; None: as many as the tokenizer has.

    Raises:
        CheckpointError: the tokenizer.json is damaged or not supported, or has tokens that the model lacks.
    """

    prepends_space = False

    def __init__(self, spec: TokenizerSpec, vocab_size: int | None) -> None:
        parts = parse_bpe(spec.data)
        vocab = parts.vocab
        self._tokens: dict[int, str] = {token_id: token for token, token_id in vocab.items()}
        if len(self._tokens) != len(vocab):
            raise CheckpointError("the tokenizer gives one id to two tokens")
        special: dict[str, int] = {}
        text_tokens: list[AddedToken] = []
        begin_or_end = {spec.bos_id, *spec.eos_ids}
        for token in parts.added:
            name, token_id = token.content, token.id
            if vocab.get(name, special.get(name, token_id)) != token_id or (
                self._tokens.setdefault(token_id, name) != name
            ):
                raise CheckpointError(
                    f"the tokenizer's added token {name[:40]!r} has two ids, or shares its id {token_id}"
                )
            if token.special or token_id in begin_or_end or is_chat_marker(name):
                special[name] = token_id
            else:
                vocab[name] = token_id  # the package gives a new id to an added token that is not in the vocabulary
                text_tokens.append(token)
        n_tokens = 1 + max(self._tokens, default=-1)
        if vocab_size is not None and n_tokens > vocab_size:
            raise CheckpointError(f"the tokenizer has a token {n_tokens - 1}, the model only {vocab_size} tokens")
        self._plain: dict[int, bytes] = {token.id: token.content.encode() for token in text_tokens}
        merges = _without(parts, special)
        self._missing_bytes = {byte for char, byte in _BYTE_OF.items() if char not in vocab}
        self._encoder = _make_encoder(parts, merges, text_tokens)
        super().__init__(spec, n_tokens if vocab_size is None else vocab_size, special)

    def encode(self, text: str) -> list[int]:
        """See Tokenizer.encode(). Also raises ValueError for a word or run of spaces of over a million characters."""
        if not self._missing_bytes.isdisjoint(utf8(text)):
            char = next(char for char in text if not self._missing_bytes.isdisjoint(char.encode()))
            raise ValueError(
                f"the model's vocabulary has no token for the character {char!r} (bytes {char.encode().hex(' ')})"
            )
        _check_runs(text)
        with GATE, _package_errors("the tokenizer failed on a text"):
            ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See Tokenizer.token_bytes()."""
        token_id = self._checked_id(token_id)
        if token_id in self._special_names:
            return b""
        if token_id in self._plain:
            return self._plain[token_id]
        token = self._tokens.get(token_id, "")
        try:
            return bytes(map(_BYTE_OF.__getitem__, token))
        except KeyError:  # a token that is in the vocabulary as plain text, not in the alphabet of bytes
            return token.encode()


def _without(parts: BpeParts, special: dict[str, int]) -> list[tuple[str, str]]:
    """Remove special tokens from the vocabulary; returns the merges that do not need them."""
    taken = [name for name in special if parts.vocab.pop(name, None) is not None]
    if not taken:
        return parts.merges
    vocab = parts.vocab
    return [pair for pair in parts.merges if pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab]


def _make_encoder(
    parts: BpeParts, merges: list[tuple[str, str]], text_tokens: list[AddedToken]
) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken as PackageToken
    from tokenizers import Tokenizer as PackageTokenizer
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC

    with _package_errors("the tokenizer.json is damaged"):
        encoder = PackageTokenizer(BPE(parts.vocab, merges, ignore_merges=parts.ignore_merges))
        if parts.nfc:
            encoder.normalizer = NFC()
        encoder.pre_tokenizer = make_pre_tokenizer(parts.steps)
        encoder.add_tokens([PackageToken(token.content, special=False, **token.flags) for token in text_tokens])
    return encoder


def _check_runs(text: str) -> None:
    """Raise ValueError for a word or run of spaces of more than _MAX_RUN characters."""
    if len(text) > _MAX_RUN:
        longest = max(match.end() - match.start() for match in _RUNS.finditer(text))
        if longest > _MAX_RUN:
            raise ValueError(f"{longest} characters without a space between them, or spaces only, are too many")


@contextmanager
def _package_errors(what: str) -> Iterator[None]:
    """Turn the package's errors into CheckpointError: exceptions, and panics of its Rust code."""
    try:
        yield
    except BaseException as error:
        # PanicException derives from BaseException, and cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {error!s:.200}") from error
