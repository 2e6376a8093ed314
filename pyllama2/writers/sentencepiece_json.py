"""A SentencePiece tokenizer as the tokenizer.json of the package tokenizers, which needs no other package to be read.

    "▁" comes before the text, and for each space       normalizer
    two neighbours become the piece with the best score   merges, from the best score to the worst
    what is no piece becomes its bytes of UTF-8           byte_fallback

SentencePiece has no merges: each cut of a piece into two pieces is one. The result is compared with SentencePiece's on
a few texts. A model with other rules, such as Unicode's NFKC, has no tokenizer.json.
"""

from __future__ import annotations

import json
from typing import Any

from ..tokenizer import load_tokenizer
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.sentencepiece import open_processor
from ..tokenizer.sentencepiece_proto import read_model_proto

_SPACE = "\u2581"
_TEXTS = (
    "Hello, world! The quick brown fox",
    " one  two   three ",
    "a\tb\n\n c\r\n",
    "naïve café ﬁ Ａ①",
    "日本語 мир 🦊 e\u0301",
    "x = [i**2 for i in range(10)]  # 3.14",
    "aaaaaaaaaaaa 111111111",
    "<s> </s> <unk> <0x41>",
    "\u00a0\u200b\u3000",
)


def tokenizer_json(spec: TokenizerSpec, vocab_size: int) -> bytes | None:
    """Make the file.

    Args:
        spec: of kind "sentencepiece".
        vocab_size: the model's number of tokens.

    Returns:
        The file; None when its tokens would not be those of the model.
    """
    import tokenizers

    values = _values(spec)
    ours = load_tokenizer(spec, vocab_size)
    try:
        # Without the special tokens, which become tokens wherever a text has them: for us they are ordinary text.
        theirs = tokenizers.Tokenizer.from_str(json.dumps(values | {"added_tokens": [], "post_processor": None}))
    except Exception:  # the package raises no narrower one
        return None
    if any(theirs.encode(text).ids != ours.encode(text) for text in _TEXTS):
        return None
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _values(spec: TokenizerSpec) -> dict[str, Any]:
    processor, proto = open_processor(spec.data), read_model_proto(spec.data)
    pieces = [processor.id_to_piece(token_id) for token_id in range(proto.n_pieces)]
    user_defined = {token_id for _, token_id, _ in proto.user_defined}
    special = [i for i in range(len(pieces)) if processor.is_control(i) or processor.is_unknown(i)]
    added = [(i, i not in user_defined) for i in sorted({*special, *user_defined})]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if proto.add_dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if proto.add_dummy_prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": is_special}
            for i, is_special in added
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[processor.unk_id()],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": _merges(pieces, [processor.get_score(i) for i in range(len(pieces))], {i for i, _ in added}),
        },
    }


def _merges(pieces: list[str], scores: list[float], no_parts: set[int]) -> list[list[str]]:
    """Each cut of a piece into two pieces, from the piece with the best score to that with the worst."""
    places = {piece: i for i, piece in enumerate(pieces) if i not in no_parts}
    found = [
        (-scores[i], places[piece[:cut]], places[piece[cut:]], [piece[:cut], piece[cut:]])
        for piece, i in places.items()
        for cut in range(1, len(piece))
        if piece[:cut] in places and piece[cut:] in places
    ]
    return [pair for *_, pair in sorted(found)]
