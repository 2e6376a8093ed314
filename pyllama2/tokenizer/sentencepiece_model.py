"""A writer of SentencePiece models (tokenizer.model), from pieces that another format stores.

A .model file is a protobuf message. Only the fields that an encoder needs are written, with the numbers of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto:

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 piece   2 score (float)   3 type
    TrainerSpec      3 model_type   4 vocab_size   35 byte_fallback   40 .. 43 ids   45 .. 48 names of special pieces
    NormalizerSpec   1 name   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_MODEL_TYPE_BPE = 2
_FLOAT = struct.Struct("<f")


def build_model(
    pieces: Sequence[tuple[str, float, int]],
    *,
    unk_id: int,
    bos_id: int | None,
    eos_id: int | None,
    add_dummy_prefix: bool = True,
) -> bytes:
    """Make a BPE model. It neither normalizes nor strips text.

    Args:
        pieces: (text, score, type) of each token, in the order of ids. Texts spell a space as U+2581. Higher scores
            are merged first. With BYTE pieces (<0x00> .. <0xFF>), characters without a piece become bytes.
        unk_id: the unknown token
        bos_id: the token that begins a sequence, None for none
        eos_id: the token that ends a text, None for none
        add_dummy_prefix: whether a space is put before every text

    Returns:
        The bytes of a .model file.

    Raises:
        ValueError: a special id is outside of pieces, or a text has a lone surrogate
    """
    special = {"unk_id": unk_id, "bos_id": bos_id, "eos_id": eos_id}
    for name, token_id in special.items():
        if token_id is not None and not 0 <= token_id < len(pieces):
            raise ValueError(f"{name} is {token_id}, but there are {len(pieces)} pieces")
    return b"".join(
        [
            encode_pieces(pieces),
            _message(2, _trainer_spec(pieces, [*special.values(), None])),
            _message(3, _normalizer_spec(add_dummy_prefix)),
        ]
    )


def encode_pieces(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """Encode pieces as fields of a ModelProto. Appended to a finished model, they are its next tokens.

    Args:
        pieces: (text, score, type) of each token

    Raises:
        ValueError: a text has a lone surrogate
    """
    piece_key = text_key = _key(1, _BYTES)
    score_key, type_key = _key(2, _FIXED32), _key(3, _VARINT)
    parts: list[bytes] = []
    for text, score, kind in pieces:
        data = text.encode()
        fields = (text_key, _varint(len(data)), data, score_key, _FLOAT.pack(score), type_key, _varint(kind))
        piece = b"".join(fields)
        parts += (piece_key, _varint(len(piece)), piece)
    return b"".join(parts)


def _trainer_spec(pieces: Sequence[tuple[str, float, int]], special: list[int | None]) -> bytes:
    fields = [_number(3, _MODEL_TYPE_BPE), _number(4, len(pieces))]
    if any(kind == BYTE for _, _, kind in pieces):
        fields.append(_number(35, 1))
    for i, token_id in enumerate(special):  # unk, bos, eos, pad
        fields.append(_number(40 + i, -1 if token_id is None else token_id))
        if token_id is not None:
            fields.append(_message(45 + i, pieces[token_id][0].encode()))
    return b"".join(fields)


def _normalizer_spec(add_dummy_prefix: bool) -> bytes:
    return b"".join([_message(1, b"identity"), _number(3, add_dummy_prefix), _number(4, 0), _number(5, 1)])


def _message(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value & (1 << 64) - 1)  # a negative int32 takes ten bytes


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    """Encode a number with 7 bits in each byte, low bits first."""
    if value <= 0x7F:
        return bytes((value,))
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
