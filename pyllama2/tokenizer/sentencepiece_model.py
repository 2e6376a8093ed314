"""Makes SentencePiece models (tokenizer.model) out of pieces that another format stores.

A .model file is a protobuf message. Only what an encoder needs is written, under the numbers of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto:

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 piece   2 score (float)   3 type
    TrainerSpec      3 model_type   4 vocab_size   35 byte_fallback   40 .. 43 ids   45 .. 48 names of special pieces
    NormalizerSpec   1 name   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces

Used by tokenizer_files.py and gguf.py; read back by the sentencepiece package.
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
    pad_id: int | None = None,
    add_dummy_prefix: bool = True,
) -> bytes:
    """A BPE model whose token i is pieces[i] = (text, score, type); higher scores are merged first.

    Texts spell a space as U+2581. Text is neither normalized nor stripped. When there are BYTE pieces
    (<0x00> .. <0xFF>), characters without a piece become bytes. Raises ValueError for a special id
    outside of pieces.
    """
    special = {"unk_id": unk_id, "bos_id": bos_id, "eos_id": eos_id, "pad_id": pad_id}
    for name, id in special.items():
        if id is not None and not 0 <= id < len(pieces):
            raise ValueError(f"{name} is {id}, but there are {len(pieces)} pieces")
    return b"".join(
        [
            encode_pieces(pieces),
            _message(2, _trainer_spec(pieces, list(special.values()))),
            _message(3, _normalizer_spec(add_dummy_prefix)),
        ]
    )


def encode_pieces(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """pieces as fields of a ModelProto; appended to a finished model, they are its next tokens."""
    piece_key = text_key = _key(1, _BYTES)
    score_key, type_key = _key(2, _FIXED32), _key(3, _VARINT)
    parts: list[bytes] = []
    for text, score, type in pieces:
        data = text.encode()
        fields = (text_key, _varint(len(data)), data, score_key, _FLOAT.pack(score), type_key, _varint(type))
        piece = b"".join(fields)
        parts += (piece_key, _varint(len(piece)), piece)
    return b"".join(parts)


def _trainer_spec(pieces: Sequence[tuple[str, float, int]], special: list[int | None]) -> bytes:
    fields = [_number(3, _MODEL_TYPE_BPE), _number(4, len(pieces))]
    if any(type == BYTE for _, _, type in pieces):
        fields.append(_number(35, 1))
    for i, id in enumerate(special):  # unk, bos, eos, pad
        fields.append(_number(40 + i, -1 if id is None else id))
        if id is not None:
            fields.append(_message(45 + i, pieces[id][0].encode()))
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
    """value, 7 bits a byte, low bits first."""
    if value <= 0x7F:
        return bytes((value,))
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
