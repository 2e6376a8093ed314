"""A reader of SentencePiece models that checks them before the sentencepiece package gets the data.

A .model file is a protobuf message (sentencepiece_model.proto); the fields used here are

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec   4 self_test_data   5 denormalizer_spec
    SentencePiece    1 piece (text)   2 score   3 type (4 is USER_DEFINED, 3 is CONTROL)
    TrainerSpec      44 unk_surface, what an unknown token becomes as text
    NormalizerSpec   2 precompiled_charsmap   3 add_dummy_prefix (true unless written)

For a hostile file, the package needs memory of up to twenty times its size. This reader needs little, and
counts the pieces, so that a vocabulary larger than the model's is refused early.

A charsmap is uint32 n, a trie of n bytes, and the replacement texts of characters in the trie, each followed by
a NUL. With a long replacement, a short text could fill all memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .limits import MAX_SPECIAL_LENGTH, MAX_TOKEN_LENGTH, MAX_TOKENS, check_special_tokens

# The largest published models have 262,144 pieces in 4.7 MB.
_MAX_BYTES = 16 << 20
# The longest replacement of a character in NFKC has 33 bytes.
_MAX_REPLACEMENT = 64
# Bytes of self_test_data, which the package encodes when it loads the model. Published models have none.
_MAX_SELF_TEST = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


@dataclass(frozen=True)
class ModelProto:
    """What a SentencePiece model says about itself.

    Attributes:
        n_pieces: size of the vocabulary
        add_dummy_prefix: whether a space is put before every text
        user_defined: text and id of each piece of type USER_DEFINED, and the offset of the byte with its type
    """

    n_pieces: int
    add_dummy_prefix: bool
    user_defined: tuple[tuple[str, int, int], ...]


def check_model_proto(data: bytes) -> int:
    """Check a SentencePiece model; returns its number of pieces.

    Raises:
        ValueError: data is not a well-formed SentencePiece model, or exceeds a limit
    """
    return read_model_proto(data).n_pieces


def read_model_proto(data: bytes) -> ModelProto:
    """Read and check a whole SentencePiece model.

    Raises:
        ValueError: data is not a well-formed SentencePiece model, or exceeds a limit
    """
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are too many for a SentencePiece model (at most {_MAX_BYTES})")
    n_pieces = 0
    add_dummy_prefix = True
    user_defined: list[tuple[str, int, int]] = []
    special: list[str] = []
    for field, start, end in _fields(data, 0, len(data)):
        if field == (1, _BYTES):
            n_pieces += 1
            if n_pieces > MAX_TOKENS:
                raise ValueError(f"more than {MAX_TOKENS} pieces")
            text, kind, kind_offset = _piece(data, start, end)
            if kind == _USER_DEFINED:
                user_defined.append((text, n_pieces - 1, kind_offset))
            if kind in (_CONTROL, _USER_DEFINED):
                special.append(text)
        elif field == (2, _BYTES):
            _check_trainer(data, start, end)
        elif field == (3, _BYTES):
            add_dummy_prefix = _read_normalizer(data, start, end, add_dummy_prefix)
        elif field == (4, _BYTES) and end - start > _MAX_SELF_TEST:
            raise ValueError(f"self_test_data of {end - start} bytes")
        elif field == (5, _BYTES):
            _read_normalizer(data, start, end, False)
    if not n_pieces:
        raise ValueError("no pieces, so this is not a SentencePiece model")
    check_special_tokens(special)
    return ModelProto(n_pieces, add_dummy_prefix, tuple(user_defined))


def as_control_pieces(data: bytes, offsets: list[int]) -> bytes:
    """Copy a SentencePiece model and change the type of some pieces to CONTROL.

    Args:
        data: the model
        offsets: where the bytes of their types are, as ModelProto.user_defined has them
    """
    changed = bytearray(data)
    for offset in offsets:
        changed[offset] = _CONTROL
    return bytes(changed)


def _piece(data: bytes, start: int, end: int) -> tuple[str, int, int]:
    """Return text and type of the piece data[start:end], and the offset of the byte with its type."""
    text, kind, kind_offset = "", _NORMAL, -1
    for field, at, stop in _fields(data, start, end):
        if field == (1, _BYTES):
            try:
                text = data[at:stop].decode()
            except UnicodeDecodeError:
                raise ValueError(f"the piece at byte {at} of the SentencePiece model is not UTF-8") from None
        elif field == (3, _VARINT):
            kind, kind_offset = data[at], at
            if stop - at > 1:
                raise ValueError(f"a piece of unknown type at byte {at} of the SentencePiece model")
    if len(text) > MAX_TOKEN_LENGTH:
        raise ValueError(f"the piece {text[:40]!r}... of {len(text)} characters is longer than {MAX_TOKEN_LENGTH}")
    return text, kind, kind_offset


def _check_trainer(data: bytes, start: int, end: int) -> None:
    for field, at, stop in _fields(data, start, end):
        if field == (44, _BYTES) and stop - at > MAX_SPECIAL_LENGTH:
            raise ValueError(f"an unk_surface of {stop - at} bytes")


def _read_normalizer(data: bytes, start: int, end: int, add_dummy_prefix: bool) -> bool:
    """Check the NormalizerSpec data[start:end]; returns its add_dummy_prefix, or the argument if it has none."""
    for field, at, stop in _fields(data, start, end):
        if field == (3, _VARINT):
            add_dummy_prefix = data[at] != 0
        elif field == (2, _BYTES) and stop > at:
            texts = at + 4 + int.from_bytes(data[at : at + 4], "little")
            longest = max(map(len, data[texts:stop].split(b"\0")))
            if longest > _MAX_REPLACEMENT:
                raise ValueError(f"its normalizer makes {longest} bytes of one character, more than {_MAX_REPLACEMENT}")
    return add_dummy_prefix


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yield the fields of the message data[position:end]: (number, wire type), start and end of the value."""
    while position < end:  # numbers of one byte are read here, without a call: a model has a million of them
        key, start = data[position], position + 1
        if key >= 0x80:
            key, start = _varint(data, position, end)
            if key >> 32:
                raise ValueError(f"bad field number at byte {position} of the SentencePiece model")
        wire = key & 7
        if wire == _BYTES:
            if start < end and data[start] < 0x80:
                length, start = data[start], start + 1
            else:
                length, start = _varint(data, start, end)
            position = start + length
        elif wire == _VARINT:
            _, position = _varint(data, start, end)
        elif wire in (_FIXED32, _FIXED64):
            position = start + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire} at byte {start - 1} of the SentencePiece model")
        if position > end:
            raise ValueError(f"the field at byte {start} of the SentencePiece model is longer than what it lies in")
        yield (key >> 3, wire), start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number at position (7 bits in each byte, low bits first), and the position after it."""
    if position < end and data[position] < 0x80:
        return data[position], position + 1
    value = 0
    for i in range(position, min(position + 10, end)):
        value |= (data[i] & 0x7F) << 7 * (i - position)
        if data[i] < 0x80:
            if data[i] == 0 and i > position:
                break  # longer than needed: no writer makes such a number, and two readers may disagree on it
            return value, i + 1
    raise ValueError(f"bad number at byte {position} of the SentencePiece model")
