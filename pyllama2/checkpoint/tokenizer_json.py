"""Reads Hugging Face's tokenizer.json: byte-level BPE, and BPE that was converted from SentencePiece.

    model          {"type": "BPE", "vocab": {token: id}, "merges": [["a", "b"], ...] or ["a b", ...],
                    "byte_fallback": true for SentencePiece, and where it has no effect}
    added_tokens   [{"id": ..., "content": ..., "special": ...}, ...]
    post_processor a template that puts BOS before a text, if there is one

The file of a byte-level BPE is kept as it is. A tokenizer from SentencePiece (Llama-2's) becomes a SentencePiece
model again. SentencePiece merges any two neighbours that join to a piece, the highest score first, so that the
scores follow from the order of the merges. This is exact if the merges of each piece are all its splits into two
pieces, which is checked. If a text begins with a space, the tokenizers package may leave out the space that
SentencePiece puts before the text. Here it is always put, as SentencePiece does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.bpe_parts import MAX_BYTES, check_bpe
from ..tokenizer.limits import MAX_CHARACTERS, MAX_MERGES, MAX_TOKENS, check_special_tokens
from ..tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, build_model
from .json_file import JsonObject

# Llama-3's file has a million values.
_MAX_VALUES = 1_500_000
_MAX_IDS = 1 << 24
# Characters of a piece. SentencePiece's default limit is 16. The time to check a piece is quadratic in its length.
_MAX_PIECE = 128
_SPACE = "\u2581"
_SPELLS_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPENDS = {"type": "Prepend", "prepend": _SPACE}
# Gemma's pre-tokenizer. It has no effect, since the normalizer has replaced all spaces before.
_SPLITS_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
# A tokenizer.json does not say which tokens end a text. These do in every model that has them.
_END_TOKENS = ("</s>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|im_end|>")


@dataclass(frozen=True)
class TokenizerFile:
    """The contents of a tokenizer file.

    Attributes:
        spec: the tokenizer.
        special_ids: ids of special and added tokens by name.
        n_tokens: the highest id plus one.
    """

    spec: TokenizerSpec
    special_ids: dict[str, int]
    n_tokens: int


def read_tokenizer_json(path: str, vocab_size: int | None) -> TokenizerFile:
    """Read a tokenizer.json.

    Args:
        path: the file.
        vocab_size: the model's number of tokens; None: not checked.

    Raises:
        CheckpointError: the file is damaged or not supported, or has more tokens than the model.
    """
    root = JsonObject.read(path, MAX_BYTES, _MAX_VALUES)
    model = root.child("model")
    if model.get("type", str, "BPE") != "BPE":
        raise CheckpointError(f"{path}: a tokenizer of type {model.values['type'][:40]!r} is not supported (BPE is)")
    added = _added_tokens(root)
    vocab = model.get("vocab", dict)
    if not vocab:
        raise CheckpointError(f"{path} is no tokenizer.json: it has no vocabulary")
    n_tokens = 1 + max([_checked_id(path, *item) for item in [*vocab.items(), *added.items()]])
    if vocab_size is not None and n_tokens > vocab_size:
        raise CheckpointError(f"{path}: the tokenizer has a token {n_tokens - 1}, the model only {vocab_size} tokens")
    bos_id = _first_of_template(root, added)
    eos_ids = tuple(added[name] for name in _END_TOKENS if name in added)
    if model.get("byte_fallback", bool, False) and not _is_byte_level(root):
        data = _sentencepiece(root, model, added, n_tokens, bos_id, eos_ids)
        spec = TokenizerSpec("sentencepiece", data, bos_id, eos_ids, bos_id is not None)
    else:
        try:
            check_bpe(root.values)
        except (ValueError, RecursionError) as error:  # RecursionError: a message that quotes a deeply nested value
            raise CheckpointError(f"{path}: {error!s:.300}") from error
        with MappedFile(path) as file:
            spec = TokenizerSpec("bpe", file.bytes(0, file.size), bos_id, eos_ids, bos_id is not None)
    return TokenizerFile(spec, added, n_tokens)


def _is_byte_level(root: JsonObject) -> bool:
    """Whether text is spelled in bytes before it is merged; byte_fallback has no effect then."""
    splitter = root.child("pre_tokenizer")
    steps = [splitter.values, *splitter.get("pretokenizers", list, [])]
    return any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps)


def _added_tokens(root: JsonObject) -> dict[str, int]:
    added: dict[str, int] = {}
    for entry in root.get("added_tokens", list, []):
        token = JsonObject(f"{root.path}: an added token", entry if isinstance(entry, dict) else {})
        content, token_id = token.get("content", str), token.get("id", int)
        if not content or token_id is None or content in added:
            raise CheckpointError(f"{root.path}: added_tokens has a damaged entry or one that appears twice")
        added[content] = token_id
    try:
        check_special_tokens(added)
    except ValueError as error:
        raise CheckpointError(f"{root.path}: {error}") from error
    return added


def _first_of_template(root: JsonObject, added: dict[str, int]) -> int | None:
    """Return the special token that the post-processor puts before a text, None for none."""
    processor = root.child("post_processor")
    steps = [processor.values, *processor.get("processors", list, [])]
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            match step.get("single"):
                case [{"SpecialToken": {"id": str(name)}}, *_] if name in added:
                    return added[name]
    return None


def _sentencepiece(
    root: JsonObject,
    model: JsonObject,
    added: dict[str, int],
    n_tokens: int,
    bos_id: int | None,
    eos_ids: tuple[int, ...],
) -> bytes:
    """Make the SentencePiece model that a tokenizer.json with byte_fallback was converted from."""
    vocab = model.get("vocab", dict)
    if n_tokens > len(vocab) + len(added):
        raise CheckpointError(
            f"{root.path}: {len(vocab)} tokens and {len(added)} added ones have ids up to {n_tokens - 1}"
        )
    if n_tokens > MAX_TOKENS or sum(map(len, vocab)) > MAX_CHARACTERS:
        raise CheckpointError(
            f"{root.path}: {n_tokens} tokens of {sum(map(len, vocab))} characters in all are too many "
            f"(at most {MAX_TOKENS} of {MAX_CHARACTERS})"
        )
    texts: list[str | None] = [None] * n_tokens
    for text, token_id in [*vocab.items(), *added.items()]:
        if texts[token_id] not in (None, text) or not text:
            raise CheckpointError(f"{root.path}: the id {token_id} stands for two tokens, or for none")
        texts[token_id] = text
    unknown = model.get("unk_token", str)
    if model.get("continuing_subword_prefix", str, "") or model.get("end_of_word_suffix", str, ""):
        raise CheckpointError(f"{root.path}: prefixes or suffixes of parts of words are not supported")
    if None in texts or unknown not in vocab:
        raise CheckpointError(f"{root.path}: an id has no token, or unk_token is missing")
    ranks = _merge_ranks(root.path, model)
    specials = {token["content"] for token in root.get("added_tokens", list, []) if token.get("special") is True}
    pieces = []
    for token_id, text in enumerate(texts):
        assert text is not None
        if text == unknown:
            kind = UNKNOWN
        elif text in added:
            kind = CONTROL if text in specials else USER_DEFINED
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = BYTE
        else:
            kind = NORMAL
            _check_splits(root.path, text, vocab, ranks)
        rank = ranks[text][0] if text in ranks else len(ranks) + token_id
        pieces.append((text.replace(" ", _SPACE), -float(rank), kind))
    try:
        return build_model(
            pieces,
            unk_id=vocab[unknown],
            bos_id=bos_id,
            eos_id=eos_ids[0] if eos_ids else None,
            add_dummy_prefix=_prepends_space(root),
        )
    except ValueError as error:  # a lone surrogate
        raise CheckpointError(f"{root.path}: a token is not text: {error!s:.200}") from error


def _checked_id(path: str, text: str, token_id: Any) -> int:
    if type(token_id) is not int or not 0 <= token_id < _MAX_IDS:
        raise CheckpointError(f"{path}: the token {text[:40]!r} has the id {str(token_id)[:40]}")
    return token_id


def _merge_ranks(path: str, model: JsonObject) -> dict[str, tuple[int, int]]:
    """Return for each merged token its place in the order of merges, and where its merges split it.

    Bit i of the latter is set if a merge joins text[:i] and text[i:].
    """
    ranks: dict[str, tuple[int, int]] = {}
    merges = model.get("merges", list, [])
    if len(merges) > MAX_MERGES:
        raise CheckpointError(f"{path}: {len(merges)} merges are more than {MAX_MERGES}")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise CheckpointError(f"{path}: a merge is not a pair of tokens")
        left, right = pair
        place, splits = ranks.get(left + right, (len(ranks), 0))
        ranks[left + right] = (place, splits | 1 << len(left))
    return ranks


def _check_splits(path: str, text: str, vocab: dict[str, Any], ranks: dict[str, tuple[int, int]]) -> None:
    """Raise CheckpointError unless the merges of a token are all its splits into two pieces (or characters)."""
    if len(text) > _MAX_PIECE:
        raise CheckpointError(f"{path}: a token of {len(text)} characters is too long")
    splits = 0
    for i in range(1, len(text)):
        if (i == 1 or text[:i] in vocab) and (i == len(text) - 1 or text[i:] in vocab):
            splits |= 1 << i
    if splits != (ranks[text][1] if text in ranks else 0):
        raise CheckpointError(
            f"{path}: the merges of {text!r} are not those of a SentencePiece model; "
            "this kind of tokenizer needs its tokenizer.model"
        )


def _prepends_space(root: JsonObject) -> bool:
    """Whether the tokenizer puts a space before a text.

    Raises CheckpointError if the normalizer or the pre-tokenizer does anything more than that and spelling spaces.
    """
    normalizer, splitter = root.child("normalizer"), root.child("pre_tokenizer")
    steps = normalizer.get("normalizers", list, [normalizer.values] if normalizer.values else [])
    if splitter.get("type", str) == "Metaspace" and not normalizer.values:
        # By default, Metaspace splits a text at its spaces, which SentencePiece does not.
        if splitter.get("replacement", str) == _SPACE and splitter.get("split", bool, True) is False:
            prefixed = splitter.get("add_prefix_space", bool, True)
            return bool(splitter.get("prepend_scheme", str, "always" if prefixed else "never") != "never")
    elif (
        splitter.values in ({}, _SPLITS_SPACES)
        and _SPELLS_SPACES in steps
        and all(s in (_SPELLS_SPACES, _PREPENDS) for s in steps)
    ):
        return _PREPENDS in steps
    raise CheckpointError(f"{root.path}: its normalizer or pre_tokenizer is not one that SentencePiece has")
