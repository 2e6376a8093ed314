"""Checks the parts of a byte-level BPE's tokenizer.json that turn text into tokens.

    model          type BPE, vocab {token: id}, merges ["a b", ...] or [["a", "b"], ...], ignore_merges
    normalizer     none, or NFC
    pre_tokenizer  the steps of a known tokenizer (pre_tokenizer.py)
    added_tokens   {content, id, special, single_word, lstrip, rstrip, normalized}

Truncation, padding, dropout and the post-processor are ignored, since they would change a text. The
tokenizers package is written in Rust. Some files would make it panic, or abort the process, which cannot be
caught. Therefore the package gets only what was checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from ..bounded_json import parse_json
from ..errors import CheckpointError
from .limits import MAX_CHARACTERS, MAX_MERGES, MAX_TOKEN_LENGTH, MAX_TOKENS, check_special_tokens
from .pre_tokenizer import Step, known_steps

T = TypeVar("T")

# Llama-3's file has 17 MB and a million values. A value may take 80 bytes of memory.
MAX_BYTES = 24 << 20
_MAX_VALUES = 1_200_000
_MAX_IDS = 1 << 24
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_MAX_NORMALIZERS = 4


@dataclass(frozen=True)
class AddedToken:
    """A token that no merge makes.

    Attributes:
        content: the token's text.
        id: its token id.
        special: whether the file calls it special.
        flags: how the package looks for the token in a text, by the names in _FLAGS.
    """

    content: str
    id: int
    special: bool
    flags: dict[str, bool]


@dataclass(frozen=True)
class BpeParts:
    """The parts of a byte-level BPE.

    Attributes:
        vocab: the id of every token, spelled in the alphabet of bytes; added tokens may be missing.
        merges: pairs of tokens that join to a third token, in the order in which they are merged.
        ignore_merges: whether a piece of text that is a token becomes that token without merging.
        nfc: whether text is normalized to NFC first.
        steps: the steps of the pre-tokenizer.
        added: tokens that no merge makes.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    ignore_merges: bool
    nfc: bool
    steps: list[Step]
    added: list[AddedToken]


def parse_bpe(data: bytes) -> BpeParts:
    """Parse and check a tokenizer.json.

    Args:
        data: the bytes of the file.

    Raises:
        CheckpointError: the file is damaged, not supported or too large.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"a tokenizer.json of {len(data)} bytes is larger than {MAX_BYTES}")
    try:
        root = parse_json(data, _MAX_VALUES)
    except ValueError as error:
        raise CheckpointError(f"the tokenizer.json {error}") from error
    try:
        return check_bpe(root)
    except ValueError as error:
        raise CheckpointError(f"cannot use the tokenizer.json: {error!s:.300}") from error


def check_bpe(root: Any) -> BpeParts:
    """Check a tokenizer.json that has been parsed.

    Args:
        root: the JSON value.

    Raises:
        ValueError: something is wrong or not supported.
    """
    model = _field(root, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise ValueError("it is no byte-level BPE (a SentencePiece model needs its tokenizer.model)")
    steps = known_steps(_field(root, "pre_tokenizer", dict))
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("prefixes or suffixes of parts of words are not supported")
    vocab = _field(model, "vocab", dict)
    added = _added_tokens(_field(root, "added_tokens", list, []))
    _check_tokens(vocab, added)
    return BpeParts(
        vocab,
        _merges(_field(model, "merges", list), vocab),
        _field(model, "ignore_merges", bool, False),
        _is_nfc(_field(root, "normalizer", dict, {})),
        steps,
        added,
    )


def _added_tokens(entries: list[Any]) -> list[AddedToken]:
    added = [
        AddedToken(
            _field(entry, "content", str),
            _field(entry, "id", int),
            _field(entry, "special", bool, False),
            {name: _field(entry, name, bool, False) for name in _FLAGS},
        )
        for entry in entries
    ]
    check_special_tokens([token.content for token in added])
    for token in added:
        # Two that want the same spaces make the package panic.
        takes_spaces = not token.special and (token.flags["lstrip"] or token.flags["rstrip"])
        if takes_spaces and token.content.strip() != token.content:
            raise ValueError(f"its added token {token.content!r} begins or ends with a space, and takes more of them")
    return added


def _check_tokens(vocab: dict[str, Any], added: list[AddedToken]) -> None:
    """Raise ValueError unless all tokens are text, not too long and not too many, with ids in range."""
    n_tokens = len(vocab) + sum(token.content not in vocab for token in added)
    if n_tokens > MAX_TOKENS:
        raise ValueError(f"{n_tokens} tokens are more than {MAX_TOKENS}")
    n_characters = sum(map(len, vocab))
    if n_characters > MAX_CHARACTERS:
        raise ValueError(f"its tokens have {n_characters} characters in all, more than {MAX_CHARACTERS}")
    for name, token_id in chain(vocab.items(), ((token.content, token.id) for token in added)):
        if not name or type(token_id) is not int or not 0 <= token_id < _MAX_IDS:
            raise ValueError(f"its token {name[:40]!r} has the id {str(token_id)[:40]}")
        if len(name) > MAX_TOKEN_LENGTH:
            raise ValueError(f"its token {name[:40]!r}... of {len(name)} characters is longer than {MAX_TOKEN_LENGTH}")
        name.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate, which JSON can spell


def _merges(entries: list[Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    if len(entries) > MAX_MERGES:
        raise ValueError(f"{len(entries)} merges are more than {MAX_MERGES}")
    merges: list[tuple[str, str]] = []
    for entry in entries:
        try:
            left, right = entry.split(" ") if isinstance(entry, str) else entry
            known = left in vocab and right in vocab and left + right in vocab
        except (TypeError, ValueError):  # not a pair, or not of strings
            known = False
        if not known:
            raise ValueError(f"it is damaged: its merge {str(entry)[:80]!r} does not join two tokens into a third")
        merges.append((left, right))
    return merges


def _is_nfc(normalizer: dict[str, Any]) -> bool:
    """Return True for the normalizer NFC, False for none. Raises ValueError for any other."""
    steps = [normalizer] if normalizer else []
    if normalizer.get("type") == "Sequence":
        steps = _field(normalizer, "normalizers", list)
    if len(steps) > _MAX_NORMALIZERS:
        raise ValueError(f"its normalizer has {len(steps)} steps, of which at most {_MAX_NORMALIZERS} are supported")
    for step in steps:
        kind = _field(step, "type", str)
        if kind != "NFC":
            raise ValueError(f"its normalizer {kind[:40]!r} is not supported (NFC is)")
    return bool(steps)


def _field(parent: Any, name: str, kind: type[T], default: T | None = None) -> T:
    """Return parent[name], or the default when it is absent or null. Raises ValueError if it is not of a kind."""
    value = parent.get(name) if isinstance(parent, dict) else None
    if value is None and default is not None:
        return default
    if type(value) is not kind:
        raise ValueError(f"its {name!r} is missing or not a {kind.__name__}")
    return value
