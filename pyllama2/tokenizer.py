"""Tokenizers: SentencePiece and byte-level BPE behind one interface; the streaming detokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal


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
