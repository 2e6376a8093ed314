"""Tokenizers: text to token ids and back, SentencePiece and byte-level BPE behind one interface.

    TokenizerSpec    what our file stores
    Tokenizer        the interface
    load_tokenizer   spec -> Tokenizer (sentencepiece_tokenizer.py, bpe_tokenizer.py)

Text never becomes special tokens: the strings of BOS, EOS and chat markers are encoded like any
other text. What needs special tokens (chat formats, BOS) puts their ids there itself.
The streaming detokenizer is in detokenizer.py.
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

    kind     "sentencepiece": data is a SentencePiece .model; "bpe": data is a tokenizer.json
    bos_id   the token that begins a sequence, None when the model has none
    eos_ids  the tokens that end a text
    add_bos  whether a prompt is given a bos_id
    """

    kind: Literal["sentencepiece", "bpe"]
    data: bytes
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool

    def to_json(self) -> str:
        """Everything but data, as a JSON object."""
        values = {"kind": self.kind, "bos_id": self.bos_id, "eos_ids": list(self.eos_ids), "add_bos": self.add_bos}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, data: bytes) -> TokenizerSpec:
        """The spec of to_json() and its data. Raises ValueError."""
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

    spec            what it was made from
    vocab_size      ids are 0 .. vocab_size - 1; a model may have more than its tokenizer has tokens, and
                    those that stand for nothing add no text
    special_tokens  control tokens by their name: <s>, <|im_end|>
    prepends_space  encode() puts a space before the text, as SentencePiece does
    """

    prepends_space: bool

    def __init__(self, spec: TokenizerSpec, vocab_size: int, special_tokens: dict[str, int]) -> None:
        if len(spec.eos_ids) > MAX_SPECIAL_TOKENS:
            raise CheckpointError(f"{len(spec.eos_ids)} tokens that end a text are more than {MAX_SPECIAL_TOKENS}")
        for id in (*spec.eos_ids, *([] if spec.bos_id is None else [spec.bos_id])):
            if id >= vocab_size:
                raise CheckpointError(f"the special token {id} is beyond the vocabulary of {vocab_size} tokens")
        self.spec = spec
        self.vocab_size = vocab_size
        self.special_tokens = special_tokens
        self._special_names = {id: name for name, id in special_tokens.items()}

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
        """Whether a prompt is given a bos_id; encode() never gives one."""
        return self.spec.add_bos

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of text, without BOS; no special token ever comes out of text.

        Raises ValueError for text that the vocabulary cannot express and for lone surrogates, and
        CheckpointError when the tokenizer's own data makes the encoder fail.
        """

    def with_bos(self, ids: list[int]) -> list[int]:
        """The ids of a prompt, after BOS if a prompt is given one and they do not begin with it."""
        if not self.add_bos or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    @abstractmethod
    def token_bytes(self, id: int, *, first: bool = False) -> bytes:
        """The bytes that a token adds to the text, b"" for a special one. Raises ValueError for an unknown id.

        With first, the token is the first of a whole text that adds any: the space that encode() put
        before the text is left out.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids as a whole text; bytes that are no UTF-8 become U+FFFD. Raises ValueError.

        For a text that continues another see Detokenizer, which keeps the leading space.
        """
        parts: list[bytes] = []
        first = True
        for id in ids:
            parts.append(self.token_bytes(id, first=first))
            first = first and not self.token_bytes(id)
        return b"".join(parts).decode("utf-8", "replace")

    def piece(self, id: int) -> str:
        """A token for people to read: its text, its name if it is special, <0xNN> for bytes that are no text."""
        data = self.token_bytes(id)
        if id in self._special_names:
            return self._special_names[id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def _checked_id(self, id: int) -> int:
        id = operator.index(id)
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size} tokens")
        return id


def is_chat_marker(name: str) -> bool:
    """Whether a token the user may type, by its file, is spelled like a control token: <|im_start|>.

    Converted models often list their chat markers as ordinary added tokens; taken at its word, such
    a file would let text forge turns of a chat.
    """
    return name.startswith("<|") and name.endswith("|>")


def utf8(text: str) -> bytes:
    """The bytes of text. Raises TypeError, and ValueError for a lone surrogate, which no byte sequence stands for."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, "
            "which is not a character"
        ) from None
