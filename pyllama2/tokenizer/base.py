"""The interface of tokenizers: text to token ids and back.

    TokenizerSpec    the data that a tokenizer is made from, as our file stores it
    Tokenizer        the interface; sentencepiece.py and bpe.py implement it

Text never becomes special tokens: the strings of BOS, EOS and chat markers are encoded like any
other text. Callers that need special tokens (chat formats, BOS) insert their ids.
"""

from __future__ import annotations

import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CheckpointError
from .limits import MAX_SPECIAL_TOKENS


@dataclass(frozen=True)
class TokenizerSpec:
    """All that is needed to make a tokenizer, as our file stores it.

    Attributes:
        kind: "sentencepiece" or "bpe" (byte-level).
        data: the bytes of a SentencePiece .model, or of a tokenizer.json for "bpe".
        bos_id: the token that begins a sequence, None when the model has none.
        eos_ids: the tokens that end a text.
        add_bos: whether a prompt begins with bos_id.
    """

    kind: Literal["sentencepiece", "bpe"]
    data: bytes
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool

    def to_json(self) -> str:
        """Return everything but data, as a JSON object."""
        values = {"kind": self.kind, "bos_id": self.bos_id, "eos_ids": list(self.eos_ids), "add_bos": self.add_bos}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, data: bytes) -> TokenizerSpec:
        """Make a spec from what to_json() wrote, and its data.

        Args:
            text: the JSON object.
            data: the tokenizer's own file.

        Raises:
            ValueError: text is not a valid spec.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {"kind", "bos_id", "eos_ids", "add_bos"}:
            raise ValueError("a tokenizer must have kind, bos_id, eos_ids and add_bos")
        kind, bos_id, eos_ids, add_bos = (values[name] for name in ("kind", "bos_id", "eos_ids", "add_bos"))
        if kind not in ("sentencepiece", "bpe"):
            raise ValueError(f"unknown kind of tokenizer {str(kind)[:40]!r}")
        if not (bos_id is None or _is_id(bos_id)) or not isinstance(eos_ids, list) or not all(map(_is_id, eos_ids)):
            raise ValueError("special token ids must be non-negative integers")
        if not isinstance(add_bos, bool) or (add_bos and bos_id is None):
            raise ValueError("add_bos must be a boolean, false without a bos_id")
        return cls(kind, data, bos_id, tuple(eos_ids), add_bos)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        spec: the data that the tokenizer was made from.
        vocab_size: token ids are 0 .. vocab_size - 1. A model may have more ids than its tokenizer has tokens; the
            ids without a token add no text.
        special_tokens: ids of control tokens by name, such as <s> or <|im_end|>.
        prepends_space: whether encode() puts a space before the text, as SentencePiece does.

    Raises:
        CheckpointError: there are too many EOS tokens, or BOS or EOS is not in the vocabulary.
    """

    prepends_space: bool

    def __init__(self, spec: TokenizerSpec, vocab_size: int, special_tokens: dict[str, int]) -> None:
        if len(spec.eos_ids) > MAX_SPECIAL_TOKENS:
            raise CheckpointError(f"{len(spec.eos_ids)} tokens that end a text are more than {MAX_SPECIAL_TOKENS}")
        for token_id in (*spec.eos_ids, *([] if spec.bos_id is None else [spec.bos_id])):
            if token_id >= vocab_size:
                raise CheckpointError(f"the special token {token_id} is beyond the vocabulary of {vocab_size} tokens")
        self.spec = spec
        self.vocab_size = vocab_size
        self.special_tokens = special_tokens
        self._special_names = {token_id: name for name, token_id in special_tokens.items()}

    @property
    def bos_id(self) -> int | None:
        """The token that begins a sequence, None when the model has none."""
        return self.spec.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self.spec.eos_ids

    @property
    def add_bos(self) -> bool:
        """Whether a prompt begins with bos_id. encode() never adds it; with_bos() does."""
        return self.spec.add_bos

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokenize text.

        Args:
            text: any text; the names of special tokens in it are encoded like other text.

        Returns:
            The token ids, without BOS and without any special token.

        Raises:
            TypeError: text is not a string.
            ValueError: text has a lone surrogate, or a character that the vocabulary cannot express.
            CheckpointError: the tokenizer's own data makes the encoder fail.
        """

    def with_bos(self, ids: list[int]) -> list[int]:
        """Put BOS before the ids of a prompt, if add_bos is set and they do not begin with it already."""
        if not self.add_bos or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    @abstractmethod
    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """Return the bytes that a token adds to the text.

        Args:
            token_id: the token.
            first: this is the first token of a whole text that adds any bytes, so that the space that
                encode() put before the text is left out.

        Returns:
            The bytes, which may be a part of a character; b"" for a special token.

        Raises:
            ValueError: it is outside of the vocabulary.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids as a whole text.

        Detokenizer is for a text that continues another; it keeps the leading space.

        Args:
            ids: token ids; special tokens add nothing.

        Returns:
            The text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is outside of the vocabulary.
        """
        parts: list[bytes] = []
        first = True
        for token_id in ids:
            parts.append(self.token_bytes(token_id, first=first))
            first = first and not self.token_bytes(token_id)
        return b"".join(parts).decode("utf-8", "replace")

    def piece(self, token_id: int) -> str:
        """Return a token in a form for people to read.

        Args:
            token_id: the token.

        Returns:
            The token's text, its name if it is special, or <0xNN> for each byte if its bytes are not UTF-8.

        Raises:
            ValueError: it is outside of the vocabulary.
        """
        data = self.token_bytes(token_id)
        if token_id in self._special_names:
            return self._special_names[token_id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def _checked_id(self, token_id: int) -> int:
        token_id = operator.index(token_id)
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size} tokens")
        return token_id


def is_chat_marker(name: str) -> bool:
    """Whether an ordinary token is spelled like a control token, such as <|im_start|>.

    Converted models often list their chat markers as ordinary added tokens. If text could become such
    a token, it could forge turns of a chat.
    """
    return name.startswith("<|") and name.endswith("|>")


def utf8(text: str) -> bytes:
    """Encode text as UTF-8.

    Raises:
        TypeError: text is not a string.
        ValueError: text has a lone surrogate, which UTF-8 cannot express.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, "
            "which is not a character"
        ) from None
