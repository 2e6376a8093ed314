"""A bounded reader of SentencePiece models, run before the sentencepiece package sees the data.

A .model file is a protobuf message (sentencepiece_model.proto); the fields used here are

    ModelProto       1 pieces (repeated)   3 normalizer_spec
    SentencePiece    1 piece (text)   2 score   3 type (4 is USER_DEFINED, 3 is CONTROL)
    NormalizerSpec   3 add_dummy_prefix (true unless written)

The package needs up to twenty times the size of a hostile file in memory; this reader needs none and
says how many pieces there are, so that a vocabulary larger than the model's is refused first.
Used by sentencepiece_tokenizer.py and by the readers in checkpoint/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# The largest published models have 256,000 pieces in 4.2 MB.
_MAX_BYTES = 16 << 20
_MAX_PIECES = 1 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


@dataclass(frozen=True)
class ModelProto:
    """What a SentencePiece model says about itself.

    n_pieces           size of the vocabulary
    add_dummy_prefix   whether a space is put before every text
    user_defined       pieces of type USER_DEFINED, and where in the file the byte of their type is
    """

    n_pieces: int
    add_dummy_prefix: bool
    user_defined: tuple[tuple[str, int], ...]


def check_model_proto(data: bytes) -> int:
    """The number of pieces. Raises ValueError when data is no well-formed SentencePiece model."""
    return read_model_proto(data).n_pieces


def read_model_proto(data: bytes) -> ModelProto:
    """Walk over the whole message. Raises ValueError with the offset of what is wrong."""
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are too many for a SentencePiece model (at most {_MAX_BYTES})")
    n_pieces = 0
    add_dummy_prefix = True
    user_defined: list[tuple[str, int]] = []
    for field, start, end in _fields(data, 0, len(data)):
        if field == (1, _BYTES):
            n_pieces += 1
            if n_pieces > _MAX_PIECES:
                raise ValueError(f"more than {_MAX_PIECES} pieces")
            text, type, type_offset = _piece(data, start, end)
            if type == _USER_DEFINED:
                user_defined.append((text, type_offset))
        elif field == (3, _BYTES):
            for inner, at, _ in _fields(data, start, end):
                if inner == (3, _VARINT):
                    add_dummy_prefix = data[at] != 0
    if not n_pieces:
        raise ValueError("no pieces, so this is not a SentencePiece model")
    return ModelProto(n_pieces, add_dummy_prefix, tuple(user_defined))


def as_control_pieces(data: bytes, offsets: list[int]) -> bytes:
    """A copy of data where the pieces with their type at offsets are of type CONTROL."""
    changed = bytearray(data)
    for offset in offsets:
        changed[offset] = _CONTROL
    return bytes(changed)


def _piece(data: bytes, start: int, end: int) -> tuple[str, int, int]:
    """Text and type of the piece data[start:end], and where the byte of its type is."""
    text, type, type_offset = "", _NORMAL, -1
    for field, at, stop in _fields(data, start, end):
        if field == (1, _BYTES):
            text = data[at:stop].decode("utf-8", "replace")
        elif field == (3, _VARINT):
            type, type_offset = data[at], at
            if stop - at > 1:
                raise ValueError(f"a piece of unknown type at byte {at} of the SentencePiece model")
    return text, type, type_offset


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """The fields of the message data[position:end]: (number, wire type), start and end of the value."""
    while position < end:
        key, start = _varint(data, position, end)
        if key >> 32:
            raise ValueError(f"bad field number at byte {position} of the SentencePiece model")
        wire = key & 7
        if wire == _VARINT:
            _, position = _varint(data, start, end)
        elif wire == _BYTES:
            length, start = _varint(data, start, end)
            position = start + length
        elif wire in (_FIXED32, _FIXED64):
            position = start + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire} at byte {start - 1} of the SentencePiece model")
        if position > end:
            raise ValueError(f"the field at byte {start} of the SentencePiece model is longer than what it lies in")
        yield (key >> 3, wire), start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The number at position, 7 bits a byte, low bits first, and the position after it."""
    if position < end and data[position] < 0x80:
        return data[position], position + 1
    value = 0
    for i in range(position, min(position + 10, end)):
        value |= (data[i] & 0x7F) << 7 * (i - position)
        if data[i] < 0x80:
            if data[i] == 0 and i > position:
                break  # a longer spelling than needed: no writer makes it, and two readers may differ on it
            return value, i + 1
    raise ValueError(f"bad number at byte {position} of the SentencePiece model")
